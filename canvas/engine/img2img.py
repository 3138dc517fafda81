"""What a task does with pictures: what the model sees of them, and what becomes of its answer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from PIL import Image

from canvas.catalog import ModelSpec
from canvas.engine import masks
from canvas.engine.image_io import flatten_alpha, resize_to_fit
from canvas.engine.masks import Box
from canvas.engine.prompt_weighting import supports_weighting
from canvas.errors import InvalidInput
from canvas.request import GenerationRequest

if TYPE_CHECKING:
    import torch
    from PIL import Image

OnStepEnd = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]


class BlendedLatentCallback:
    """A `callback_on_step_end` for pipelines that redraw pictures but know no masks.

    So does diffusers for UNets of four channels ("Blended Latent Diffusion", arXiv
    2206.02779); others, such as the built-in model's sixteen, it refuses.
    """

    def __init__(
        self, image: Image.Image, mask: Image.Image, seed: int, next_callback: OnStepEnd
    ) -> None:
        self._image = image
        self._mask_image = mask
        self._seed = seed
        self._then = next_callback
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


InputImages = Mapping[str, Image.Image]  # by the request's field: image, mask_image


@dataclass(frozen=True)
class PreparedEdit:
    """A picture at the size at which the model works, and how its answer joins the original.

    `mask` is None where all of it is redrawn. `box` is the part of `original` that the
    model sees.
    """

    image: Image.Image
    original: Image.Image
    box: Box
    mask: Image.Image | None = None  # of the original's size
    feather: int = 0

    def arguments(self, request: GenerationRequest) -> dict[str, Any]:
        """What the pipeline takes beside the words."""
        whole, done = request.step_counts
        given = {
            "image": self.image,
            # Diffusers rounds down, and takes 1 for noise alone.
            "strength": 1.0 if done == whole else (done + 0.5) / whole,
            "num_inference_steps": whole,
            "width": self.image.width,
            "height": self.image.height,
        }
        if self.mask is not None:
            given["mask_image"] = self._small_mask
        return given

    @property
    def _small_mask(self) -> Image.Image:
        assert self.mask is not None  # noqa: S101 - asked for only where there is one
        small = masks.binarize(self.mask).crop(self.box)
        return small.resize(self.image.size, Image.Resampling.NEAREST)

    def on_step_end(self, pipeline: Any, seed: int, then: OnStepEnd) -> OnStepEnd:
        """The callback, with what a pipeline that knows no masks needs to keep the rest."""
        if self.mask is None or "mask_image" in inspect.signature(pipeline.__call__).parameters:
            return then
        return BlendedLatentCallback(self.image, self._small_mask, seed, then)

    def at_size(self, size: tuple[int, int]) -> PreparedEdit:
        """The same with what the model sees at that size."""
        return replace(self, image=_resized(self.image, size))

    def composite(self, drawn: Image.Image) -> Image.Image:
        """The model's answer where it was asked for, the original's own pixels elsewhere."""
        if self.mask is None:
            return _resized(drawn, self.original.size)
        changed = self.original.copy()
        size = (self.box[2] - self.box[0], self.box[3] - self.box[1])
        changed.paste(_resized(drawn, size), self.box[:2])
        return masks.composite(self.original, changed, self.mask, self.feather)


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def pipeline_task(pipeline: Any, request: GenerationRequest) -> str:
    """The pipeline's variant for a request, in the words of the cache: a task."""
    if request.task == "upscale":
        return "image_to_image"
    if request.task == "inpaint" and _channels(pipeline) not in (4, 9):
        return "image_to_image"  # diffusers' own for masks takes no others
    return request.task


def check_task_supported(pipeline: Any, request: GenerationRequest, spec: ModelSpec) -> None:
    """Raise InvalidInput when the model cannot do the task."""
    if _channels(pipeline) == 9 and request.task != "inpaint":
        raise InvalidInput("task", request.task, f"inpaint with {spec.key}, made for that alone")
    if request.prompt_weighting and not supports_weighting(pipeline):
        raise InvalidInput("prompt_weighting", True, f"false with the model {spec.key}")


def _channels(pipeline: Any) -> int:
    config = getattr(getattr(pipeline, "unet", None), "config", None)
    return getattr(config, "in_channels", 4)


def prepare_inputs(
    request: GenerationRequest, pictures: InputImages, spec: ModelSpec
) -> PreparedEdit | None:
    """The edit that a resolved request asks for; None where it starts from words alone."""
    if request.task == "text_to_image":
        return None
    assert request.width and request.height  # noqa: S101 - the request is resolved
    left, top, right, bottom = _sides(request)
    inner = (request.width - left - right, request.height - top - bottom)
    if min(inner) < 8:
        raise InvalidInput("outpaint", request.outpaint, "less than the whole of the new picture")
    picture = flatten_alpha(pictures["image"], request.fill_color)
    original = resize_to_fit(picture, inner, request.resize_mode, request.fill_color)
    if request.task != "inpaint":
        return PreparedEdit(original, original, (0, 0, *inner))
    original, mask = masks.outpaint_canvas(original, (left, top, right, bottom))
    if "mask_image" in pictures:
        painted = masks.to_mask(pictures["mask_image"])
        masks.check_mask(painted, pictures["image"].size)
        mask.paste(resize_to_fit(painted, inner, request.resize_mode, "#000000"), (left, top))
    masks.check_mask(mask, original.size)
    return _inpaint(request, original, mask, spec)


def _inpaint(
    request: GenerationRequest, original: Image.Image, mask: Image.Image, spec: ModelSpec
) -> PreparedEdit:
    if not request.only_masked:
        return PreparedEdit(original, original, (0, 0, *original.size), mask, request.mask_blur)
    box = masks.mask_bbox(mask)
    size = masks.inpaint_size(box, spec.resolution)
    image = original.crop(box).resize(size, Image.Resampling.LANCZOS)
    return PreparedEdit(image, original, box, mask, request.mask_blur)


def output_size(
    request: GenerationRequest, size: tuple[int, int], spec: ModelSpec
) -> tuple[int, int]:
    """The size of the result for a picture of that size, where the request does not say.

    Multiples of 8: a picture is cut by less than that. What the model draws at once is
    kept within its limits; the shape stays.
    """
    width, height = size
    if request.task == "upscale":
        step = 8 // request.scale
        return width // step * step * request.scale, height // step * step * request.scale
    left, top, right, bottom = _sides(request)
    added = (left + right, top + bottom)
    if not request.is_single_pass:
        return width // 8 * 8 + added[0], height // 8 * 8 + added[1]
    room = [spec.max_size - pixels for pixels in added]
    factor = min(1.0, room[0] / width, room[1] / height)
    factor = max(factor, min(spec.min_size / min(size), room[0] / width, room[1] / height))
    smallest = -(-spec.min_size // 8) * 8
    # Sides beyond the limits, of very long pictures, are left to how the picture is fitted.
    return (
        min(max(int(width * factor + 1e-6) // 8 * 8 + added[0], smallest), spec.max_size),
        min(max(int(height * factor + 1e-6) // 8 * 8 + added[1], smallest), spec.max_size),
    )


def _sides(request: GenerationRequest) -> masks.Sides:
    if request.task != "inpaint":
        return 0, 0, 0, 0
    left, top, right, bottom = request.outpaint
    return left, top, right, bottom
