"""Inpainting with any model: after each step what is not masked is put back, equally noisy."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from PIL import Image

OnStepEnd = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]


class KeptLatents:
    """A `callback_on_step_end` for pipelines that redraw pictures but know no masks.

    So does diffusers for UNets of four channels ("Blended Latent Diffusion", arXiv
    2206.02779); others, such as the built-in model's sixteen, it refuses.
    """

    def __init__(self, image: Image.Image, mask: Image.Image, seed: int, then: OnStepEnd) -> None:
        self._image = image
        self._mask_image = mask
        self._seed = seed
        self._then = then
        self._kept: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def __call__(
        self, pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]
    ) -> dict[str, Any]:
        """The latents with what is kept put back, and whatever the next callback changes."""
        changed = self._then(pipeline, step, timestep, tensors)
        latents = changed.get("latents", tensors["latents"])
        if self._kept is None:
            self._kept = self._encode(pipeline, latents)
        clean, noise, mask = self._kept
        timesteps = pipeline.scheduler.timesteps
        following = len(timesteps) - pipeline.num_timesteps + step + 1
        kept = clean
        if following < len(timesteps):
            kept = pipeline.scheduler.add_noise(clean, noise, timesteps[following : following + 1])
        return {**changed, "latents": (kept * (1 - mask) + latents * mask).to(latents.dtype)}

    def _encode(
        self, pipeline: Any, latents: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        import torch
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import (
            retrieve_latents,
        )

        vae = pipeline.vae
        pixels = pipeline.image_processor.preprocess(self._image).to(vae.device, vae.dtype)
        clean = retrieve_latents(vae.encode(pixels), sample_mode="argmax").float()
        clean = clean * vae.config.scaling_factor
        generator = torch.Generator("cpu").manual_seed(self._seed)
        noise = torch.randn(clean.shape, generator=generator).to(clean.device)
        # A latent is redrawn when any of its pixels is masked.
        small = torch.nn.functional.adaptive_max_pool2d(_tensor(self._mask_image), clean.shape[-2:])
        return clean.to(latents.device), noise.to(latents.device), small.to(latents.device)


def _tensor(mask: Image.Image) -> torch.Tensor:
    import numpy as np
    import torch

    return torch.from_numpy(np.array(mask, dtype=np.float32))[None, None] / 255
