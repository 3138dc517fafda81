"""Prepares the input images of a request for the pipeline, and composites its output."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from PIL import Image

from canvas.catalog import ModelSpec
from canvas.engine import masks
from canvas.engine.image_io import flatten_alpha, resize_to_fit
from canvas.errors import InvalidInput, LazyMessage
from canvas.models.capabilities import capabilities_of
from canvas.request import MAX_EDIT_SIDE, MIN_EDIT_SIDE, GenerationRequest

if TYPE_CHECKING:
    import torch

InputImages = Mapping[str, Image.Image]  # by field name: image, mask_image
OnStepEnd = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class PreparedEdit:
    """What the pipeline gets, and how its output is composited with the original.

    `original` has the size of the result; the model draws its `area`, and there only what the
    mask marks, if there is one.
    """

    original: Image.Image
    area: masks.WorkArea
    mask: Image.Image | None = None  # of the size of the original
    mask_blur: int = 0

    @cached_property
    def image(self) -> Image.Image:
        """The area at the size at which the pipeline works."""
        return self.area.crop(self.original)

    def pipeline_args(self, request: GenerationRequest, *, rounds_skipped: bool = False) -> dict[str, Any]:
        """The arguments for the task; `rounds_skipped`: see below."""
        num_inference_steps, denoising_steps = request.step_counts
        # Stable Diffusion's pipelines round the computed steps down, those of flow models the
        # skipped ones (`rounds_skipped`). 1 means pure noise.
        half = -0.5 if rounds_skipped else 0.5
        strength = min(1.0, (denoising_steps + half) / num_inference_steps)
        if denoising_steps == num_inference_steps:
            strength = 1.0
        arguments = {
            "image": self.image,
            "strength": strength,
            "num_inference_steps": num_inference_steps,
            "width": self.image.width,
            "height": self.image.height,
        }
        if self.mask is not None:
            arguments["mask_image"] = self._pipeline_mask
        return arguments

    @property
    def _pipeline_mask(self) -> Image.Image:
        assert self.mask is not None  # noqa: S101 - used only with a mask
        return self.area.crop_mask(masks.binarize(self.mask))

    def on_step_end(self, pipeline: Any, seed: int, next_callback: OnStepEnd) -> OnStepEnd:
        """The callback, wrapped in latent blending for a pipeline without mask support."""
        if self.mask is None or "mask_image" in inspect.signature(pipeline.__call__).parameters:
            return next_callback
        return BlendedLatentCallback(self.image, self._pipeline_mask, seed, next_callback)

    def composite(self, output: Image.Image) -> Image.Image:
        """The pipeline's output inside the mask, the original's own pixels outside."""
        changed = self.area.paste(output, self.original)
        if self.mask is None:
            return changed
        return masks.composite(self.original, changed, self.mask, self.mask_blur)


class BlendedLatentCallback:
    """A `callback_on_step_end` that adds masks to an image-to-image pipeline.

    Diffusers blends latents in the same way for UNets with four channels ("Blended Latent
    Diffusion", arXiv 2206.02779), but rejects others, such as the built-in model's sixteen.
    """

    def __init__(self, image: Image.Image, mask: Image.Image, seed: int, next_callback: OnStepEnd) -> None:
        self._image = image
        self._mask = mask
        self._seed = seed
        self._next_callback = next_callback
        self._encoded: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def __call__(self, pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """Put the original's latents, at this step's noise level, back outside the mask."""
        changed = self._next_callback(pipeline, step, timestep, tensors)
        latents = changed.get("latents", tensors["latents"])
        if self._encoded is None:
            self._encoded = self._encode(pipeline, latents)
        original, noise, mask = self._encoded
        timesteps = pipeline.scheduler.timesteps
        index = len(timesteps) - pipeline.num_timesteps + step + 1
        if index < len(timesteps):
            next_timestep = timesteps[index : index + 1]
            original = pipeline.scheduler.add_noise(original, noise, next_timestep)
        return {**changed, "latents": (original * (1 - mask) + latents * mask).to(latents.dtype)}

    def _encode(self, pipeline: Any, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The original's latents, noise of their shape, and the mask at their size."""
        import numpy as np
        import torch
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import retrieve_latents

        vae = pipeline.vae
        pixels = pipeline.image_processor.preprocess(self._image).to(vae.device, vae.dtype)
        original = retrieve_latents(vae.encode(pixels), sample_mode="argmax").float()
        original = original * vae.config.scaling_factor
        noise = torch.randn(original.shape, generator=torch.Generator("cpu").manual_seed(self._seed))
        mask = torch.from_numpy(np.array(self._mask, dtype=np.float32))[None, None] / 255
        # A latent is redrawn if any of its pixels is masked.
        mask = torch.nn.functional.adaptive_max_pool2d(mask, original.shape[-2:])
        return original.to(latents.device), noise.to(latents.device), mask.to(latents.device)


def pipeline_task(pipeline: Any, request: GenerationRequest) -> str:
    """The task for which `PipelineCache` must provide the pipeline of a request."""
    if request.task == "upscale":
        return "image_to_image"
    blends = "inpaint" not in capabilities_of(pipeline).pipelines and hasattr(pipeline, "unet")
    if request.task == "inpaint" and (blends or _in_channels(pipeline) not in (4, 9)):
        return "image_to_image"  # diffusers' inpainting pipelines reject other UNets
    return request.task


def check_task_supported(pipeline: Any, request: GenerationRequest, spec: ModelSpec) -> None:
    """Raise InvalidInput if the model does not support the task."""
    if _in_channels(pipeline) == 9 and request.task != "inpaint":
        message = LazyMessage("The model {model} supports inpainting only.", model=spec.key)
        raise InvalidInput("task", request.task, message=message)


def _in_channels(pipeline: Any) -> int:
    config = getattr(getattr(pipeline, "unet", None), "config", None)
    return getattr(config, "in_channels", 4)


def prepare_inputs(
    request: GenerationRequest, images: InputImages, spec: ModelSpec, step: int = 8
) -> PreparedEdit | None:
    """Fit the input images to a resolved request; None for text to image.

    `step`: see `Capabilities.size_step`. Raises InvalidInput for an unusable mask, or margins that
    leave no room for the image.
    """
    if request.task == "text_to_image":
        return None
    left, top, right, bottom = _outpaint_margins(request)
    width, height = request.size
    inner = (width - left - right, height - top - bottom)
    if min(inner) < MIN_EDIT_SIDE:
        text = "The outpaint margins leave no room for the image in {size}."
        raise InvalidInput("outpaint", request.outpaint, message=LazyMessage(text, size=f"{width}x{height}"))
    image = flatten_alpha(images["image"], request.fill_color)
    original = resize_to_fit(image, inner, request.resize_mode, request.fill_color)
    if request.task != "inpaint":
        limits = spec if request.task == "image_to_image" else None  # upscaling works in tiles
        return PreparedEdit(original, masks.whole_area(inner, step, limits))
    original, mask = masks.outpaint_canvas(original, (left, top, right, bottom))
    if "mask_image" in images:
        painted = masks.to_mask(images["mask_image"])
        masks.check_mask(painted, images["image"].size)
        mask.paste(resize_to_fit(painted, inner, request.resize_mode, "#000000"), (left, top))
    choose_area = masks.masked_area if request.only_masked else masks.mask_area
    area = choose_area(original.size, masks.mask_bbox(mask), step, spec)
    return PreparedEdit(original, area, mask, request.mask_blur)


def result_size(request: GenerationRequest, size: tuple[int, int]) -> tuple[int, int]:
    """The default width and height of the result for an input image of that size.

    Raises InvalidInput if the outpaint margins would make it too large.
    """
    if request.task == "upscale":
        return size[0] * request.scale, size[1] * request.scale
    left, top, right, bottom = _outpaint_margins(request)
    width, height = size[0] + left + right, size[1] + top + bottom
    if max(width, height) > MAX_EDIT_SIDE:
        message = LazyMessage(
            "The result would have {size} pixels, but at most {allowed} on each side are allowed. "
            "Add fewer pixels or use a smaller image.",
            size=f"{width}x{height}",
            allowed=MAX_EDIT_SIDE,
        )
        raise InvalidInput("outpaint", request.outpaint, message=message)
    return width, height


def _outpaint_margins(request: GenerationRequest) -> masks.Margins:
    if request.task != "inpaint":
        return 0, 0, 0, 0
    left, top, right, bottom = request.outpaint
    return left, top, right, bottom
