"""Runs a request of any task on a loaded pipeline, and post-processes the images."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from canvas.engine.controlnet import Controls
from canvas.engine.generate import GenerationInputs, generate
from canvas.engine.image_io import add_watermark
from canvas.engine.lora_adapters import applied_loras
from canvas.engine.references import applied_references
from canvas.engine.safety import ImageSafetyChecker
from canvas.engine.textual_inversion import applied_embeddings
from canvas.engine.upscale import LoadedPipeline, run_upscale
from canvas.request import GeneratedImage, GenerationRequest, ProgressUpdate


def run_task(
    request: GenerationRequest,
    inputs: GenerationInputs,
    model: LoadedPipeline | None,
    on_step: Callable[[ProgressUpdate], None],
    cancelled: threading.Event,
) -> Generator[GeneratedImage]:
    """Yield the images of a resolved request; `model` is None if it needs no model."""
    with ExitStack() as stack:
        guidance: dict[str, Any] = {}
        if model is not None:
            stack.enter_context(applied_loras(model.pipeline, inputs.loras))
            guidance["embeddings"] = stack.enter_context(applied_embeddings(model.pipeline, inputs.embeddings))
            if inputs.controls:
                guidance["controls"] = controls = Controls(model.pipeline, inputs.controls, model.controlnets)
                stack.enter_context(controls.attached())
            guided = (request.guidance_scale or 0) > 1
            has_mask = request.task == "inpaint"
            guidance["references"] = stack.enter_context(
                applied_references(model.pipeline, inputs.references, guided=guided, has_mask=has_mask)
            )
        if model is None or request.task == "upscale":
            image = inputs.images["image"]
            yield run_upscale(request, image, on_step=on_step, cancelled=cancelled, model=model, **guidance)
            return
        yield from generate(
            model.pipeline,
            request,
            spec=model.spec,
            device=model.device,
            on_step=on_step,
            cancelled=cancelled,
            model_revision=model.model_revision,
            images=inputs.images,
            source_prompt=inputs.source_prompt,
            **guidance,
        )


def postprocess(image: GeneratedImage, checker: ImageSafetyChecker | None) -> GeneratedImage:
    """Check the image and add the request's watermark; raises ContentBlocked."""
    assert image.image is not None  # noqa: S101 - it has just been generated
    if checker is not None:
        checker.check(image.image)
    text = image.request.watermark
    return replace(image, image=add_watermark(image.image, text)) if text else image
