"""Request and pipeline to pictures: the whole way of one prompt through the engine."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from canvas.engine import acceleration, heap, machine
from canvas.engine.decoding import decode
from canvas.engine.denoiser import Denoiser, drawn_size, fresh_scheduler
from canvas.engine.editing import Edit, Pictures, check_pipeline, prepare
from canvas.engine.inputs import middle
from canvas.engine.noise import slerp
from canvas.engine.progress import Progress
from canvas.engine.prompts import enhance_negative_prompt, enhance_prompt, what_it_reads
from canvas.engine.room import check_room, what_would_fit
from canvas.engine.windows import is_windowed
from canvas.engine.words import words_of
from canvas.errors import GenerationFailed, OutOfMemory, Said
from canvas.modes import MODES
from canvas.request import GeneratedImage, GenerationRequest, Step

if TYPE_CHECKING:
    import threading

    from PIL.Image import Image

    from canvas.catalog import ModelSpec
    from canvas.engine.device import Device


def run(  # noqa: PLR0913 - by keyword only, one a line
    pipeline: Any,
    request: GenerationRequest,
    *,
    spec: ModelSpec,
    device: Device,
    on_step: Callable[[Step], None],
    cancelled: threading.Event,
    model_revision: str = "",
    pictures: Pictures | None = None,
) -> Iterator[GeneratedImage]:
    """The pictures of a resolved request, one after the other, each as soon as it is done.

    Picture i is made from seed + i with a CPU generator of its own, so it is the same
    as that of `request.single(i)`. `pictures` are those that the request names, by its
    field. Raises GenerationCancelled within one step,
    OutOfMemory before the first or in between.
    """
    check_pipeline(pipeline, request, spec)
    if not is_windowed(pipeline):  # a window is of the model's own size
        check_room(request, spec, device)
    edit = prepare(request, pictures or {}, spec)
    if edit:
        edit = edit.drawn_at(drawn_size(pipeline, edit.image.size))

    # 1. The words that go to the model
    prompt = enhance_prompt(request, spec)
    negative_prompt = enhance_negative_prompt(request)
    words = (prompt, negative_prompt)
    if spec.prompt_tokens and not request.prompt_weighting:
        first, second = (what_it_reads(text, pipeline.tokenizer, spec) for text in words)
        words = (first, second)

    denoiser = Denoiser(pipeline)
    progress = Progress(request, denoiser, on_step, cancelled)
    for index in range(request.num_images):
        single = request.single(index)
        started = time.perf_counter()
        progress.begin(index)
        with _errors_in_words(single, spec, device):
            # 2. Noise to latents, step by step
            latents = _denoise(pipeline, single, words, edit, denoiser, progress)

            # 3. Latents to pixels
            image, note = _finish(latents, pipeline, denoiser)
            image = edit.finish(image) if edit else middle(image, _size(request))
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


@heap.kept()
def _denoise(
    pipeline: Any,
    request: GenerationRequest,
    prompts: tuple[str, str],
    edit: Edit | None,
    denoiser: Denoiser,
    progress: Progress,
) -> Any:
    """The latents of one picture; of a pipeline that is not understood, the picture itself."""
    import torch

    assert request.scheduler and request.num_inference_steps  # noqa: S101 - the request is resolved
    generator = torch.Generator("cpu").manual_seed(request.seed)
    guided = (request.guidance_scale or 0) > 1
    width, height = drawn_size(pipeline, _size(request))
    arguments: dict[str, Any] = {
        **words_of(pipeline, prompts, guided=guided, weighting=request.prompt_weighting),
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
    elif denoiser.takes_latents:
        arguments["latents"] = _noise(request, denoiser, generator)
    if denoiser.takes_latents:
        arguments["output_type"] = "latent"
    known = inspect.signature(pipeline.__call__).parameters
    passes = acceleration.plan(MODES[request.mode], request.steps[1])
    try:
        with (
            torch.no_grad(),
            fresh_scheduler(pipeline, request.scheduler, request.num_inference_steps),
            denoiser.running(),
            acceleration.shortcuts(pipeline, passes),
        ):
            return pipeline(**{k: v for k, v in arguments.items() if k in known}).images[0]
    finally:
        pipeline.maybe_free_model_hooks()


def _noise(request: GenerationRequest, denoiser: Denoiser, generator: Any) -> Any:
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


def _finish(latents: Any, pipeline: Any, denoiser: Denoiser) -> tuple[Image, str]:
    import torch
    from diffusers import AutoencoderTiny

    if not denoiser.takes_latents:
        return latents, ""
    # Among the large decoder's blocks holes would be left, at the peak of the memory.
    tiny = isinstance(pipeline.vae, AutoencoderTiny)
    with torch.no_grad(), heap.kept() if tiny else nullcontext():
        return decode(latents[None], pipeline)


@contextmanager
def _errors_in_words(request: GenerationRequest, spec: ModelSpec, device: Device) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError, ValueError) as error:
        if machine.is_out_of_memory(error):
            machine.release_memory()
            raise OutOfMemory(
                Said(
                    "Memory ran out at {size}. {instead}",
                    size=f"{request.width}x{request.height}",
                    instead=what_would_fit(request, spec, device),
                )
            ) from error
        first_line = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise GenerationFailed(
            Said(
                "The model {model} could not make this picture: {reason}. Try another scheduler, "
                "size or number of steps.",
                model=spec.key,
                reason=first_line,
            )
        ) from error
