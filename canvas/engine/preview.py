"""Turns latents into small preview images at little cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from PIL.Image import Image

from canvas.engine.latent_colors import latent_colors, to_rgb

if TYPE_CHECKING:
    import torch

# RGB (-1 to 1) of each of the four scaled latent channels of Stable Diffusion 1, from the
# Hugging Face forum, "Decoding latents to RGB without upscaling".
SD1_FACTORS = ((0.298, 0.207, 0.208), (0.187, 0.286, 0.173), (-0.158, 0.189, 0.264), (-0.184, -0.271, -0.473))
# RGB (0 to 255) of the unscaled latents of SDXL, from the Hugging Face blog, "Explaining
# the SDXL latent space".
SDXL_FACTORS = ((60, 60, 60), (-60, -5, 10), (25, 15, -5), (-70, -50, -35))
SDXL_OFFSETS = (150, 140, 130)
MAX_DECODED_LATENTS = 16 * 16
PREVIEW_SIDE = 256  # pixels


class Preview:
    """A preview of the first latents of a batch, (1, C, H, W), copied from the GPU asynchronously.

    AutoencoderTiny decodes small latents. Otherwise the four channels of Stable Diffusion are
    converted to RGB linearly, and `raw` latents, as the VAE encodes them, with `latent_colors`.
    Of unknown latents the first three channels are shown as RGB.
    """

    def __init__(self, latents: torch.Tensor, pipeline: Any, *, raw: bool = False) -> None:
        import torch

        self._pipeline = pipeline
        self._colors = latent_colors(pipeline.vae) if raw else None
        self._is_decoded = not raw and _has_fast_decoder(latents, pipeline)
        with torch.inference_mode():
            latents = latents[:1].detach()
            values = (_decode(latents, pipeline) if self._is_decoded else latents)[0].float()
            self._values = torch.empty(values.shape, pin_memory=values.is_cuda)
            self._values.copy_(values, non_blocking=values.is_cuda)
        self._copied = torch.cuda.Event() if values.is_cuda else None
        if self._copied:
            self._copied.record()

    def is_ready(self) -> bool:
        """Whether `image` returns without waiting for the GPU."""
        return self._copied is None or self._copied.query()

    def image(self) -> Image:
        """The preview; small ones are enlarged to PREVIEW_SIDE pixels."""
        import torch

        if self._copied:
            self._copied.synchronize()
        with torch.inference_mode():
            if self._is_decoded:
                return _to_pil(self._values * 127.5 + 127.5)
            if self._colors is not None:
                return _to_pil(to_rgb(self._values, self._colors) * 127.5 + 127.5)
            return _latents_to_rgb(self._values, self._pipeline)


def predict_original_sample(
    sample: torch.Tensor, model_output: torch.Tensor, timestep: float, scheduler: Any
) -> torch.Tensor:
    """The clean latents that the UNet predicts for its scaled input `sample`.

    Equation 12 of DDIM (arXiv 2010.02502) for epsilon, appendix D of arXiv 2202.00512 for v.
    """
    alphas = scheduler.alphas_cumprod
    # The timesteps of Karras schedules are fractional; rounding is accurate enough here.
    alpha = float(alphas[min(max(round(timestep), 0), len(alphas) - 1)])
    alpha = max(alpha, 1e-4)
    prediction_type = scheduler.config.get("prediction_type", "epsilon")
    if prediction_type == "v_prediction":
        return alpha**0.5 * sample - (1 - alpha) ** 0.5 * model_output
    if prediction_type == "sample":
        return model_output
    return (sample - (1 - alpha) ** 0.5 * model_output) / alpha**0.5


def predict_from_steps(previous: torch.Tensor | None, latents: torch.Tensor, scheduler: Any) -> torch.Tensor:
    """The clean latents that the last step predicts; the latents themselves where it is unknown.

    A step of Euler's method moves along the predicted direction, from one sigma to the next
    (flow matching, arXiv 2210.02747), so two steps give the prediction in any layout of latents.
    """
    outputs = getattr(scheduler, "model_outputs", None)
    if outputs and outputs[-1] is not None and outputs[-1].shape == latents.shape:
        prediction: torch.Tensor = outputs[-1]  # DPM-Solver++ keeps its predictions of clean latents
        return prediction
    sigmas, index = getattr(scheduler, "sigmas", None), getattr(scheduler, "step_index", None)
    if previous is None or sigmas is None or not index or index >= len(sigmas):
        return latents
    before, after = sigmas[index - 1].float().to(latents.device), sigmas[index].float().to(latents.device)
    direction = (latents.float() - previous.float()) / (after - before)
    return latents.float() - after * direction


def _has_fast_decoder(latents: torch.Tensor, pipeline: Any) -> bool:
    from diffusers import AutoencoderTiny

    small = latents.shape[-1] * latents.shape[-2] <= MAX_DECODED_LATENTS
    return small and isinstance(getattr(pipeline, "vae", None), AutoencoderTiny)


def _decode(latents: torch.Tensor, pipeline: Any) -> torch.Tensor:
    vae = pipeline.vae
    scaled = latents.to(vae.device, vae.dtype) / vae.config.scaling_factor
    pixels: torch.Tensor = vae.decode(scaled, return_dict=False)[0]
    return pixels


def _latents_to_rgb(latents: torch.Tensor, pipeline: Any) -> Image:
    import torch

    if latents.shape[0] != 4:
        maximum = latents[:3].abs().amax().clamp(min=1e-6)
        return _to_pil(latents[:3].expand(3, -1, -1) / maximum * 127.5 + 127.5)
    if "XL" in type(pipeline).__name__:
        unscaled = latents / pipeline.vae.config.scaling_factor
        rgb = torch.einsum("chw,cr->rhw", unscaled, torch.tensor(SDXL_FACTORS, dtype=torch.float32))
        return _to_pil(rgb + torch.tensor(SDXL_OFFSETS).view(3, 1, 1))
    rgb = torch.einsum("chw,cr->rhw", latents, torch.tensor(SD1_FACTORS))
    return _to_pil(rgb * 127.5 + 127.5)


def _to_pil(pixels: torch.Tensor) -> Image:
    """The PIL image of (3, H, W) values from 0 to 255, enlarged to PREVIEW_SIDE."""
    import torch
    from PIL import Image

    pixels = torch.nan_to_num(pixels).clamp(0, 255).to(torch.uint8)
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    factor = PREVIEW_SIDE / max(image.size)
    if factor <= 1:
        return image
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.BICUBIC)
