"""Masks for inpainting and outpainting: reading, feathering, compositing, and canvases."""

from __future__ import annotations

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from canvas.engine.work_area import Box, replicate_edges
from canvas.errors import InvalidInput, LazyMessage

Margins = tuple[int, int, int, int]  # left, top, right, bottom, in pixels
THRESHOLD = 128  # from here on a pixel changes
# Editors store the colours of faint pixels imprecisely: at alpha 16, with an error of up to 8.
VISIBLE, BRIGHTNESS_TOLERANCE = 16, 16


def to_mask(image: Image.Image) -> Image.Image:
    """How much each pixel may change, from 0 to 255, as a mode L image.

    That is the brightness of a mask file. Of one with transparency it is brightness times
    alpha, or alpha alone if the visible pixels are equally bright: strokes on a clear layer.
    """
    if "A" not in image.getbands() or image.getchannel("A").getextrema() == (255, 255):
        return image.convert("L")
    image = image.convert("RGBA")
    alpha, brightness = image.getchannel("A"), image.convert("L")
    visible = alpha.point(lambda value: 255 if value >= VISIBLE else 0)
    levels = [level for level, count in enumerate(brightness.histogram(visible)) if count]
    if not levels or levels[-1] - levels[0] <= BRIGHTNESS_TOLERANCE:
        return alpha
    return ImageChops.multiply(brightness, alpha)


def transparency_mask(image: Image.Image) -> Image.Image:
    """The same by the rule of OpenAI's API: what is transparent may change."""
    return ImageChops.invert(image.convert("RGBA").getchannel("A"))


def check_mask(mask: Image.Image, size: tuple[int, int]) -> None:
    """Raise InvalidInput unless the mask has the size of its image and is not empty."""
    if mask.size != size:
        text = "The mask must have the size of the image, {size} (got {mask_size})."
        mask_size = f"{mask.width}x{mask.height}"
        message = LazyMessage(text, size=f"{size[0]}x{size[1]}", mask_size=mask_size)
        raise InvalidInput("mask_image", mask_size, message=message)
    mask_bbox(mask)


def mask_bbox(mask: Image.Image) -> Box:
    """The bounding box of the masked area; raises InvalidInput if it is empty."""
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
    replicate_edges(canvas, inner)
    canvas.paste(canvas.filter(ImageFilter.GaussianBlur(max(1, max(margins) / 8))), mask=mask)
    return canvas, mask
