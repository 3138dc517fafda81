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
# Pillow reads the pixels of such PNGs as 8 bits, but not the colour that stands for transparency.
TRANSPARENCY_SCALES = {"L;2": 85.0, "L;4": 17.0, "RGB;16B": 1 / 256}


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
            _scale_transparency(image)
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

    No pixel changes if the image has that size, or exceeds it by less than 8 pixels (in the
    mode `crop`): to these, sizes were once rounded.
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


def _scale_transparency(image: Image.Image) -> None:
    """Let the transparent colour of a PNG be one of the pixels that Pillow will decode."""
    color = image.info.get("transparency")
    tiles = getattr(image, "tile", None)
    if image.format != "PNG" or not tiles or not isinstance(color, int | tuple):
        return
    scale = TRANSPARENCY_SCALES.get(str(tiles[0].args), 1.0)
    scaled = tuple(int(value * scale) for value in (color if isinstance(color, tuple) else (color,)))
    image.info["transparency"] = scaled if isinstance(color, tuple) else scaled[0]


def _normalize(image: Image.Image) -> DecodedImage:
    notes: list[str] = []
    if (frames := getattr(image, "n_frames", 1)) > 1 and image.format != "MPO":
        notes.append(f"Only the first of {frames} frames is used.")
    image_format, image = image.format, ImageOps.exif_transpose(image)
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    if image.mode.startswith(("I", "F")):
        image = _to_8_bits(image, image_format)
        notes.append("Reduced to 8 bits per channel.")
    if image.mode == "CMYK":
        notes.append("Converted from CMYK to RGB.")
    result = _to_srgb(image, notes)
    if alpha is not None:
        result.putalpha(alpha)
    return DecodedImage(result, tuple(notes))


def _to_8_bits(image: Image.Image, image_format: str | None) -> Image.Image:
    """Convert 16-bit integers or floats to 8 bits.

    Pillow gives the values of PNG and PPM up to 65535. Floats have no fixed range, nor have
    integers of 32 bits in TIFF: the largest value decides.
    """
    _, maximum = image.getextrema()
    assert isinstance(maximum, int | float)  # noqa: S101 - one band has one pair of extremes
    white: float = 65535
    if image.mode == "F":
        white = 1 if maximum <= 1 else 255
    elif image.mode == "I" and image_format == "TIFF":
        white = max(white, maximum)
    return image.convert("F").point(lambda value: value * (255 / white) + 0.5).convert("L")


def _to_srgb(image: Image.Image, notes: list[str]) -> Image.Image:
    """The colours of an image as RGB, after its colour profile if that can be read."""
    profile = image.info.get("icc_profile")
    source = image
    if image.mode in ("LA", "La", "1"):
        source = image.convert("L")
    elif image.mode not in ("L", "CMYK"):
        source = (image.convert("RGBA") if image.has_transparency_data else image).convert("RGB")
    if profile:
        try:
            converted = ImageCms.profileToProfile(
                source, ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
        except (ImageCms.PyCMSError, OSError):
            notes.append("Ignored a colour profile that cannot be read.")
        else:
            assert converted is not None  # noqa: S101 - it is None only for in-place conversion
            source = converted
    result = source.convert("RGB")
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
