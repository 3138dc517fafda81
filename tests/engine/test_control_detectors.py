"""Detectors of edges and lines, and the recognition of images that show them already."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from canvas.engine.control_detectors import as_control_image, detect, recognize, resolve_control
from canvas.errors import InvalidInput, ModelUnavailable
from canvas.guidance import ControlImage
from tests.tiny_guidance import make_drawing, make_photo

SIZE = (256, 256)
PHOTO = make_photo(SIZE)


def pose() -> Image.Image:
    """Coloured limbs on black, as OpenPose draws them."""
    image = Image.new("RGB", SIZE)
    draw = ImageDraw.Draw(image)
    for index, color in enumerate(("#ff0000", "#00ff00", "#0000ff", "#ffaa00")):
        draw.line((128, 60, 40 + 50 * index, 230), fill=color, width=8)
    return image


def depth_map() -> Image.Image:
    return Image.radial_gradient("L").resize(SIZE).convert("RGB")


def noise() -> Image.Image:
    return Image.effect_noise(SIZE, 60).convert("RGB")


@pytest.mark.parametrize("kind", ["canny", "lineart", "scribble", "soft_edge"])
def test_detected_lines_are_where_the_edges_are(kind: str) -> None:
    found = np.asarray(detect(kind, PHOTO).convert("L")).astype(float)
    assert found.shape == (256, 256)
    assert found[184:200].mean() > 4 * found[100:120, 8:40].mean(), "the edge of the water is brighter than the sky"
    assert 0 < (found > 40).mean() < 0.4


def test_canny_draws_white_lines_of_one_pixel() -> None:
    found = detect("canny", PHOTO)
    assert set(np.unique(np.asarray(found))) == {0, 255}
    assert recognize(found) == "canny"


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (PHOTO, ""),
        (noise(), ""),
        (Image.new("RGB", SIZE, "white"), ""),
        (make_drawing(SIZE), "lineart"),
        (detect("canny", PHOTO), "canny"),
        (pose(), "pose"),
        (depth_map(), "depth"),
    ],
    ids=["photo", "noise", "empty", "drawing", "canny", "pose", "depth"],
)
def test_control_images_are_recognized(image: Image.Image, kind: str) -> None:
    assert recognize(image) == kind


def test_line_drawing_is_not_detected_again() -> None:
    drawing = make_drawing(SIZE)
    item = resolve_control(ControlImage("a.png"), drawing)
    assert (item.kind, item.detect) == ("lineart", False)
    seen = np.asarray(as_control_image(item, drawing).convert("L"))
    assert np.array_equal(seen, 255 - np.asarray(drawing.convert("L"))), "white lines on black, as ControlNets expect"
    assert resolve_control(ControlImage("a.png", "scribble"), drawing).detect is False
    assert resolve_control(ControlImage("a.png", "canny", detect=True), drawing).detect is True


def test_photo_becomes_canny_and_tiles_stay() -> None:
    assert resolve_control(ControlImage("a.png"), PHOTO) == ControlImage("a.png", "canny", detect=True)
    assert resolve_control(ControlImage("a.png", "depth"), PHOTO).detect is True
    tile = resolve_control(ControlImage("a.png", "tile", detect=True), PHOTO)
    assert tile.detect is False
    assert as_control_image(tile, PHOTO).tobytes() == PHOTO.tobytes()


def test_what_cannot_be_detected_is_a_sentence() -> None:
    with pytest.raises(InvalidInput, match="Poses cannot be detected here"):
        resolve_control(ControlImage("a.png", "pose", detect=True), PHOTO)
    with pytest.raises(ModelUnavailable, match=r"Depth-Anything-V2-Small-hf \(99 MB\), which is not downloaded"):
        detect("depth", PHOTO)
