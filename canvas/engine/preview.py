"""Turns latents into small preview images at little cost."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from PIL.Image import Image

from canvas.models.capabilities import vae_scale

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
COLORS_ATTRIBUTE = "_latent_colors"
CHART_CELL = 2  # latents on a side of one colour of the chart
CHART_RIDGE = 1e-2  # of the least squares


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
                rgb = torch.einsum("chw,cr->rhw", self._values, self._colors[:-1]) + self._colors[-1].view(3, 1, 1)
                return _to_pil(rgb * 127.5 + 127.5)
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
    if COLORS_ATTRIBUTE not in vars(vae):
        can_encode = getattr(vae, "encoder", None) is not None and not hasattr(vae, "_hf_hook")
        vars(vae)[COLORS_ATTRIBUTE] = _fit_colors(vae) if can_encode else None
    colors: torch.Tensor | None = vars(vae)[COLORS_ATTRIBUTE]
    return colors


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


def _fit_colors(vae: Any) -> torch.Tensor:
    import torch

    parameter = next(vae.parameters())
    levels = torch.linspace(-1, 1, 4)
    chart = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 8, 8)
    pixels = torch.nn.functional.interpolate(chart, scale_factor=CHART_CELL * vae_scale(vae.config), mode="nearest")
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
    gram += CHART_RIDGE * gram.diagonal().mean() * torch.eye(len(gram))
    return torch.linalg.solve(gram, samples.T @ colors / len(samples))
