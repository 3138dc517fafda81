"""Runs a request of any task on a loaded pipeline."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import TYPE_CHECKING

from canvas.engine.generate import Materials, run
from canvas.engine.image_io import mark
from canvas.engine.lora_adapters import worn
from canvas.engine.safety import PictureChecker
from canvas.engine.upscale import Redrawing, run_enlarging
from canvas.request import GeneratedImage, GenerationRequest, Step

if TYPE_CHECKING:
    import threading


def draw(
    request: GenerationRequest,
    materials: Materials,
    model: Redrawing | None,
    on_step: Callable[[Step], None],
    cancelled: threading.Event,
) -> Generator[GeneratedImage]:
    """The pictures of a resolved request, by a loaded model where it needs one."""
    if model is None:
        picture = materials.pictures["image"]
        yield run_enlarging(request, picture, on_step=on_step, cancelled=cancelled)
        return
    with worn(model.pipeline, materials.loras):
        if request.task == "upscale":
            yield run_enlarging(
                request,
                materials.pictures["image"],
                on_step=on_step,
                cancelled=cancelled,
                redrawing=model,
            )
            return
        yield from run(
            model.pipeline,
            request,
            spec=model.spec,
            device=model.device,
            on_step=on_step,
            cancelled=cancelled,
            model_revision=model.model_revision,
            pictures=materials.pictures,
        )


def finish(picture: GeneratedImage, checker: PictureChecker | None) -> GeneratedImage:
    """Have the picture checked, and mark it if wished; raises Blocked."""
    assert picture.image is not None  # noqa: S101 - it was just made
    if checker is not None:
        checker.check(picture.image)
    text = picture.request.watermark
    return replace(picture, image=mark(picture.image, text)) if text else picture
