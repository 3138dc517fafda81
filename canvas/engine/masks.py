"""Masks: which part of a picture is made anew, softly joined to the rest, which stays exact."""

from __future__ import annotations

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from canvas.errors import InvalidInput

Box = tuple[int, int, int, int]
Sides = tuple[int, int, int, int]  # left, top, right, bottom, in pixels
PADDING = 32  # pixels around the masked area that the model sees as well
HALF = 128


def to_mask(picture: Image.Image) -> Image.Image:
    """White where the picture is to be changed: a drawn layer's opacity, else its brightness."""
    if picture.mode == "RGBA" and picture.getchannel("A").getextrema() != (255, 255):
        return picture.getchannel("A")
    return picture.convert("L")


def check_mask(mask: Image.Image, size: tuple[int, int]) -> None:
    """Raise InvalidInput unless the mask is as large as its picture and not empty."""
    if mask.size != size:
        said = f"a mask of {mask.width}x{mask.height} pixels"
        raise InvalidInput("mask_image", said, f"the picture's size, {size[0]}x{size[1]}")
    if binarize(mask).getbbox() is None:
        raise InvalidInput("mask_image", "an empty mask", "white, or paint, where to change it")


def binarize(mask: Image.Image) -> Image.Image:
    """Only black and white, as the model takes it."""
    return mask.point(lambda value: 255 if value >= HALF else 0)


def feather(mask: Image.Image, radius: int) -> Image.Image:
    """The mask with an edge that fades inward over about `radius` pixels; never grows.

    Parts too thin to fade keep as much of the fade as they have room for.
    """
    mask = binarize(mask)
    if radius < 1:
        return mask
    # A blurred straight edge has 1/2 at the edge, which becomes 0; the inside stays 1.
    blurred = mask.filter(ImageFilter.GaussianBlur(radius / 2))
    soft = blurred.point(lambda value: max(0, 2 * value - 255))
    soft = ImageChops.darker(soft, mask)
    return soft if soft.histogram()[255] else feather(mask, radius // 2)


def composite(
    original: Image.Image, changed: Image.Image, mask: Image.Image, blur: int = 0
) -> Image.Image:
    """The changed picture inside the mask, the original's own pixels outside of it."""
    return Image.composite(changed, original, feather(mask, blur))


def mask_bbox(mask: Image.Image, padding: int = PADDING) -> Box:
    """The box around what is masked, with some surroundings, within the picture."""
    box = binarize(mask).getbbox()
    if box is None:
        raise InvalidInput("mask_image", "an empty mask", "white, or paint, where to change it")
    return (
        max(0, box[0] - padding),
        max(0, box[1] - padding),
        min(mask.width, box[2] + padding),
        min(mask.height, box[3] + padding),
    )


def inpaint_size(box: Box, resolution: int) -> tuple[int, int]:
    """The size at which a model of that native side works on the box: its shape, its best area."""
    width, height = box[2] - box[0], box[3] - box[1]
    factor = (resolution * resolution / (width * height)) ** 0.5
    factor = min(factor, 2 * resolution / max(width, height))
    return max(64, round(width * factor / 8) * 8), max(64, round(height * factor / 8) * 8)


def outpaint_canvas(picture: Image.Image, sides: Sides) -> tuple[Image.Image, Image.Image]:
    """A larger canvas with the picture on it, and the mask of what was added.

    What was added begins as the border drawn out and blurred, so that a plain model has
    colours to start from.
    """
    left, top, right, bottom = sides
    size = (left + picture.width + right, top + picture.height + bottom)
    inner = (left, top, left + picture.width, top + picture.height)
    mask = Image.new("L", size, 255)
    ImageDraw.Draw(mask).rectangle((inner[0], inner[1], inner[2] - 1, inner[3] - 1), fill=0)
    canvas = Image.new("RGB", size)
    canvas.paste(picture, inner)
    _replicate_edges(canvas, inner)
    blurred = canvas.filter(ImageFilter.GaussianBlur(max(1, max(sides) / 8)))
    canvas.paste(blurred, mask=mask)
    return canvas, mask


def _replicate_edges(canvas: Image.Image, inner: Box) -> None:
    """Repeat the outermost columns, then the outermost rows with the new corners."""
    left, top, right, bottom = inner
    width, height = canvas.size
    for strip, target in (
        ((left, top, left + 1, bottom), (0, top, left, bottom)),
        ((right - 1, top, right, bottom), (right, top, width, bottom)),
        ((0, top, width, top + 1), (0, 0, width, top)),
        ((0, bottom - 1, width, bottom), (0, bottom, width, height)),
    ):
        size = (target[2] - target[0], target[3] - target[1])
        if all(size):
            canvas.paste(canvas.crop(strip).resize(size), target)
