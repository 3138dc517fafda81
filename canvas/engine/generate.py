"""Generates the images of a request with a loaded pipeline: encode, denoise, decode."""

from __future__ import annotations

import inspect
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL.Image import Image

from canvas.catalog import ModelSpec
from canvas.engine import encode_first, system_info
from canvas.engine.controlnet import ControlInput, Controls
from canvas.engine.device import Device
from canvas.engine.img2img import InputImages, PreparedEdit, check_task_supported, prepare_inputs
from canvas.engine.loader import plan_note
from canvas.engine.masks import Size, whole_area
from canvas.engine.multidiffusion import is_tiled
from canvas.engine.openvino.engine import engine_name, engine_note, use_preset
from canvas.engine.optimizations import deepcache, malloc
from canvas.engine.pipeline_cache import check_memory, suggest_size
from canvas.engine.prompt_embeds import encode_prompt_cached, supports_weighting
from canvas.engine.prompts import (
    enhance_negative_prompt,
    enhance_prompt,
    text_within_limit,
    understand,
    without_weights,
)
from canvas.engine.references import NO_REFERENCES, ReferenceInput, References
from canvas.engine.step_callback import (
    StepCallback,
    UNetHooks,
    called_on_each_step,
    replaced_method,
    temporary_scheduler,
)
from canvas.engine.textual_inversion import AppliedEmbeddings, Embedding
from canvas.errors import GenerationFailed, LazyMessage, OutOfMemory
from canvas.models.capabilities import applied_request, capabilities_of
from canvas.models.loras import Lora
from canvas.presets import PRESETS
from canvas.prompt_syntax import LoraWeight, weights_note
from canvas.request import GeneratedImage, GenerationRequest, ProgressUpdate

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)
PARALLEL = 0.9995  # cosine above which slerp is linear
FLOAT32_NOTE = "decoded in float32, because half precision gave an empty image"


@dataclass(frozen=True)
class GenerationInputs:
    """The input images of a request by field name, and its LoRAs with their weights.

    `source_prompt`: what the same model got for the image that is edited, if it made that.
    """

    images: Mapping[str, Image] = field(default_factory=dict)
    loras: tuple[tuple[Lora, LoraWeight], ...] = ()
    embeddings: tuple[Embedding, ...] = ()
    controls: tuple[ControlInput, ...] = ()
    references: tuple[ReferenceInput, ...] = ()
    source_prompt: str = ""


