"""Latents to the finished picture, made again in float32 when half precision breaks it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from canvas.errors import GenerationFailed

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

NOTE = "decoded in float32, because half precision gave an empty picture"


def decode(latents: torch.Tensor, pipeline: Any) -> tuple[Image, str]:
    """The picture of latents (1, C, H, W), and a note if it had to be decoded a second time."""
    import torch

    if not latents.isfinite().all():
        raise GenerationFailed(
            "The model's numbers overflowed. Try another scheduler or lower guidance; if every "
            "picture fails, start with CANVAS_DTYPE=float32."
        )
    vae = pipeline.vae
    dtype = vae.dtype
    # Every AutoencoderKL says force_upcast; only SDXL's pipelines mean it, and have upcast_vae.
    upcast = hasattr(pipeline, "upcast_vae") and getattr(vae.config, "force_upcast", False)
    if upcast and dtype == torch.float16:
        return _picture(_in_float32(latents, vae, dtype), pipeline), ""
    pixels = _pixels(latents, vae, dtype)
    if dtype == torch.float32 or not _is_empty(pixels):
        return _picture(pixels, pipeline), ""
    return _picture(_in_float32(latents, vae, dtype), pipeline), NOTE


def _pixels(latents: torch.Tensor, vae: Any, dtype: torch.dtype) -> torch.Tensor:
    """Pixels from -1 to 1."""
    config = vae.config
    unscaled = latents / config.scaling_factor
    mean, spread = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and spread is not None:
        unscaled = unscaled * unscaled.new_tensor(spread).view(1, -1, 1, 1)
        unscaled = unscaled + unscaled.new_tensor(mean).view(1, -1, 1, 1)
    pixels: torch.Tensor = vae.decode(unscaled.to(dtype), return_dict=False)[0]
    return pixels


def _in_float32(latents: torch.Tensor, vae: Any, dtype: torch.dtype) -> torch.Tensor:
    import torch

    vae.to(dtype=torch.float32)
    try:
        return _pixels(latents.float(), vae, torch.float32)
    finally:
        vae.to(dtype=dtype)


def _is_empty(pixels: torch.Tensor) -> bool:
    """Not a number somewhere, or black everywhere."""
    return not bool(pixels.isfinite().all()) or bool((pixels <= -254 / 255).all())


def _picture(pixels: torch.Tensor, pipeline: Any) -> Image:
    if not pixels.isfinite().all():
        raise GenerationFailed(
            "The decoder's numbers overflowed even in float32. Try another seed or scheduler."
        )
    image: Image = pipeline.image_processor.postprocess(pixels.float(), output_type="pil")[0]
    return image
