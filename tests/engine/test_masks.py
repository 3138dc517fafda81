from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageDraw

from canvas.catalog import MODELS, ModelSpec
from canvas.engine import masks
from canvas.engine.masks import WorkArea, mask_area, masked_area, whole_area
from canvas.errors import InvalidInput

STARTER, SMALL = MODELS["starter"], MODELS["small"]
sides = st.integers(8, 4096)
sizes = st.tuples(sides, sides)
steps = st.sampled_from([8, 16, 32, 64])
specs = st.sampled_from([STARTER, SMALL])


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


def check_limits(area: WorkArea, step: int, spec: ModelSpec) -> None:
    low, high = -(-spec.min_size // step) * step, -(-spec.max_size // step) * step
    assert all(side % step == 0 and low <= side <= high for side in area.size)


def box_of(points: list[tuple[float, float]], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A box of at least a pixel within the size, from fractions of it."""
    starts = [int(min(axis) * side * 0.999) for axis, side in zip(zip(*points, strict=True), size, strict=True)]
    ends = [int(max(axis) * side * 0.999) + 1 for axis, side in zip(zip(*points, strict=True), size, strict=True)]
    return starts[0], starts[1], ends[0], ends[1]


fractions = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=2)


@given(sizes, steps, specs)
def test_whole_area_covers_the_result_within_the_limits(size: tuple[int, int], step: int, spec: ModelSpec) -> None:
    area = whole_area(size, step, spec)
    check_limits(area, step, spec)
    left, top, right, bottom = area.box
    assert -step < left <= 0
    assert -step < top <= 0
    assert size[0] <= right < size[0] + step
    assert size[1] <= bottom < size[1] + step
    if all(spec.min_size <= side <= spec.max_size for side in size):
        assert area.size == area.box_size, "the model works at the result's scale"
    elif max(size) <= 4 * min(size):
        low_error, high_error = (area.size[0] + step) / (area.size[1] - step), (area.size[0] - step) / area.size[1]
        assert high_error / 1.2 <= size[0] / size[1] <= low_error * 1.2, "the aspect ratio stays"


@given(sizes, steps)
def test_whole_area_without_limits_works_at_the_scale_of_the_result(size: tuple[int, int], step: int) -> None:
    area = whole_area(size, step)
    assert area.size == area.box_size
    assert all(0 <= new - old < step for old, new in zip(size, area.size, strict=True))


@given(sizes, fractions, steps, specs)
def test_mask_area_contains_the_mask(
    size: tuple[int, int], points: list[tuple[float, float]], step: int, spec: ModelSpec
) -> None:
    box = box_of(points, size)
    area = mask_area(size, box, step, spec)
    check_limits(area, step, spec)
    left, top, right, bottom = area.box
    assert left <= box[0] and top <= box[1] and right >= box[2] and bottom >= box[3]
    if max(size) > spec.max_size and min(size) >= spec.max_size and max(box[2] - box[0], box[3] - box[1]) < 100:
        assert area.size == area.box_size, "a small mask in a large image is drawn without scaling"


@given(sizes, fractions, specs)
def test_masked_area_has_the_native_number_of_pixels(
    size: tuple[int, int], points: list[tuple[float, float]], spec: ModelSpec
) -> None:
    area = masked_area(size, box_of(points, size), 8, spec)
    assert all(side % 8 == 0 and 64 <= side <= 2 * spec.resolution for side in area.size)
    width, height = area.box_size
    assume(1 / 2 < width / height < 2)
    assert area.size[0] / area.size[1] == pytest.approx(width / height, rel=0.1)
    assert area.size[0] * area.size[1] == pytest.approx(spec.resolution**2, rel=0.1)


@given(st.tuples(st.integers(8, 200), st.integers(8, 200)), steps)
def test_what_is_cropped_and_pasted_again_is_unchanged(size: tuple[int, int], step: int) -> None:
    image, area = noise(size), whole_area(size, step)
    cropped = area.crop(image)
    assert cropped.size == area.size
    assert area.paste(cropped).tobytes() == image.tobytes()
    assert area.paste(cropped, image).tobytes() == image.tobytes()


def test_pixels_beyond_the_edges_are_repeated() -> None:
    cropped = np.asarray(whole_area((20, 30), 16).crop(noise((20, 30))))
    assert cropped.shape == (32, 32, 3)
    assert (cropped[:, :6] == cropped[:, 6:7]).all()
    assert (cropped[31:] == cropped[30:31]).all()


@pytest.mark.parametrize("output", [(64, 64), (48, 48), (50, 40)])
def test_an_output_of_another_size_is_scaled(output: tuple[int, int]) -> None:
    assert whole_area((57, 50), 16).paste(noise(output)).size == (57, 50)


def test_a_masked_pixel_is_not_lost_by_scaling() -> None:
    area = whole_area((4096, 4096), 8, STARTER)
    mask = Image.new("L", (4096, 4096))
    mask.putpixel((2001, 999), 255)
    assert area.crop_mask(mask).getbbox() == (250, 124, 251, 125)


Size, Box = tuple[int, int], tuple[int, int, int, int]


class Limited(ModelSpec):
    """A model for sides of 256 to 768 pixels."""

    min_size = 256
    max_size = 768


LIMITED = Limited(**{**vars(STARTER), "resolution": 512})


@pytest.mark.parametrize(
    ("size", "box", "work_size"),
    [
        ((57, 50), (-3, -7, 61, 57), None),
        ((300, 500), (-2, -2, 302, 502), (304, 504)),
        ((256, 768), (0, 0, 256, 768), (256, 768)),
        ((100, 300), (0, 0, 100, 300), (256, 768)),  # enlarged
        ((1000, 1500), (0, 0, 1000, 1500), (512, 768)),  # reduced
        ((100, 3000), (0, 0, 100, 3000), (256, 768)),  # stretched
    ],
)
def test_the_whole_area_is_scaled_into_the_limits(size: Size, box: Box, work_size: Size | None) -> None:
    area = whole_area(size, 16, None) if work_size is None else whole_area(size, 8, LIMITED)
    assert (area.box, area.size) == (box, work_size or (64, 64))


@pytest.mark.parametrize(
    ("size", "mask_box", "box", "work_size"),
    [
        ((768, 700), (5, 5, 9, 9), (0, -2, 768, 702), (768, 704)),
        ((2000, 3000), (500, 1000, 600, 1100), (166, 666, 934, 1434), (768, 768)),
        ((2000, 3000), (0, 2990, 10, 3000), (0, 2232, 768, 3000), (768, 768)),
        ((2000, 3000), (0, 1000, 2000, 1100), (0, 666, 2000, 1434), (768, 296)),
        ((6000, 3000), (100, 1000, 4100, 1100), (68, 542, 4132, 1558), (768, 256)),
        ((3000, 300), (1500, 100, 1600, 200), (1166, -2, 1934, 302), (768, 304)),
        ((3000, 100), (1500, 20, 1600, 40), (1350, 0, 1750, 100), (768, 256)),
    ],
)
def test_of_a_large_image_the_part_around_the_mask_is_drawn(
    size: Size, mask_box: Box, box: Box, work_size: Size
) -> None:
    area = mask_area(size, mask_box, 8, LIMITED)
    assert (area.box, area.size) == (box, work_size)


@pytest.mark.parametrize(
    ("mask_box", "box", "work_size"),
    [
        ((300, 200, 400, 350), (268, 168, 432, 382), (448, 584)),
        ((0, 400, 10, 401), (0, 368, 42, 433), (408, 640)),
        ((990, 790, 1000, 800), (958, 758, 1000, 800), (512, 512)),
        ((0, 400, 1000, 401), (0, 368, 1000, 433), (1024, 64)),
    ],
)
def test_the_masked_area_has_some_padding(mask_box: Box, box: Box, work_size: Size) -> None:
    area = masked_area((1000, 800), mask_box, 8, LIMITED)
    assert (area.box, area.size) == (box, work_size)


def test_the_note_names_another_scale_than_that_of_the_result() -> None:
    assert whole_area((1000, 1500), 8, LIMITED).note == "Generated at 512x768 and scaled to 1000x1500."
    assert whole_area((300, 500), 8, LIMITED).note == ""
