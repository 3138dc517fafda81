"""Masks for inpainting and outpainting, and the work area: which part of the result the model draws, at which size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from canvas.catalog import ModelSpec
from canvas.errors import InvalidInput, LazyMessage

Margins = tuple[int, int, int, int]  # left, top, right, bottom, in pixels
THRESHOLD = 128  # from here on a pixel changes
# Editors store the colours of faint pixels imprecisely: at alpha 16, with an error of up to 8.
VISIBLE, BRIGHTNESS_TOLERANCE = 16, 16
Size = tuple[int, int]  # width, height
Box = tuple[int, int, int, int]  # left, top, right, bottom
PADDING = 32  # pixels around the masked area that the model sees, too
MAX_ASPECT_RATIO = 4  # of the part that the model sees of a large image


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
    canvas = repeat_edges(image, margins)
    mask = Image.new("L", canvas.size, 255)
    mask.paste(Image.new("L", image.size), margins[:2])
    canvas.paste(canvas.filter(ImageFilter.GaussianBlur(max(1, max(margins) / 8))), mask=mask)
    return canvas, mask


@dataclass(frozen=True)
class WorkArea:
    """The part `box` of a result of `result_size`, which the model draws at `size`.

    The result has the size that was requested; `size` has what the model needs: its limits and
    multiples of its step. The box may extend beyond the result by less than a step.
    """

    result_size: Size
    box: Box
    size: Size

    @property
    def box_size(self) -> Size:
        return self.box[2] - self.box[0], self.box[3] - self.box[1]

    @property
    def note(self) -> str:
        """What the record says if the model worked at another scale than the result's."""
        if self.size == self.box_size:
            return ""
        return "Generated at {}x{} and scaled to {}x{}.".format(*self.size, *self.box_size)

    def crop(self, image: Image.Image) -> Image.Image:
        """The area of an image of the result's size, at the size for the model."""
        return _resize(_crop_with_edges(image, self.box), self.size)

    def crop_mask(self, mask: Image.Image) -> Image.Image:
        """The same of a mask, in black and white; every pixel that holds some white is white."""
        cropped = mask.crop(self.box).resize(self.size, Image.Resampling.BOX)
        return cropped.point(lambda value: 255 if value else 0)

    def paste(self, output: Image.Image, original: Image.Image | None = None) -> Image.Image:
        """The result with the model's output in the area, whatever the output's size."""
        result = Image.new("RGB", self.result_size) if original is None else original.copy()
        result.paste(_resize(output, self.box_size), self.box[:2])
        return result


def whole_area(size: Size, step: int, spec: ModelSpec | None = None) -> WorkArea:
    """The whole result; within the limits of the model if `spec` is given."""
    return _area(size, (0, 0, *size), step, spec)


def mask_area(size: Size, mask_box: Box, step: int, spec: ModelSpec) -> WorkArea:
    """The whole result if the model can draw it; of a larger one the part around the mask.

    That part has at least the largest size of the model, which then works at the result's scale.
    """
    if max(size) <= spec.max_size:
        return whole_area(size, step, spec)
    largest = spec.max_size // step * step
    needed = [mask_box[axis + 2] - mask_box[axis] + 2 * PADDING for axis in (0, 1)]
    spans = []
    for axis in (0, 1):
        wanted = max(largest, max(needed) // MAX_ASPECT_RATIO)
        length = max(needed[axis], min(wanted, size[1 - axis] * MAX_ASPECT_RATIO))
        spans.append(_span((mask_box[axis], mask_box[axis + 2]), length, size[axis]))
    (left, right), (top, bottom) = spans
    return _area(size, (left, top, right, bottom), step, spec)


def masked_area(size: Size, mask_box: Box, step: int, spec: ModelSpec) -> WorkArea:
    """The masked area alone with some padding, at the model's native number of pixels."""
    left, top, right, bottom = mask_box
    box = (
        *(max(0, left - PADDING), max(0, top - PADDING)),
        *(min(size[0], right + PADDING), min(size[1], bottom + PADDING)),
    )
    width, height = box[2] - box[0], box[3] - box[1]
    factor = (spec.resolution * spec.resolution / (width * height)) ** 0.5
    factor = min(factor, 2 * spec.resolution / max(width, height))
    smallest = _ceil(64, step)
    work_size = (
        max(smallest, round(width * factor / step) * step),
        max(smallest, round(height * factor / step) * step),
    )
    return WorkArea(size, box, work_size)


def _area(size: Size, box: Box, step: int, spec: ModelSpec | None) -> WorkArea:
    sides = (box[2] - box[0], box[3] - box[1])
    low, high = (spec.min_size, spec.max_size) if spec else (1, max(sides))
    if low <= min(sides) and max(sides) <= high:
        width, height = (_ceil(side, step) for side in sides)
        left, top = box[0] - (width - sides[0]) // 2, box[1] - (height - sides[1]) // 2
        return WorkArea(size, (left, top, left + width, top + height), (width, height))
    low = _ceil(low, step)
    high = max(low, high // step * step)
    factor = min(max(1.0, low / min(sides)), high / max(sides))
    # A side of an extreme aspect ratio that is still outside of the limits is stretched.
    width, height = (min(max(round(side * factor / step) * step, low), high) for side in sides)
    return WorkArea(size, box, (width, height))


def _span(masked: tuple[int, int], length: int, available: int) -> tuple[int, int]:
    """A span of that length around the masked one, within the available length."""
    length = min(length, available)
    start = (masked[0] + masked[1] - length) // 2
    start = min(max(start, 0), available - length)
    return start, start + length


def _ceil(value: int, step: int) -> int:
    return -(-value // step) * step


def _resize(image: Image.Image, size: Size) -> Image.Image:
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def _crop_with_edges(image: Image.Image, box: Box) -> Image.Image:
    """The part of an image; beyond its edges their pixels are repeated."""
    inner = (max(box[0], 0), max(box[1], 0), min(box[2], image.width), min(box[3], image.height))
    left, top, right, bottom = (abs(outer - edge) for outer, edge in zip(box, inner, strict=True))
    return repeat_edges(image.crop(inner), (left, top, right, bottom))


def repeat_edges(image: Image.Image, margins: Margins) -> Image.Image:
    """The RGB image on a larger canvas, on which its outermost pixels are repeated."""
    left, top, right, bottom = margins
    return Image.fromarray(np.pad(np.asarray(image), ((top, bottom), (left, right), (0, 0)), mode="edge"))
