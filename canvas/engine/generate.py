"""A request with its materials to finished pictures, whatever its task."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from PIL.Image import Image

from canvas.catalog import ModelSpec
from canvas.engine import system_info
from canvas.engine.device import Device
from canvas.engine.image_io import center_crop
from canvas.engine.img2img import InputImages, PreparedEdit, check_task_supported, prepare_inputs
from canvas.engine.multidiffusion import is_tiled
from canvas.engine.optimizations import deepcache, malloc
from canvas.engine.pipeline_cache import check_memory, suggest_size
from canvas.engine.prompt_embeds import encode_prompt_cached
from canvas.engine.prompts import enhance_negative_prompt, enhance_prompt, text_within_limit
from canvas.engine.step_callback import StepCallback
from canvas.engine.unet_hooks import UNetHooks, round_up_size, temporary_scheduler
from canvas.errors import GenerationFailed, LazyMessage, OutOfMemory
from canvas.models.loras import Lora
from canvas.presets import PRESETS
from canvas.request import GeneratedImage, GenerationRequest, ProgressUpdate

if TYPE_CHECKING:
    import threading

    import torch
    from PIL.Image import Image

    from canvas.catalog import ModelSpec
    from canvas.engine.device import Device

PARALLEL = 0.9995  # cosine beyond which the arc is a straight line


def slerp(first: torch.Tensor, second: torch.Tensor, share: float) -> torch.Tensor:
    """Spherical interpolation: `first` at a share of 0, `second` at 1, of full length between.

    A straight mixture of two noises would be too quiet for the model (K. Shoemake,
    "Animating rotation with quaternion curves", 1985).
    """
    import torch

    if share in (0, 1):
        return second if share else first
    norms = first.norm() * second.norm()
    cosine = float((first * second).sum() / norms)
    if abs(cosine) > PARALLEL:
        return first + share * (second - first)
    angle = torch.arccos(torch.tensor(cosine, dtype=torch.float64))
    weights = torch.sin((1 - share) * angle), torch.sin(share * angle)
    return (float(weights[0]) * first + float(weights[1]) * second) / float(torch.sin(angle))


NOTE = "decoded in float32, because half precision gave an empty picture"


def decode_latents(latents: torch.Tensor, pipeline: Any) -> tuple[Image, str]:
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
        return _to_pil(_in_float32(latents, vae, dtype), pipeline), ""
    pixels = _pixels(latents, vae, dtype)
    if dtype == torch.float32 or not _is_empty(pixels):
        return _to_pil(pixels, pipeline), ""
    return _to_pil(_in_float32(latents, vae, dtype), pipeline), NOTE


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


def _to_pil(pixels: torch.Tensor, pipeline: Any) -> Image:
    if not pixels.isfinite().all():
        raise GenerationFailed(
            "The decoder's numbers overflowed even in float32. Try another seed or scheduler."
        )
    image: Image = pipeline.image_processor.postprocess(pixels.float(), output_type="pil")[0]
    return image


def generate(  # noqa: PLR0913 - by keyword only, one a line
    pipeline: Any,
    request: GenerationRequest,
    *,
    spec: ModelSpec,
    device: Device,
    on_step: Callable[[ProgressUpdate], None],
    cancelled: threading.Event,
    model_revision: str = "",
    pictures: InputImages | None = None,
) -> Iterator[GeneratedImage]:
    """The pictures of a resolved request, one after the other, each as soon as it is done.

    Picture i is made from seed + i with a CPU generator of its own, so it is the same
    as that of `request.single(i)`. `pictures` are those that the request names, by its
    field. Raises GenerationCancelled within one step,
    OutOfMemory before the first or in between.
    """
    check_task_supported(pipeline, request, spec)
    if not is_tiled(pipeline):  # a window is of the model's own size
        check_memory(request, spec, device)
    edit = prepare_inputs(request, pictures or {}, spec)
    if edit:
        edit = edit.at_size(round_up_size(pipeline, edit.image.size))

    # 1. The words that go to the model
    prompt = enhance_prompt(request, spec)
    negative_prompt = enhance_negative_prompt(request)
    words = (prompt, negative_prompt)
    if spec.prompt_tokens and not request.prompt_weighting:
        first, second = (text_within_limit(text, pipeline.tokenizer, spec) for text in words)
        words = (first, second)

    denoiser = UNetHooks(pipeline)
    progress = StepCallback(request, denoiser, on_step, cancelled)
    for index in range(request.num_images):
        single = request.for_image(index)
        started = time.perf_counter()
        progress.begin(index)
        with _translate_errors(single, spec, device):
            # 2. Noise to latents, step by step
            latents = _denoise(pipeline, single, words, edit, denoiser, progress)

            # 3. Latents to pixels
            image, note = _decode_image(latents, pipeline, denoiser)
            image = edit.composite(image) if edit else center_crop(image, _size(request))
        progress.finish()

        # 4. The picture with all that it was made from
        yield GeneratedImage(
            request=single,
            enhanced_prompt=prompt,
            generation_time=time.perf_counter() - started,
            device=device.name,
            dtype=device.dtype,
            model_revision=model_revision,
            notes=(note,) if note else (),
            image=image,
        )


@malloc.retain_freed_memory()
def _denoise(
    pipeline: Any,
    request: GenerationRequest,
    prompts: tuple[str, str],
    edit: PreparedEdit | None,
    denoiser: UNetHooks,
    progress: StepCallback,
) -> Any:
    """The latents of one picture; of a pipeline that is not understood, the picture itself."""
    import torch

    assert request.scheduler and request.num_inference_steps  # noqa: S101 - the request is resolved
    generator = torch.Generator("cpu").manual_seed(request.seed)
    guided = (request.guidance_scale or 0) > 1
    width, height = round_up_size(pipeline, _size(request))
    arguments: dict[str, Any] = {
        **encode_prompt_cached(
            pipeline, prompts, guided=guided, weighting=request.prompt_weighting
        ),
        "width": width,
        "height": height,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "generator": generator,
        "output_type": "pil",
        "callback_on_step_end": progress,
    }
    if edit:
        arguments |= edit.arguments(request)
        arguments["callback_on_step_end"] = edit.on_step_end(pipeline, request.seed, progress)
    elif denoiser.has_unet:
        arguments["latents"] = _noise(request, denoiser, generator)
    if denoiser.has_unet:
        arguments["output_type"] = "latent"
    known = inspect.signature(pipeline.__call__).parameters
    passes = deepcache.cache_schedule(PRESETS[request.preset], request.step_counts[1])
    try:
        with (
            torch.no_grad(),
            temporary_scheduler(pipeline, request.scheduler, request.num_inference_steps),
            denoiser.attached(),
            deepcache.apply_deepcache(pipeline, passes),
        ):
            return pipeline(**{k: v for k, v in arguments.items() if k in known}).images[0]
    finally:
        pipeline.maybe_free_model_hooks()


def _noise(request: GenerationRequest, denoiser: UNetHooks, generator: Any) -> Any:
    """The noise of the seed, moved towards that of the variation's seed."""
    import torch

    noise = denoiser.noise(_size(request), generator)
    if request.variation_seed is None:
        return noise
    other = torch.Generator("cpu").manual_seed(request.variation_seed)
    return slerp(noise, denoiser.noise(_size(request), other), request.variation_strength)


