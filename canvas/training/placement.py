"""Placements of sprites in an image, and the overlay layers that they produce."""

from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

# Centre x, centre y and side of each copy of a sprite, as fractions of the image size. They are
# fixed: with little compute, a model learns one position long before it learns many.
PLACEMENTS: dict[str, tuple[tuple[float, float, float], ...]] = {
    "": ((0.5, 0.53, 0.625),),
    "tiny": ((0.5, 0.63, 0.31),),
    "huge": ((0.5, 0.5, 0.75),),
    "left": ((0.26, 0.56, 0.46),),
    "right": ((0.74, 0.56, 0.46),),
    "3": tuple(((row + 0.5) / 3, 0.56, 0.31) for row in range(3)),
    "4": tuple(((row + 0.5) / 4, 0.56, 0.235) for row in range(4)),
}


def place_sprite(sprite: Image.Image, placement: str, size: int) -> Iterator[tuple[Image.Image, int, int]]:
    """Each resized copy of the sprite, with left and top in pixels."""
    for x, y, side in PLACEMENTS[placement]:
        scale = side * size / max(sprite.size)
        resized = sprite.resize(
            (max(1, round(sprite.width * scale)), max(1, round(sprite.height * scale))), Image.Resampling.BILINEAR
        )
        yield resized, round(x * size - resized.width / 2), round(y * size - resized.height / 2)


def render_shadow(size: int, sprite: Image.Image, left: int, top: int) -> tuple[Image.Image, int, int]:
    """The soft shadow below a placed sprite, as a mask with left and top."""
    x, y = left + sprite.width / 2, top + sprite.height
    rx, ry = sprite.width * 0.42, max(1.5, sprite.width * 0.06)
    mask = Image.new("L", (size, size), 0)
    ImageDraw.Draw(mask).ellipse((x - rx, y - ry, x + rx, y + ry), fill=80)
    box = tuple(int(v) for v in (x - rx - 4, y - ry - 4, x + rx + 4, y + ry + 4))
    return mask.crop(box).filter(ImageFilter.BoxBlur(size / 64)), box[0], box[1]


def render_overlay(sprite: Image.Image, placement: str, size: int) -> np.ndarray:
    """Premultiplied RGB, alpha and shadow of a placed sprite; uint8 [5, size, size]."""
    colour = Image.new("RGB", (size, size))
    alpha, shadow = Image.new("L", (size, size)), Image.new("L", (size, size))
    for resized, left, top in place_sprite(sprite, placement, size):
        colour.paste(resized, (left, top), resized)
        alpha.paste(255, (left, top), resized)
        soft, x, y = render_shadow(size, resized, left, top)
        below = shadow.crop((x, y, x + soft.width, y + soft.height))
        shadow.paste(ImageChops.lighter(below, soft), (x, y))
    return np.concatenate([np.asarray(colour).transpose(2, 0, 1), [np.asarray(alpha)], [np.asarray(shadow)]])
