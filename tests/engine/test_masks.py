from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageDraw

from canvas.engine import masks
from canvas.errors import InvalidInput


def noise(size: tuple[int, int] = (96, 64), seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


def box_mask(box: tuple[int, int, int, int], size: tuple[int, int] = (96, 64)) -> Image.Image:
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).rectangle(box, fill=255)
    return mask


CLEAR, BLACK, WHITE = (0, 0, 0, 0), (0, 0, 0, 255), (255, 255, 255, 255)


def left_half(color: tuple[int, ...], background: tuple[int, ...]) -> Image.Image:
    """A mask file that marks the left half."""
    mask = Image.new("RGBA", (96, 64), background)
    mask.paste(color, (0, 0, 48, 64))
    return mask


@pytest.mark.parametrize(
    ("color", "background"),
    [
        (BLACK, CLEAR),
        (WHITE, CLEAR),
        ((255, 0, 0, 255), CLEAR),
        ((255, 0, 0, 140), CLEAR),
        (WHITE, (255, 255, 255, 0)),
        (WHITE, BLACK),
        ((255, 255, 255, 200), BLACK),
        ((255, 255, 255, 130), BLACK),
        (WHITE, (0, 0, 0, 60)),
    ],
)
def test_to_mask_marks_what_was_painted(color: tuple[int, ...], background: tuple[int, ...]) -> None:
    mask = masks.to_mask(left_half(color, background))
    assert (mask.mode, mask.size) == ("L", (96, 64))
    assert masks.binarize(mask).getbbox() == (0, 0, 48, 64)
    inverted = ImageChops.invert(mask)
    assert masks.binarize(inverted).getbbox() == (48, 0, 96, 64)


def test_faint_pixels_of_a_stroke_are_not_a_second_colour() -> None:
    stroke = left_half((128, 0, 0, 255), CLEAR)
    stroke.paste((255, 0, 0, 1), (48, 0, 50, 64))  # as browsers store them at the edge of a stroke
    stroke.paste((119, 0, 0, 30), (50, 0, 52, 64))
    assert masks.binarize(masks.to_mask(stroke)).getbbox() == (0, 0, 48, 64)


def test_mask_of_an_opaque_image_is_its_brightness() -> None:
    for mode in ("L", "RGB", "RGBA"):
        assert masks.to_mask(box_mask((2, 3, 9, 9)).convert(mode)).getbbox() == (2, 3, 10, 10)
        assert masks.to_mask(Image.new(mode, (16, 16))).getbbox() is None


@given(st.integers(0, 255), st.integers(0, 255), st.integers(1, 255), st.integers(0, 255))
def test_to_mask_is_brightness_times_alpha_or_alpha(first: int, second: int, alpha: int, clear: int) -> None:
    image = Image.merge("RGBA", [Image.new("L", (8, 8), first)] * 3 + [Image.new("L", (8, 8), alpha)])
    image.paste((second, second, second, 255), (0, 0, 4, 8))
    image.putpixel((7, 7), (clear, clear, clear, 0))
    mask = masks.to_mask(image)
    differ = alpha >= masks.VISIBLE and abs(first - second) > masks.BRIGHTNESS_TOLERANCE
    expected = (second, first * alpha / 255) if differ else (255, alpha)
    assert mask.getpixel((7, 7)) == 0
    assert mask.getpixel((0, 0)) == expected[0]
    assert mask.getpixel((6, 0)) == pytest.approx(expected[1], abs=1)


def test_transparency_mask_marks_what_is_transparent() -> None:
    assert masks.binarize(masks.transparency_mask(left_half(CLEAR, WHITE))).getbbox() == (0, 0, 48, 64)
    assert masks.transparency_mask(Image.new("RGB", (16, 16))).getbbox() is None


def test_empty_mask_is_rejected() -> None:
    with pytest.raises(InvalidInput, match="The mask is empty"):
        masks.check_mask(Image.new("L", (96, 64)), (96, 64))
    with pytest.raises(InvalidInput, match="The mask is empty"):
        masks.mask_bbox(Image.new("L", (96, 64)))


def test_mask_of_another_size_is_rejected() -> None:
    with pytest.raises(InvalidInput, match=r"96x64 \(got 32x32\)"):
        masks.check_mask(Image.new("L", (32, 32), 255), (96, 64))


@pytest.mark.parametrize("blur", [0, 1, 8, 40])
def test_unmasked_pixels_do_not_change(blur: int) -> None:
    original, changed, mask = noise(seed=1), noise(seed=2), box_mask((20, 10, 70, 50))
    result = np.asarray(masks.composite(original, changed, mask, blur))
    outside = np.asarray(mask) == 0
    assert np.array_equal(result[outside], np.asarray(original)[outside])
    assert np.array_equal(result[30, 45], np.asarray(changed)[30, 45])


def test_feathered_edge_fades_inwards() -> None:
    row = np.asarray(masks.feather(box_mask((20, 0, 95, 63)), 16))[32].astype(int)
    assert (row[:20] == 0).all()
    assert (row[40:80] == 255).all()
    assert (np.diff(row[:60]) >= 0).all()
    assert 4 <= ((row > 0) & (row < 255)).sum() <= 20


def test_line_thinner_than_the_radius_remains() -> None:
    assert masks.feather(box_mask((30, 20, 32, 50)), 20).getextrema() == (0, 255)


@settings(max_examples=25)
@given(st.tuples(*[st.integers(0, 48)] * 4).filter(any))
def test_outpaint_canvas_contains_the_image(margins: tuple[int, int, int, int]) -> None:
    image = noise((24, 16))
    canvas, mask = masks.outpaint_canvas(image, margins)
    left, top, right, bottom = margins
    assert canvas.size == mask.size == (24 + left + right, 16 + top + bottom)
    inner = (left, top, left + 24, top + 16)
    assert canvas.crop(inner).tobytes() == image.tobytes()
    assert mask.crop(inner).getextrema() == (0, 0)
    assert np.asarray(mask).sum() == 255 * (canvas.width * canvas.height - 24 * 16)


def test_margins_start_with_the_colours_of_the_edges() -> None:
    blue_then_red = Image.new("RGB", (32, 32), "blue")
    blue_then_red.paste("red", (16, 0, 32, 32))
    canvas, _ = masks.outpaint_canvas(blue_then_red, (16, 0, 16, 16))
    assert canvas.getpixel((0, 10)) == (0, 0, 255)
    assert canvas.getpixel((63, 47)) == (255, 0, 0)
