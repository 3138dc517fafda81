"""Decodes input images, resizes them, and adds the watermark to finished ones."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageCms, ImageColor, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from canvas.errors import InvalidInput, LazyMessage

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")
MAX_BYTES = 200_000_000
MAX_PIXELS = 100_000_000  # 0.4 GB once decoded; phones take 12 to 50 million
MIN_SIDE = 8  # pixels; one latent
WATERMARK_HEIGHT = 1 / 28  # of the shorter side


@dataclass(frozen=True)
class DecodedImage:
    """An RGB or RGBA image, and notes on conversions that the user may not expect."""

    image: Image.Image
    notes: tuple[str, ...] = ()


def decode_image(source: bytes | Path | Image.Image, field: str = "image") -> DecodedImage:
    """Decode an image to 8-bit RGB or RGBA in sRGB, with the EXIF orientation applied.

    Raises InvalidInput for `field` if it is not an image, damaged, too small or too large;
    the size is checked before any pixel is decoded.
    """
    if isinstance(source, Image.Image):
        _check_size(source, field)
        return _normalize(source)
    name = source.name if isinstance(source, Path) else LazyMessage("this file")
    with _translate_errors(field, name):
        size = source.stat().st_size if isinstance(source, Path) else len(source)
        if size > MAX_BYTES:
            text = "An image file must not be larger than {allowed} MB (got {size} MB)."
            raise InvalidInput(field, name, message=LazyMessage(text, allowed=MAX_BYTES // 10**6, size=size // 10**6))
        file = source if isinstance(source, Path) else io.BytesIO(source)
        with Image.open(file, formats=FORMATS) as image:
            _check_size(image, field)
            image.load()
            return _normalize(image)


def flatten_alpha(image: Image.Image, fill_color: str = "#ffffff") -> Image.Image:
    """The image as RGB; transparent areas take the fill colour."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    canvas = Image.new("RGBA", image.size, (*parse_color(fill_color), 255))
    return Image.alpha_composite(canvas, image).convert("RGB")


def resize_to_fit(image: Image.Image, size: tuple[int, int], resize_mode: str, fill_color: str) -> Image.Image:
    """Resize to `size`: `crop` cuts the excess, `pad` adds borders, `stretch` distorts.

    No pixel changes if the image has that size, or exceeds it by less than the 8 pixels
    to which sizes are rounded (in the mode `crop`).
    """
    width, height = image.size
    excess = (width - size[0], height - size[1])
    if excess == (0, 0):
        return image.copy()
    if resize_mode == "crop" and all(0 <= pixels < 8 for pixels in excess):
        return center_crop(image, size)
    if resize_mode == "crop":
        return ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    if resize_mode == "pad":
        color = parse_color(fill_color) if image.mode == "RGB" else 0
        return ImageOps.pad(image, size, Image.Resampling.LANCZOS, color=color)
    return image.resize(size, Image.Resampling.LANCZOS)


def center_crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The centre of the image at that size, or the image if it is not larger."""
    left, top = ((old - new) // 2 for old, new in zip(image.size, size, strict=True))
    if min(left, top) < 0 or image.size == size:
        return image
    return image.crop((left, top, left + size[0], top + size[1]))


def parse_color(text: str) -> tuple[int, int, int]:
    """Red, green and blue of a colour name or `#rrggbb`; raises InvalidInput."""
    try:
        color = ImageColor.getrgb(text)
    except (ValueError, AttributeError, TypeError) as error:
        raise InvalidInput("fill_color", text, "a colour such as #ffffff or white") from error
    return color[0], color[1], color[2]


@contextmanager
def _translate_errors(field: str, name: str) -> Iterator[None]:
    """Turn Pillow's exceptions into InvalidInput; `_check_size` replaces its bomb warning."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    except UnidentifiedImageError as error:
        text = "Cannot read {file}: it is not an image. Use one of the formats {formats}."
        message = LazyMessage(text, file=name, formats=", ".join(FORMATS))
        raise InvalidInput(field, name, message=message) from error
    except Image.DecompressionBombError as error:
        raise InvalidInput(field, name, message=_too_large()) from error
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        text = "Cannot read {file}: the image is damaged ({reason})."
        message = LazyMessage(text, file=name, reason=reason)
        raise InvalidInput(field, name, message=message) from error


def _check_size(image: Image.Image, field: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise InvalidInput(field, f"{width}x{height}", message=_too_large())
    if min(width, height) < MIN_SIDE:
        text = "An image must be at least {allowed} pixels wide and high (got {size})."
        message = LazyMessage(text, allowed=MIN_SIDE, size=f"{width}x{height}")
        raise InvalidInput(field, f"{width}x{height}", message=message)


def _too_large() -> LazyMessage:
    return LazyMessage("An image must have at most {allowed} million pixels.", allowed=MAX_PIXELS // 10**6)


def _normalize(image: Image.Image) -> DecodedImage:
    notes: list[str] = []
    if (frames := getattr(image, "n_frames", 1)) > 1 and image.format != "MPO":
        notes.append(f"Only the first of {frames} frames is used.")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        image = _to_8_bits(image)
        notes.append("Reduced to 8 bits per channel.")
    if image.mode == "CMYK":
        notes.append("Converted from CMYK to RGB.")
    has_alpha = "A" in image.getbands() or "transparency" in image.info
    return DecodedImage(_to_srgb(image, "RGBA" if has_alpha else "RGB", notes), tuple(notes))


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Convert 16-bit integers or floats to 8 bits; the largest value decides on the range."""
    _, maximum = image.getextrema()
    assert isinstance(maximum, int | float)  # noqa: S101 - one band has one pair of extremes
    floats = image.mode == "F" and maximum <= 1
    scale = 255.0 if floats else 255 / 65535 if maximum > 255 else 1.0
    return image.convert("F").point(lambda value: value * scale + 0.0).convert("L")


def _to_srgb(image: Image.Image, mode: str, notes: list[str]) -> Image.Image:
    """Apply the embedded colour profile, if it can be read."""
    profile = image.info.get("icc_profile")
    alpha = image.getchannel("A") if mode == "RGBA" and image.mode == "RGBA" else None
    source = image.convert("RGB") if image.mode in ("RGBA", "P") else image
    if profile and source.mode in ("RGB", "CMYK", "L"):
        try:
            converted = ImageCms.profileToProfile(
                source, ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
        except (ImageCms.PyCMSError, OSError):
            notes.append("Ignored a colour profile that cannot be read.")
        else:
            assert converted is not None  # noqa: S101 - it is None only for in-place conversion
            image = converted
            if alpha is not None:
                image.putalpha(alpha)
    result = image.convert(mode)
    result.info.clear()
    return result


def add_watermark(image: Image.Image, text: str) -> Image.Image:
    """Write the text into the lower right corner, in white with a dark outline."""
    height = max(8.0, min(image.size) * WATERMARK_HEIGHT)
    font = ImageFont.load_default(height)
    layer = Image.new("RGBA", image.size)
    draw = ImageDraw.Draw(layer)
    width = draw.textlength(text, font=font)
    if width > image.width * 0.9:
        font = ImageFont.load_default(max(6.0, height * image.width * 0.9 / width))
    draw.text(
        (image.width - height / 2, image.height - height / 2),
        text,
        (255, 255, 255, 170),
        font=font,
        anchor="rd",
        stroke_width=max(1, round(height / 12)),
        stroke_fill=(0, 0, 0, 110),
    )
    return Image.alpha_composite(image.convert("RGBA"), layer).convert(image.mode)
