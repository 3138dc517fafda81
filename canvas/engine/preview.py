"""Latents to a small picture at next to no cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

# RGB (-1 to 1) of each of the four scaled latent channels of Stable Diffusion 1, fitted by
# the users of the Hugging Face forum, "Decoding latents to RGB without upscaling".
SD1_FACTORS = (
    (0.298, 0.207, 0.208),
    (0.187, 0.286, 0.173),
    (-0.158, 0.189, 0.264),
    (-0.184, -0.271, -0.473),
)
# RGB (0 to 255) of the unscaled latents of SDXL, from the Hugging Face blog, "Explaining
# the SDXL latent space".
XL_FACTORS = ((60, 60, 60), (-60, -5, 10), (25, 15, -5), (-70, -50, -35))
XL_OFFSETS = (150, 140, 130)
SMALL_ENOUGH_TO_DECODE = 16 * 16
SIDE = 256


class Preview:
    """A picture from the first latents of a batch, (1, C, H, W), on its way to the host.

    A tiny decoder decodes small latents outright; the four channels of Stable Diffusion
    are mixed linearly to colours; of any other latents the first three are the colours.
    A GPU goes on meanwhile.
    """

    def __init__(self, latents: torch.Tensor, pipeline: Any) -> None:
        import torch

        self._pipeline = pipeline
        self._decodes = _has_fast_decoder(latents, pipeline)
        with torch.inference_mode():
            latents = latents[:1].detach()
            found = (_decoded(latents, pipeline) if self._decodes else latents)[0].float()
            self._values = torch.empty(found.shape, pin_memory=found.is_cuda)
            self._values.copy_(found, non_blocking=found.is_cuda)
        self._arrived = torch.cuda.Event() if found.is_cuda else None
        if self._arrived:
            self._arrived.record()

    def is_ready(self) -> bool:
        """Whether the picture can be had without waiting."""
        return self._arrived is None or self._arrived.query()

    def image(self) -> Image:
        """A picture of about SIDE pixels."""
        import torch

        if self._arrived:
            self._arrived.synchronize()
        with torch.inference_mode():
            if self._decodes:
                return _to_pil(self._values * 127.5 + 127.5)
            return _latents_to_rgb(self._values, self._pipeline)


def predicted_latents(
    noisy: torch.Tensor, output: torch.Tensor, timestep: float, scheduler: Any
) -> torch.Tensor:
    """The clean latents that a UNet sees in `noisy`, its scaled input at that timestep.

    Eq. 12 of DDIM (arXiv 2010.02502) for epsilon, appendix D of arXiv 2202.00512 for v.
    """
    alphas = scheduler.alphas_cumprod
    # Karras schedules lie between the whole timesteps, which matters little here.
    alpha = float(alphas[min(max(round(timestep), 0), len(alphas) - 1)])
    alpha = max(alpha, 1e-4)
    kind = scheduler.config.get("prediction_type", "epsilon")
    if kind == "v_prediction":
        return alpha**0.5 * noisy - (1 - alpha) ** 0.5 * output
    if kind == "sample":
        return output
    return (noisy - (1 - alpha) ** 0.5 * output) / alpha**0.5


def _has_fast_decoder(latents: torch.Tensor, pipeline: Any) -> bool:
    from diffusers import AutoencoderTiny

    small = latents.shape[-1] * latents.shape[-2] <= SMALL_ENOUGH_TO_DECODE
    return small and isinstance(getattr(pipeline, "vae", None), AutoencoderTiny)


def _decoded(latents: torch.Tensor, pipeline: Any) -> torch.Tensor:
    vae = pipeline.vae
    scaled = latents.to(vae.device, vae.dtype) / vae.config.scaling_factor
    pixels: torch.Tensor = vae.decode(scaled, return_dict=False)[0]
    return pixels


def _latents_to_rgb(latents: torch.Tensor, pipeline: Any) -> Image:
    import torch

    if latents.shape[0] != 4:
        spread = latents[:3].abs().amax().clamp(min=1e-6)
        return _to_pil(latents[:3].expand(3, -1, -1) / spread * 127.5 + 127.5)
    if "XL" in type(pipeline).__name__:
        plain = latents / pipeline.vae.config.scaling_factor
        mixed = torch.einsum("chw,cr->rhw", plain, torch.tensor(XL_FACTORS, dtype=torch.float32))
        return _to_pil(mixed + torch.tensor(XL_OFFSETS).view(3, 1, 1))
    mixed = torch.einsum("chw,cr->rhw", latents, torch.tensor(SD1_FACTORS))
    return _to_pil(mixed * 127.5 + 127.5)


def _to_pil(pixels: torch.Tensor) -> Image:
    """A PIL picture of (3, H, W) values from 0 to 255, enlarged to about SIDE."""
    import torch
    from PIL import Image

    pixels = torch.nan_to_num(pixels).clamp(0, 255).to(torch.uint8)
    picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    factor = SIDE / max(picture.size)
    if factor <= 1:
        return picture
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(size, Image.Resampling.BICUBIC)
