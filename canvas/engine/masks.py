"""Masks for inpainting and outpainting: feathering, compositing, bounding boxes and canvases."""

from __future__ import annotations

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from canvas.errors import InvalidInput, LazyMessage

Box = tuple[int, int, int, int]  # left, top, right, bottom
Margins = tuple[int, int, int, int]  # left, top, right, bottom, in pixels
PADDING = 32  # pixels around the masked area that the model sees, too
THRESHOLD = 128


def to_mask(image: Image.Image) -> Image.Image:
    """A mode L mask, white where the image is to change.

    It is the alpha channel of a drawn layer, otherwise the brightness.
    """
    if image.mode == "RGBA" and image.getchannel("A").getextrema() != (255, 255):
        return image.getchannel("A")
    return image.convert("L")


def check_mask(mask: Image.Image, size: tuple[int, int]) -> None:
    """Raise InvalidInput unless the mask has the size of its image and is not empty."""
    if mask.size != size:
        text = "The mask must have the size of the image, {size} (got {mask_size})."
        mask_size = f"{mask.width}x{mask.height}"
        message = LazyMessage(text, size=f"{size[0]}x{size[1]}", mask_size=mask_size)
        raise InvalidInput("mask_image", mask_size, message=message)
    _bbox(mask)


def _bbox(mask: Image.Image) -> Box:
    box = binarize(mask).getbbox()
    if box is None:
        raise InvalidInput("mask_image", None, message=LazyMessage("The mask is empty. Paint over the area to change."))
    return box


def binarize(mask: Image.Image) -> Image.Image:
    """The mask in black and white only."""
    return mask.point(lambda value: 255 if value >= THRESHOLD else 0)


def feather(mask: Image.Image, radius: int) -> Image.Image:
    """The mask with an edge that fades inwards over about `radius` pixels; it never grows.

    Where the mask is too thin for that radius, a smaller one is used.
    """
    mask = binarize(mask)
    if radius < 1:
        return mask
    # A blurred straight edge is 1/2 at the edge, which becomes 0; the inside stays 1.
    blurred = mask.filter(ImageFilter.GaussianBlur(radius / 2))
    faded = blurred.point(lambda value: max(0, 2 * value - 255))
    faded = ImageChops.darker(faded, mask)
    return faded if faded.histogram()[255] else feather(mask, radius // 2)


def composite(original: Image.Image, changed: Image.Image, mask: Image.Image, blur: int = 0) -> Image.Image:
    """`changed` inside the mask, the exact pixels of `original` outside."""
    return Image.composite(changed, original, feather(mask, blur))


def mask_bbox(mask: Image.Image, padding: int = PADDING) -> Box:
    """The bounding box of the masked area with padding, within the image."""
    box = _bbox(mask)
    return (
        max(0, box[0] - padding),
        max(0, box[1] - padding),
        min(mask.width, box[2] + padding),
        min(mask.height, box[3] + padding),
    )


def inpaint_size(box: Box, resolution: int) -> tuple[int, int]:
    """The size at which a model with that native resolution inpaints the box.

    It has the aspect ratio of the box and the model's native area.
    """
    width, height = box[2] - box[0], box[3] - box[1]
    factor = (resolution * resolution / (width * height)) ** 0.5
    factor = min(factor, 2 * resolution / max(width, height))
    return max(64, round(width * factor / 8) * 8), max(64, round(height * factor / 8) * 8)


def outpaint_canvas(image: Image.Image, margins: Margins) -> tuple[Image.Image, Image.Image]:
    """A larger canvas with the image on it, and the mask of the margins.

    The margins start as the replicated and blurred edges, so that a model without inpainting
    training has colours to start from.
    """
    left, top, right, bottom = margins
    size = (left + image.width + right, top + image.height + bottom)
    inner = (left, top, left + image.width, top + image.height)
    mask = Image.new("L", size, 255)
    ImageDraw.Draw(mask).rectangle((inner[0], inner[1], inner[2] - 1, inner[3] - 1), fill=0)
    canvas = Image.new("RGB", size)
    canvas.paste(image, inner)
    _replicate_edges(canvas, inner)
    canvas.paste(canvas.filter(ImageFilter.GaussianBlur(max(1, max(margins) / 8))), mask=mask)
    return canvas, mask


def _replicate_edges(canvas: Image.Image, inner: Box) -> None:
    """Repeat the outermost columns, then the outermost rows including the new corners."""
    left, top, right, bottom = inner
    width, height = canvas.size
    for source, target in (
        ((left, top, left + 1, bottom), (0, top, left, bottom)),
        ((right - 1, top, right, bottom), (right, top, width, bottom)),
        ((0, top, width, top + 1), (0, 0, width, top)),
        ((0, bottom - 1, width, bottom), (0, bottom, width, height)),
    ):
        size = (target[2] - target[0], target[3] - target[1])
        if all(size):
            canvas.paste(canvas.crop(source).resize(size), target)