def generate(  # noqa: PLR0913 - keyword only, one a line
    pipeline: Any,
    request: GenerationRequest,
    *,
    spec: ModelSpec,
    device: Device,
    on_step: Callable[[ProgressUpdate], None],
    cancelled: threading.Event,
    model_revision: str = "",
    images: InputImages | None = None,
    embeddings: AppliedEmbeddings | None = None,
    controls: Controls | None = None,
    references: References = NO_REFERENCES,
    source_prompt: str = "",
) -> Iterator[GeneratedImage]:
    """Yield the images of a resolved request, each as soon as it is done.

    Image i uses a CPU generator seeded with `seed + i`, so it equals the image of
    `request.for_image(i)`. `images` holds the input images by field name. Raises
    GenerationCancelled within one step, OutOfMemory before or during generation.
    """
    check_task_supported(pipeline, request, spec)
    capabilities = capabilities_of(pipeline, spec.name)
    request, effects = applied_request(request, capabilities, spec)
    if request.prompt_weighting and not supports_weighting(pipeline):
        request = without_weights(request)
        effects = (*effects, "Prompt weights have no effect on this model; their syntax was removed.")
    edit = prepare_inputs(request, images or {}, spec, capabilities.size_step)
    area = edit.area if edit else whole_area(request.size, capabilities.size_step, spec)
    if embeddings is not None:
        effects = (*effects, *embeddings.notes)
    if not (is_tiled(pipeline) or getattr(pipeline.vae, "use_tiling", False)):  # a tile has the model's own size
        check_memory(area.size, spec, device)

    if deferred := encode_first.attached(pipeline):
        prompts = _model_prompts(request, pipeline, spec, embeddings, source_prompt).prompts
        deferred.prepare(pipeline, prompts, guided=(request.guidance_scale or 0) > 1)
    effects = (*effects, *references.notes)
    unused_weights = weights_note(request.prompt, weighting=request.prompt_weighting)
    use_preset(pipeline, request.preset)
    controls = controls or Controls(pipeline, (), ())
    with _translate_errors(area.size, spec, device):
        controls.prepare(request, area, edit)
    hooks = UNetHooks(pipeline)
    step_callback = StepCallback(request, hooks, on_step, cancelled)
    for index in range(request.num_images):
        single = request.for_image(index)
        started = time.perf_counter()
        step_callback.start_image(index, area.size)
        controls.start_image()
        # 1. Enhance the prompts
        enhanced = _model_prompts(single, pipeline, spec, embeddings, source_prompt)
        with _translate_errors(area.size, spec, device):
            # 2. Denoise the latents
            output, note = _denoise(
                pipeline, single, area.size, enhanced.prompts, edit, hooks, step_callback, references=references
            )

            # 3. Decode them
            if hooks.has_unet:
                output, note = _decode_image(output, pipeline)
            image = edit.composite(output) if edit else area.paste(output)
        step_callback.finish_image()

        # 4. Yield the image with its metadata
        notes = (*effects, note, area.note, engine_note(pipeline), plan_note(pipeline), unused_weights, enhanced.note)
        yield GeneratedImage(
            request=single,
            enhanced_prompt=enhanced.shown,
            generation_time=time.perf_counter() - started,
            device=device.name,
            dtype=_pipeline_dtype(pipeline) or device.dtype,
            model_revision=model_revision,
            engine=engine_name(pipeline),
            notes=tuple(filter(None, notes)),
            image=image,
        )


class _ModelPrompts(NamedTuple):
    """The prompt for the record; prompt and negative prompt for the model; what was understood."""

    shown: str
    prompts: tuple[str, str]
    note: str


def _model_prompts(
    request: GenerationRequest, pipeline: Any, spec: ModelSpec, embeddings: AppliedEmbeddings | None, source_prompt: str
) -> _ModelPrompts:
    """The prompts of one image; what a model with a vocabulary adds to them depends on the seed."""
    shown, note = enhance_prompt(request, spec), ""
    prompts = (shown, enhance_negative_prompt(request))
    if embeddings is not None and embeddings.tokens:
        prompts = (embeddings.rewrite(prompts[0]), embeddings.rewrite(prompts[1]))
    elif reading := understand(request, spec, source_prompt):
        shown, note = reading.prompt, reading.note
        prompts = (shown, prompts[1])
    if spec.prompt_tokens and not request.prompt_weighting:
        prompt, negative_prompt = (text_within_limit(text, pipeline.tokenizer, spec) for text in prompts)
        prompts = (prompt, negative_prompt)
    return _ModelPrompts(shown, prompts, note)


