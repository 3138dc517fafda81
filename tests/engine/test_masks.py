from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from canvas.engine import masks
from canvas.errors import InvalidInput


def noise(size: tuple[int, int] = (96, 64), seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


def box_mask(box: tuple[int, int, int, int], size: tuple[int, int] = (96, 64)) -> Image.Image:
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).rectangle(box, fill=255)
    return mask


def test_mask_of_a_drawn_layer_is_its_alpha() -> None:
    layer = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    layer.putpixel((3, 4), (0, 0, 0, 255))
    assert masks.to_mask(layer).getbbox() == (3, 4, 4, 5)


def test_mask_of_an_opaque_image_is_its_brightness() -> None:
    for mode in ("L", "RGB", "RGBA"):
        assert masks.to_mask(box_mask((2, 3, 9, 9)).convert(mode)).getbbox() == (2, 3, 10, 10)


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


def test_bounding_box_has_padding_within_the_image() -> None:
    assert masks.mask_bbox(box_mask((40, 2, 49, 11)), 8) == (32, 0, 58, 20)


@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([64, 128, 512, 1024]))
def test_inpaint_size_keeps_the_aspect_ratio_and_area(width: int, height: int, resolution: int) -> None:
    size = masks.inpaint_size((0, 0, width, height), resolution)
    assert all(side % 8 == 0 and 64 <= side <= max(64, 2 * resolution) for side in size)
    if 1 / 2 < width / height < 2 and resolution >= 512:
        assert size[0] / size[1] == pytest.approx(width / height, rel=0.05)
        assert size[0] * size[1] == pytest.approx(resolution**2, rel=0.05)


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
