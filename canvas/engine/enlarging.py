"""The way of one picture through enlarging: by a network alone, or redrawn by a model in tiles."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from canvas.catalog import ModelSpec
from canvas.engine.device import Device
from canvas.engine.generation import run
from canvas.engine.inputs import fit, flatten
from canvas.engine.upscaling import enlarge, enlarge_with_detail
from canvas.errors import GenerationCancelled
from canvas.request import GeneratedImage, GenerationRequest, Step


@dataclass(frozen=True)
class Redrawing:
    """What redraws tiles: a pipeline that starts from pictures, of that model, on that device."""

    pipeline: Any
    spec: ModelSpec
    device: Device
    model_revision: str = ""


def run_enlarging(
    request: GenerationRequest,
    picture: Image.Image,
    *,
    on_step: Callable[[Step], None],
    cancelled: threading.Event,
    redrawing: Redrawing | None = None,
) -> GeneratedImage:
    """The enlarged picture of a resolved request; `redrawing` where it asks for detail.

    Raises GenerationCancelled within one step, or one tile of a network.
    """
    assert request.width and request.height  # noqa: S101 - the request is resolved
    started = time.perf_counter()
    size = (request.width // request.scale, request.height // request.scale)
    small = fit(flatten(picture, request.background), size, request.fit, request.background)
    if cancelled.is_set():
        raise GenerationCancelled("Stopped.")
    if redrawing is None:
        image = enlarge(
            *(small, request.scale, request.upscaler),
            on_tile=lambda done, total: on_step(Step(done, total)),
            cancelled=cancelled,
        )
    else:
        image = _redraw(request, small, redrawing, on_step, cancelled)
    return GeneratedImage(
        request=request,
        enhanced_prompt=request.prompt,
        generation_time=time.perf_counter() - started,
        device=redrawing.device.name if redrawing else "cpu",
        dtype=redrawing.device.dtype if redrawing else "float32",
        model_revision=redrawing.model_revision if redrawing else "",
        image=image,
    )


def _redraw(
    request: GenerationRequest,
    small: Image.Image,
    redrawing: Redrawing,
    on_step: Callable[[Step], None],
    cancelled: threading.Event,
) -> Image.Image:
    def draw(tile: Image.Image, number: int, total: int) -> Image.Image:
        """A tile drawn anew; each has noise of its own, or all would get the same texture."""
        wish = replace(
            request,
            task="image_to_image",
            width=tile.width,
            height=tile.height,
            seed=request.seed + number,
        )
        [made] = run(
            redrawing.pipeline,
            wish,
            spec=redrawing.spec,
            device=redrawing.device,
            on_step=lambda step: on_step(_of_all(step, number, total)),
            cancelled=cancelled,
            pictures={"image": tile},
        )
        assert made.image is not None  # noqa: S101 - it was just made
        return made.image

    return enlarge_with_detail(small, request.scale, redrawing.spec.resolution, draw)


def _of_all(step: Step, number: int, total: int) -> Step:
    """Progress of one tile as that of the whole picture; previews of tiles are not shown."""
    tiles_after = total - number - 1
    left = step.seconds_left
    per_step = left / max(1, step.num_steps - step.step) if left else None
    return Step(
        step=number * step.num_steps + step.step,
        num_steps=total * step.num_steps,
        seconds_left=left + tiles_after * step.num_steps * per_step if left and per_step else None,
    )
