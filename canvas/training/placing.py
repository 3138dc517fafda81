"""Where drawings stand in a picture, and what they change of it."""

from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

# Where a thing stands: centre x, centre y and side of its square, in shares of the picture.
# Always the same: with little computing, a model learns one place to put a drawing long before
# it learns many.
PLACEMENTS: dict[str, tuple[tuple[float, float, float], ...]] = {
    "": ((0.5, 0.53, 0.625),),
    "tiny": ((0.5, 0.63, 0.31),),
    "huge": ((0.5, 0.5, 0.75),),
    "left": ((0.26, 0.56, 0.46),),
    "right": ((0.74, 0.56, 0.46),),
    "3": tuple(((row + 0.5) / 3, 0.56, 0.31) for row in range(3)),
    "4": tuple(((row + 0.5) / 4, 0.56, 0.235) for row in range(4)),
}


def placed(
    drawing: Image.Image, placement: str, size: int
) -> Iterator[tuple[Image.Image, int, int]]:
    """The drawing at the size of each of its places, with left and top, in pixels."""
    for x, y, side in PLACEMENTS[placement]:
        scale = side * size / max(drawing.size)
        sprite = drawing.resize(
            (max(1, round(drawing.width * scale)), max(1, round(drawing.height * scale))),
            Image.Resampling.BILINEAR,
        )
        yield sprite, round(x * size - sprite.width / 2), round(y * size - sprite.height / 2)


def shadow(size: int, sprite: Image.Image, left: int, top: int) -> tuple[Image.Image, int, int]:
    """The soft shadow at the sprite's foot, as a mask with left and top."""
    x, y = left + sprite.width / 2, top + sprite.height
    half, flat = sprite.width * 0.42, max(1.5, sprite.width * 0.06)
    mask = Image.new("L", (size, size), 0)
    ImageDraw.Draw(mask).ellipse((x - half, y - flat, x + half, y + flat), fill=80)
    box = tuple(int(v) for v in (x - half - 4, y - flat - 4, x + half + 4, y + flat + 4))
    return mask.crop(box).filter(ImageFilter.BoxBlur(size / 64)), box[0], box[1]


def overlay(drawing: Image.Image, placement: str, size: int) -> np.ndarray:
    """What lies over a background: colours times cover, cover, shadow; uint8 [5, size, size]."""
    colours = Image.new("RGB", (size, size))
    cover, dark = Image.new("L", (size, size)), Image.new("L", (size, size))
    for sprite, left, top in placed(drawing, placement, size):
        colours.paste(sprite, (left, top), sprite)
        cover.paste(255, (left, top), sprite)
        soft, x, y = shadow(size, sprite, left, top)
        seen = dark.crop((x, y, x + soft.width, y + soft.height))
        dark.paste(ImageChops.lighter(seen, soft), (x, y))
    return np.concatenate(
        [np.asarray(colours).transpose(2, 0, 1), [np.asarray(cover)], [np.asarray(dark)]]
    )
