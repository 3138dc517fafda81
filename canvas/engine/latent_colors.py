"""Latents of any layout as the VAE encodes them, and their colours, fitted to the VAE."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

ATTRIBUTE = "_latent_colors"
CELL = 2  # latents on a side of one colour of the chart
RIDGE = 1e-2


def spatial_latents(latents: torch.Tensor, pipeline: Any, size: tuple[int, int]) -> torch.Tensor | None:
    """The latents as (1, C, H, W) without the VAE's normalisation; None for an unknown layout.

    FLUX, FLUX.2, Qwen-Image and Chroma pack 2 x 2 latents into one token, (B, HW / 4, 4 C).
    """
    vae = getattr(pipeline, "vae", None)
    if vae is None:
        return None
    latents = latents[:1].float()
    if latents.ndim == 3:
        unpacked = _unpack(latents, vae, size)
        if unpacked is None:
            return None
        latents = unpacked
    if latents.ndim == 5:
        latents = latents[:, :, 0]
    return _unnormalize(latents, vae) if latents.ndim == 4 else None


def latent_colors(vae: Any) -> torch.Tensor | None:
    """(C + 1, 3): RGB from -1 to 1 of the latents and of a constant, by least squares.

    The VAE encodes a chart of 64 colours. None if it has no encoder, or is not on one device.
    """
    if ATTRIBUTE not in vars(vae):
        vars(vae)[ATTRIBUTE] = _fit(vae) if _can_encode(vae) else None
    colors: torch.Tensor | None = vars(vae)[ATTRIBUTE]
    return colors


def to_rgb(latents: torch.Tensor, colors: torch.Tensor) -> torch.Tensor:
    """(3, H, W) from -1 to 1 of latents (C, H, W)."""
    import torch

    weights = colors.to(latents.device)
    return torch.einsum("chw,cr->rhw", latents, weights[:-1]) + weights[-1].view(3, 1, 1)


def _unpack(latents: torch.Tensor, vae: Any, size: tuple[int, int]) -> torch.Tensor | None:
    tokens, channels = latents.shape[1:]
    # The tokens of a side, from the aspect ratio
    width = round(math.sqrt(tokens * size[0] / size[1]))
    height = tokens // max(1, width)
    if width * height != tokens or channels % 4:
        return None
    if (norm := getattr(vae, "bn", None)) is not None:  # FLUX.2 normalises the packed channels
        deviation = (norm.running_var + vae.config.batch_norm_eps).sqrt()
        latents = latents * deviation.to(latents) + norm.running_mean.to(latents)
    grid = latents.view(1, height, width, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return grid.reshape(1, channels // 4, 2 * height, 2 * width)


def _unnormalize(latents: torch.Tensor, vae: Any) -> torch.Tensor:
    config = vae.config
    if getattr(vae, "bn", None) is not None:
        return latents
    mean, deviation = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and deviation is not None:
        mean, deviation = (latents.new_tensor(values).view(1, -1, 1, 1) for values in (mean, deviation))
        return latents * deviation + mean
    return latents / (getattr(config, "scaling_factor", None) or 1) + (getattr(config, "shift_factor", None) or 0)


def _can_encode(vae: Any) -> bool:
    return getattr(vae, "encoder", None) is not None and not hasattr(vae, "_hf_hook")


def _fit(vae: Any) -> torch.Tensor:
    import torch

    parameter = next(vae.parameters())
    levels = torch.linspace(-1, 1, 4)
    chart = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 8, 8)
    scale = _pixels_per_latent(vae)
    pixels = torch.nn.functional.interpolate(chart, scale_factor=CELL * scale, mode="nearest")
    is_video = any(weights.ndim == 5 for weights in vae.parameters())
    pixels = pixels.to(parameter)
    with torch.inference_mode():
        encoded = vae.encode(pixels[:, :, None] if is_video else pixels)
    if hasattr(encoded, "latent_dist"):
        latents = encoded.latent_dist.mode()
    else:
        latents = encoded.latent if hasattr(encoded, "latent") else encoded.latents
    latents = latents[0, :, 0] if is_video else latents[0]
    latents = latents.float().cpu()
    colors = torch.nn.functional.interpolate(chart, size=latents.shape[-2:], mode="nearest")[0].flatten(1).T
    samples = torch.cat([latents.flatten(1).T, torch.ones(colors.shape[0], 1)], dim=1)
    gram = samples.T @ samples / len(samples)
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram))
    return torch.linalg.solve(gram, samples.T @ colors / len(samples))


def _pixels_per_latent(vae: Any) -> int:
    if ratio := getattr(vae, "spatial_compression_ratio", None):
        return int(ratio)
    channels = getattr(vae.config, "block_out_channels", None) or vae.config.encoder_block_out_channels
    return int(2 ** (len(channels) - 1))
