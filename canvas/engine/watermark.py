"""A visible mark in the corner of a picture, for who wants one."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

MAX_LENGTH = 60  # characters
SHARE = 1 / 28  # of the shorter side: the height of the letters


def mark(picture: Image.Image, text: str) -> Image.Image:
    """The picture with the text in its lower right corner, light with a dark rim."""
    height = max(8.0, min(picture.size) * SHARE)
    font = ImageFont.load_default(height)
    rim = max(1, round(height / 12))
    layer = Image.new("RGBA", picture.size)
    pen = ImageDraw.Draw(layer)
    wide = pen.textlength(text, font=font)
    if wide > picture.width * 0.9:  # a long mark on a narrow picture
        font = ImageFont.load_default(max(6.0, height * picture.width * 0.9 / wide))
    place = (picture.width - height / 2, picture.height - height / 2)
    pen.text(
        *(place, text, (255, 255, 255, 170)),
        font=font,
        anchor="rd",
        stroke_width=rim,
        stroke_fill=(0, 0, 0, 110),
    )
    marked = Image.alpha_composite(picture.convert("RGBA"), layer)
    return marked.convert(picture.mode)