def _size(request: GenerationRequest) -> tuple[int, int]:
    assert request.width and request.height  # noqa: S101 - the request is resolved
    return request.width, request.height


def _decode_image(latents: Any, pipeline: Any, denoiser: UNetHooks) -> tuple[Image, str]:
    import torch
    from diffusers import AutoencoderTiny

    if not denoiser.has_unet:
        return latents, ""
    # Among the large decoder's blocks holes would be left, at the peak of the memory.
    tiny = isinstance(pipeline.vae, AutoencoderTiny)
    with torch.no_grad(), malloc.retain_freed_memory() if tiny else nullcontext():
        return decode_latents(latents[None], pipeline)


@contextmanager
def _translate_errors(
    request: GenerationRequest, spec: ModelSpec, device: Device
) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError, ValueError) as error:
        if system_info.is_out_of_memory(error):
            system_info.release_memory()
            raise OutOfMemory(
                LazyMessage(
                    "Memory ran out at {size}. {instead}",
                    size=f"{request.width}x{request.height}",
                    instead=suggest_size(request, spec, device),
                )
            ) from error
        first_line = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise GenerationFailed(
            LazyMessage(
                "The model {model} could not make this picture: {reason}. Try another scheduler, "
                "size or number of steps.",
                model=spec.key,
                reason=first_line,
            )
        ) from error


@dataclass(frozen=True)
class GenerationInputs:
    """The pictures of a request by its field, and its LoRAs with their weights."""

    images: Mapping[str, Image] = field(default_factory=dict)
    loras: tuple[tuple[Lora, float], ...] = ()