@malloc.retain_freed_memory()
def _denoise(  # noqa: PLR0913 - called once
    pipeline: Any,
    request: GenerationRequest,
    size: Size,
    prompts: tuple[str, str],
    edit: PreparedEdit | None,
    hooks: UNetHooks,
    step_callback: StepCallback,
    *,
    references: References,
) -> tuple[Any, str]:
    """The latents of one image, (C, H, W), or of a pipeline without a UNet the PIL image; a note."""
    import torch

    assert request.scheduler and request.num_inference_steps  # noqa: S101 - the request is resolved
    generator = torch.Generator("cpu").manual_seed(request.seed)
    guided = (request.guidance_scale or 0) > 1
    width, height = size
    known = inspect.signature(pipeline.__call__).parameters
    arguments: dict[str, Any] = {
        **encode_prompt_cached(pipeline, prompts, guided=guided, weighting=request.prompt_weighting),
        "width": width,
        "height": height,
        "num_inference_steps": request.num_inference_steps,
        capabilities_of(pipeline).family.guidance_argument: request.guidance_scale,
        "generator": generator,
        "output_type": "pil",
        "callback_on_step_end": step_callback,
        "use_resolution_binning": False,  # draw the size that the record has
        # Sana-Sprint has its second timestep only if there are two.
        "intermediate_timesteps": 1.3 if request.step_counts[0] == 2 else None,
    }
    if edit:
        arguments |= edit.pipeline_args(request, rounds_skipped=not hooks.has_unet)
        if request.scheduler == "LCM" and "original_inference_steps" in known:
            # Its own pipeline computes all steps, and takes them from the part of the schedule below `strength`.
            arguments |= {"num_inference_steps": request.step_counts[1], "strength": request.strength}
        arguments["callback_on_step_end"] = edit.on_step_end(pipeline, request.seed, step_callback)
    elif hooks.has_unet:
        arguments["latents"] = _initial_noise(request, size, hooks, generator)
    arguments = references.add_to(arguments, has_mask=edit is not None and edit.mask is not None)
    if hooks.has_unet:
        arguments["output_type"] = "latent"
    arguments = {name: value for name, value in arguments.items() if name in known}
    schedule = deepcache.cache_schedule(PRESETS[request.preset], request.step_counts[1])
    decoding: AbstractContextManager[list[str]]
    decoding = nullcontext([]) if hooks.has_unet else guarded_decoding(pipeline.vae)
    try:
        with (
            torch.no_grad(),
            temporary_scheduler(pipeline, request.scheduler, request.num_inference_steps),
            hooks.attached(),
            deepcache.apply_deepcache(pipeline, schedule),
            decoding as notes,
            nullcontext() if "callback_on_step_end" in known else called_on_each_step(pipeline, step_callback),
        ):
            return pipeline(**arguments).images[0], "".join(notes)
    finally:
        pipeline.maybe_free_model_hooks()


def _initial_noise(request: GenerationRequest, size: Size, hooks: UNetHooks, generator: Any) -> torch.Tensor:
    """The noise of the seed, interpolated towards that of the variation seed."""
    import torch

    noise = hooks.make_noise(size, generator)
    if request.variation_seed is None:
        return noise
    other = torch.Generator("cpu").manual_seed(request.variation_seed)
    return slerp(noise, hooks.make_noise(size, other), request.variation_strength)


def _pipeline_dtype(pipeline: Any) -> str:
    """The dtype in which the denoiser computes; "" if it is not loaded."""
    denoiser = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
    return str(getattr(denoiser, "dtype", "")).removeprefix("torch.")


def _decode_image(latents: Any, pipeline: Any) -> tuple[Image, str]:
    import torch
    from diffusers import AutoencoderTiny

    # Retained memory would fragment the heap between the large decoder's tensors, at peak usage.
    tiny = isinstance(pipeline.vae, AutoencoderTiny)
    with torch.no_grad(), malloc.retain_freed_memory() if tiny else nullcontext():
        return decode_latents(latents[None], pipeline)


@contextmanager
def _translate_errors(size: Size, spec: ModelSpec, device: Device) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        if system_info.is_out_of_memory(error):
            system_info.release_memory()
            text = "Ran out of memory at {size}. {suggestion}"
            suggestion = suggest_size(size, spec, device)
            raise OutOfMemory(LazyMessage(text, size="{}x{}".format(*size), suggestion=suggestion)) from error
        logger.warning("%s could not generate an image", spec.key, exc_info=error)
        message = LazyMessage(
            "The model {model} could not generate this image. Try another scheduler, size or number of steps.",
            model=spec.key,
        )
        raise GenerationFailed(message) from error


def decode_latents(latents: torch.Tensor, pipeline: Any) -> tuple[Image, str]:
    """Decode latents, (1, C, H, W); the note is not empty if float32 had to be used.

    Raises GenerationFailed if the latents or the pixels are not finite.
    """
    import torch

    _check_latents(latents)
    vae = pipeline.vae
    # Every AutoencoderKL has force_upcast; only SDXL's pipelines need it, and have upcast_vae.
    force_upcast = hasattr(pipeline, "upcast_vae") and getattr(vae.config, "force_upcast", False)
    upcast, note = force_upcast and vae.dtype == torch.float16, ""
    if not upcast:
        pixels = _decode(latents, vae, vae.dtype)
        if vae.dtype != torch.float32 and _is_empty(pixels):
            upcast, note = True, FLOAT32_NOTE
    if upcast:
        with _in_float32(vae):
            pixels = _decode(latents.float(), vae, torch.float32)
    _check_pixels(pixels)
    image: Image = pipeline.image_processor.postprocess(pixels.float(), output_type="pil")[0]
    return image, note


