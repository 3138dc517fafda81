"""A guard around the decoder of a pipeline: no image from NaN, float32 where 16 bits overflow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from canvas.errors import GenerationFailed, LazyMessage

if TYPE_CHECKING:
    import torch

FLOAT32_NOTE = "decoded in float32, because half precision gave an empty image"


@contextmanager
def guarded_decoding(vae: Any) -> Iterator[list[str]]:
    """Check what `vae.decode` gets and returns inside the block; yields the list of notes.

    Raises GenerationFailed inside the pipeline if latents or pixels are not finite.
    """
    import torch

    notes: list[str] = []
    original = vae.decode

    def decode(latents: torch.Tensor, *args: Any, **options: Any) -> Any:
        check_latents(latents)
        decoded = original(latents, *args, **options)
        dtype = vae.dtype
        if dtype != torch.float32 and is_empty(_pixels(decoded)):
            vae.to(dtype=torch.float32)
            try:
                decoded = original(latents.float(), *args, **options)
            finally:
                vae.to(dtype=dtype)
            notes.append(FLOAT32_NOTE)
        check_pixels(_pixels(decoded))
        return decoded

    vae.decode = decode
    try:
        yield notes
    finally:
        del vae.decode


def check_latents(latents: torch.Tensor) -> None:
    """Raise GenerationFailed if latents are not finite."""
    if not latents.isfinite().all():
        message = LazyMessage(
            "The latents contain NaN or infinity. Try another scheduler or a lower guidance; if "
            "every image fails, start with CANVAS_DTYPE=float32."
        )
        raise GenerationFailed(message)


def check_pixels(pixels: torch.Tensor) -> None:
    """Raise GenerationFailed if decoded pixels are not finite."""
    if not pixels.isfinite().all():
        message = LazyMessage(
            "The decoded pixels contain NaN or infinity, even in float32. Try another seed or scheduler."
        )
        raise GenerationFailed(message)


def is_empty(pixels: torch.Tensor) -> bool:
    """Whether any pixel is not finite, or all are black."""
    return not bool(pixels.isfinite().all()) or bool((pixels <= -254 / 255).all())


def _pixels(decoded: Any) -> torch.Tensor:
    pixels: torch.Tensor = decoded[0] if isinstance(decoded, tuple) else decoded.sample
    return pixels
