"""Pictures that come with a request: base64 and files become names that a request takes."""

from __future__ import annotations

import base64
import binascii
import io
from pathlib import Path
from typing import TYPE_CHECKING

from anyio.to_thread import run_sync
from PIL import Image, ImageChops

from canvas.errors import InvalidInput

if TYPE_CHECKING:
    from canvas.jobs import Job
    from canvas.request import GenerationRequest
    from canvas.studio import Studio

ALLOWED = "a picture file (PNG, JPEG or WebP)"


def read_base64(text: str, field: str) -> bytes:
    """The bytes of base64, with or without a `data:` prefix; raises InvalidInput."""
    try:
        return base64.b64decode(text.partition("base64,")[2] or text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInput(field, text, f"{ALLOWED} in base64") from error


async def hand_in(studio: Studio, source: bytes | Path | Image.Image, field: str) -> str:
    """Keep a picture; its name is what a request's `image` or `mask_image` takes."""
    picture = await run_sync(studio.shelf.hand_in, source, field)
    return picture.name


async def submit(studio: Studio, request: GenerationRequest, owner: str, channel: str) -> Job:
    """`studio.submit` for requests with pictures, which takes too long for the event loop."""
    return await run_sync(studio.submit, request, owner, channel)


def mask_of_holes(content: bytes) -> Image.Image:
    """White where a picture is transparent: how OpenAI's clients mark what is to be redrawn."""
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "WEBP")) as picture:
            alpha = picture.convert("RGBA").getchannel("A")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InvalidInput("mask", f"{len(content)} bytes", "a PNG with transparency") from error
    return ImageChops.invert(alpha)