def _decode(latents: torch.Tensor, vae: Any, dtype: torch.dtype) -> torch.Tensor:
    """Pixels from -1 to 1, (1, 3, H, W)."""
    config = vae.config
    unscaled = latents / config.scaling_factor
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and std is not None:
        unscaled = unscaled * unscaled.new_tensor(std).view(1, -1, 1, 1)
        unscaled = unscaled + unscaled.new_tensor(mean).view(1, -1, 1, 1)
    pixels: torch.Tensor = vae.decode(unscaled.to(dtype), return_dict=False)[0]
    return pixels


@contextmanager
def guarded_decoding(vae: Any) -> Iterator[list[str]]:
    """Check what `vae.decode` gets and returns inside the block; yields the list of notes.

    Raises GenerationFailed inside the pipeline if latents or pixels are not finite.
    """
    import torch

    notes: list[str] = []
    original = vae.decode

    def decode(latents: torch.Tensor, *args: Any, **options: Any) -> Any:
        _check_latents(latents)
        decoded = original(latents, *args, **options)
        if vae.dtype != torch.float32 and _is_empty(_pixels(decoded)):
            with _in_float32(vae):
                decoded = original(latents.float(), *args, **options)
            notes.append(FLOAT32_NOTE)
        _check_pixels(_pixels(decoded))
        return decoded

    with replaced_method(vae, "decode", decode):
        yield notes


@contextmanager
def _in_float32(vae: Any) -> Iterator[None]:
    import torch

    dtype = vae.dtype
    vae.to(dtype=torch.float32)
    try:
        yield
    finally:
        vae.to(dtype=dtype)


def _check_latents(latents: torch.Tensor) -> None:
    """Raise GenerationFailed if latents are not finite."""
    if not latents.isfinite().all():
        message = LazyMessage(
            "The latents contain NaN or infinity. Try another scheduler or a lower guidance; if "
            "every image fails, start with CANVAS_DTYPE=float32."
        )
        raise GenerationFailed(message)


def _check_pixels(pixels: torch.Tensor) -> None:
    """Raise GenerationFailed if decoded pixels are not finite."""
    if not pixels.isfinite().all():
        message = LazyMessage(
            "The decoded pixels contain NaN or infinity, even in float32. Try another seed or scheduler."
        )
        raise GenerationFailed(message)


def _is_empty(pixels: torch.Tensor) -> bool:
    """Whether any pixel is not finite, or all are black."""
    return not bool(pixels.isfinite().all()) or bool((pixels <= -254 / 255).all())


def _pixels(decoded: Any) -> torch.Tensor:
    pixels: torch.Tensor = decoded[0] if isinstance(decoded, tuple) else decoded.sample
    return pixels


def slerp(first: torch.Tensor, second: torch.Tensor, fraction: float) -> torch.Tensor:
    """Spherical linear interpolation from `first` (0) to `second` (1), which keeps the norm.

    A linear mixture of two noises has too little variance (K. Shoemake, "Animating rotation
    with quaternion curves", 1985).
    """
    import torch

    if fraction in (0, 1):
        return second if fraction else first
    norms = first.norm() * second.norm()
    cosine = float((first * second).sum() / norms)
    if abs(cosine) > PARALLEL:
        return first + fraction * (second - first)
    angle = torch.arccos(torch.tensor(cosine, dtype=torch.float64))
    weights = torch.sin((1 - fraction) * angle), torch.sin(fraction * angle)
    return (float(weights[0]) * first + float(weights[1]) * second) / float(torch.sin(angle))
