"""Runs a request of any task on a loaded pipeline."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import TYPE_CHECKING

from canvas.engine.generate import GenerationInputs, generate
from canvas.engine.image_io import add_watermark
from canvas.engine.lora_adapters import applied_loras
from canvas.engine.safety import ImageSafetyChecker
from canvas.engine.upscale import LoadedPipeline, run_upscale
from canvas.request import GeneratedImage, GenerationRequest, ProgressUpdate

if TYPE_CHECKING:
    import threading


def run_task(
    request: GenerationRequest,
    materials: GenerationInputs,
    model: LoadedPipeline | None,
    on_step: Callable[[ProgressUpdate], None],
    cancelled: threading.Event,
) -> Generator[GeneratedImage]:
    """The pictures of a resolved request, by a loaded model where it needs one."""
    if model is None:
        picture = materials.images["image"]
        yield run_upscale(request, picture, on_step=on_step, cancelled=cancelled)
        return
    with applied_loras(model.pipeline, materials.loras):
        if request.task == "upscale":
            yield run_upscale(
                request,
                materials.images["image"],
                on_step=on_step,
                cancelled=cancelled,
                redrawing=model,
            )
            return
        yield from generate(
            model.pipeline,
            request,
            spec=model.spec,
            device=model.device,
            on_step=on_step,
            cancelled=cancelled,
            model_revision=model.model_revision,
            pictures=materials.images,
        )


def postprocess(picture: GeneratedImage, checker: ImageSafetyChecker | None) -> GeneratedImage:
    """Have the picture checked, and mark it if wished; raises Blocked."""
    assert picture.image is not None  # noqa: S101 - it was just made
    if checker is not None:
        checker.check(picture.image)
    text = picture.request.watermark
    return replace(picture, image=add_watermark(picture.image, text)) if text else picture
