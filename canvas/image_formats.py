"""The image file formats of results, base64 and data URLs."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from canvas.errors import InvalidInput


class ImageFormat(NamedTuple):
    """MIME type and file suffixes of a format, the suffix of new files first."""

    mime_type: str
    suffixes: tuple[str, ...]

    @property
    def suffix(self) -> str:
        """The suffix of new files."""
        return self.suffixes[0]


IMAGE_FORMATS: Mapping[str, ImageFormat] = MappingProxyType(
    {
        "png": ImageFormat("image/png", (".png",)),
        "jpeg": ImageFormat("image/jpeg", (".jpg", ".jpeg")),
        "webp": ImageFormat("image/webp", (".webp",)),
    }
)
IMAGE_SUFFIXES = tuple(suffix for known in IMAGE_FORMATS.values() for suffix in known.suffixes)


def encode_base64(content: bytes) -> str:
    """The bytes as base64 text."""
    return base64.b64encode(content).decode("ascii")


def decode_base64(text: str, field: str) -> bytes:
    """The bytes of base64 text, with or without a `data:…;base64,` prefix.

    In lines, without padding and in the URL-safe alphabet, too. Raises InvalidInput naming the
    field.
    """
    encoded = "".join((text.partition("base64,")[2] or text).split())
    encoded = encoded.replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInput(field, text, "an image file (PNG, JPEG or WebP) in base64") from error


def data_url(content: bytes, image_format: str) -> str:
    """A `data:` URL of an image file."""
    return f"data:{IMAGE_FORMATS[image_format].mime_type};base64,{encode_base64(content)}"
