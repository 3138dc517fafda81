"""A visible mark in the corner of a picture, for who wants one."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageCms, ImageColor, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from canvas.errors import InvalidInput

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")
MAX_BYTES = 200_000_000
MAX_PIXELS = 100_000_000  # 0.4 GB once decoded; phones take 12 to 50 million
MIN_SIDE = 8  # pixels; one latent
READABLE = f"a picture file ({', '.join(FORMATS)})"


@dataclass(frozen=True)
class DecodedImage:
    """A decoded picture, RGB or RGBA, and what was done to it that the user may not expect."""

    image: Image.Image
    notes: tuple[str, ...] = ()


def decode_image(source: bytes | Path | Image.Image, field: str = "image") -> DecodedImage:
    """Open a picture and bring it to 8 bits of RGB or RGBA, upright, in the colours of sRGB.

    Raises InvalidInput for `field` when it is no picture, damaged, too small or too
    large; the size is looked at before a single pixel is decoded.
    """
    if isinstance(source, Image.Image):
        _check_size(source, field, "the picture")
        return _normalise(source)
    name = source.name if isinstance(source, Path) else "the picture"
    with _translate_errors(field, name):
        size = source.stat().st_size if isinstance(source, Path) else len(source)
        if size > MAX_BYTES:
            raise InvalidInput(field, name, f"a file of at most {MAX_BYTES // 10**6} MB")
        file = source if isinstance(source, Path) else io.BytesIO(source)
        with Image.open(file, formats=FORMATS) as picture:
            _check_size(picture, field, name)
            picture.load()
            return _normalise(picture)


def flatten_alpha(picture: Image.Image, background: str = "#ffffff") -> Image.Image:
    """RGB pixels, what is transparent filled with a colour such as `#ffffff`."""
    if picture.mode != "RGBA":
        return picture.convert("RGB")
    ground = Image.new("RGBA", picture.size, (*average_color(background), 255))
    return Image.alpha_composite(ground, picture).convert("RGB")


def resize_to_fit(
    picture: Image.Image, size: tuple[int, int], how: str, background: str
) -> Image.Image:
    """The picture at that size: `crop` cuts what is over, `pad` fills up, `stretch` distorts.

    No pixel changes where the size is the picture's own, or smaller by less than the 8
    pixels to which sizes are rounded.
    """
    width, height = picture.size
    over = (width - size[0], height - size[1])
    if over == (0, 0):
        return picture.copy()
    if how == "crop" and all(0 <= pixels < 8 for pixels in over):
        return center_crop(picture, size)
    if how == "crop":
        return ImageOps.fit(picture, size, Image.Resampling.LANCZOS)
    if how == "pad":
        ground = average_color(background) if picture.mode == "RGB" else 0
        return ImageOps.pad(picture, size, Image.Resampling.LANCZOS, color=ground)
    return picture.resize(size, Image.Resampling.LANCZOS)


def center_crop(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The middle of the picture at that size, or all of it where it is no larger."""
    left, top = ((side - wanted) // 2 for side, wanted in zip(picture.size, size, strict=True))
    if min(left, top) < 0 or picture.size == size:
        return picture
    return picture.crop((left, top, left + size[0], top + size[1]))


def average_color(text: str) -> tuple[int, int, int]:
    """Red, green and blue of a colour's name or `#rrggbb`; raises InvalidInput."""
    try:
        color = ImageColor.getrgb(text)
    except (ValueError, AttributeError, TypeError) as error:
        raise InvalidInput("fill_color", text, "a colour such as #ffffff or white") from error
    return color[0], color[1], color[2]


@contextmanager
def _translate_errors(field: str, name: str) -> Iterator[None]:
    """What Pillow raises on bad files, in a sentence; its warning about bombs is ours already."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    except Image.DecompressionBombError as error:
        raise InvalidInput(field, name, _largest()) from error
    except UnidentifiedImageError as error:
        raise InvalidInput(field, name, f"{READABLE}; this is something else") from error
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise InvalidInput(field, name, f"{READABLE}; this one is damaged ({reason})") from error


def _check_size(picture: Image.Image, field: str, name: str) -> None:
    width, height = picture.size
    said = f"{name} ({width}x{height} pixels)"
    if width * height > MAX_PIXELS:
        raise InvalidInput(field, said, _largest())
    if min(width, height) < MIN_SIDE:
        raise InvalidInput(field, said, f"a picture of at least {MIN_SIDE} pixels a side")


def _largest() -> str:
    return f"a picture of at most {MAX_PIXELS // 10**6} million pixels"


def _normalise(picture: Image.Image) -> DecodedImage:
    notes: list[str] = []
    if (frames := getattr(picture, "n_frames", 1)) > 1 and picture.format != "MPO":
        notes.append(f"The first of {frames} frames was taken.")
    upright = ImageOps.exif_transpose(picture)
    if upright.mode.startswith(("I", "F")):
        upright = _to_8_bits(upright)
        notes.append("More than 8 bits a colour were rounded to 8.")
    if upright.mode == "CMYK":
        notes.append("The printing colours (CMYK) were converted to RGB.")
    see_through = "A" in upright.getbands() or "transparency" in upright.info
    return DecodedImage(_to_srgb(upright, "RGBA" if see_through else "RGB", notes), tuple(notes))


def _to_8_bits(picture: Image.Image) -> Image.Image:
    """Grey of 16 bits or floats to 8; which of the scales is meant is told by the values."""
    _, brightest = picture.getextrema()
    assert isinstance(brightest, int | float)  # noqa: S101 - one band has one pair of extremes
    floats = picture.mode == "F" and brightest <= 1
    scale = 255.0 if floats else 255 / 65535 if brightest > 255 else 1.0
    return picture.convert("F").point(lambda value: value * scale + 0.0).convert("L")


def _to_srgb(picture: Image.Image, mode: str, notes: list[str]) -> Image.Image:
    """Through the embedded colour profile where there is a readable one."""
    profile = picture.info.get("icc_profile")
    alpha = picture.getchannel("A") if mode == "RGBA" and picture.mode == "RGBA" else None
    source = picture.convert("RGB") if picture.mode in ("RGBA", "P") else picture
    if profile and source.mode in ("RGB", "CMYK", "L"):
        try:
            converted = ImageCms.profileToProfile(
                source,
                ImageCms.ImageCmsProfile(io.BytesIO(profile)),
                ImageCms.createProfile("sRGB"),
                outputMode="RGB",
            )
        except (ImageCms.PyCMSError, OSError):
            notes.append("The colour profile could not be read and was left out.")
        else:
            assert converted is not None  # noqa: S101 - it is None for work in place only
            picture = converted
            if alpha is not None:
                picture.putalpha(alpha)
    plain = picture.convert(mode)
    plain.info.clear()
    return plain


MAX_LENGTH = 60  # characters
SHARE = 1 / 28  # of the shorter side: the height of the letters


def add_watermark(picture: Image.Image, text: str) -> Image.Image:
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
