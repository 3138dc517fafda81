"""The way of one picture through enlarging: by a network alone, or drawn anew by a model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from canvas.catalog import ModelSpec
from canvas.engine.device import Device
from canvas.engine.generate import generate
from canvas.engine.image_io import flatten_alpha, resize_to_fit
from canvas.engine.multidiffusion import tile_count, tiled_pipeline
from canvas.engine.optimizations import deepcache
from canvas.engine.super_resolution import upscale_image
from canvas.engine.unet_hooks import round_up_size
from canvas.errors import GenerationCancelled, InvalidInput
from canvas.presets import PRESETS
from canvas.request import GeneratedImage, GenerationRequest, ProgressUpdate


@dataclass(frozen=True)
class LoadedPipeline:
    """What draws anew: a pipeline that starts from pictures, of that model, on that device."""

    pipeline: Any
    spec: ModelSpec
    device: Device
    model_revision: str = ""


def run_upscale(
    request: GenerationRequest,
    picture: Image.Image,
    *,
    on_step: Callable[[ProgressUpdate], None],
    cancelled: threading.Event,
    redrawing: LoadedPipeline | None = None,
) -> GeneratedImage:
    """The enlarged picture of a resolved request; `redrawing` where it asks for detail.

    Raises GenerationCancelled within one window, or one tile of a network.
    """
    assert request.width and request.height  # noqa: S101 - the request is resolved
    started = time.perf_counter()
    size = (request.width // request.scale, request.height // request.scale)
    small = resize_to_fit(
        flatten_alpha(picture, request.fill_color), size, request.resize_mode, request.fill_color
    )
    if cancelled.is_set():
        raise GenerationCancelled("Stopped.")
    if redrawing is None:
        pace = EtaEstimator()
        image = upscale_image(
            *(small, request.scale, request.upscaler),
            on_tile=lambda done, total: on_step(pace.step(done, total)),
            cancelled=cancelled,
        )
    else:
        image = _upscale_diffusion(request, small, redrawing, on_step, cancelled)
    return GeneratedImage(
        request=request,
        enhanced_prompt=request.prompt,
        generation_time=time.perf_counter() - started,
        device=redrawing.device.name if redrawing else "cpu",
        dtype=redrawing.device.dtype if redrawing else "float32",
        model_revision=redrawing.model_revision if redrawing else "",
        image=image,
    )


def _upscale_diffusion(
    request: GenerationRequest,
    small: Image.Image,
    redrawing: LoadedPipeline,
    on_step: Callable[[ProgressUpdate], None],
    cancelled: threading.Event,
) -> Image.Image:
    """The picture enlarged plainly, then drawn anew at the model's own size, part by part."""
    pipeline, spec = redrawing.pipeline, redrawing.spec
    if getattr(pipeline, "unet", None) is None:
        raise InvalidInput("upscaler", "detail", f"lanczos or a network with {spec.key}")
    larger = upscale_image(small, request.scale, "lanczos")
    size = round_up_size(pipeline, larger.size)
    number = tile_count(size, spec.resolution, pipeline.vae_scale_factor)
    windows = TileProgress(pipeline, number, on_step, cancelled)
    passes = deepcache.cache_schedule(PRESETS[request.preset], request.step_counts[1])
    forwards = deepcache.make_forwards(pipeline.unet, passes, number)
    with tiled_pipeline(pipeline, spec.resolution, forwards, windows):
        [made] = generate(
            pipeline,
            # What the mode keeps from step to step, each window keeps for itself.
            replace(request, preset="quality"),
            spec=spec,
            device=redrawing.device,
            on_step=windows.on_step,
            cancelled=cancelled,
            pictures={"image": larger},
        )
    assert made.image is not None  # noqa: S101 - it was just made
    return made.image


class EtaEstimator:
    """How long the rest of many equal parts takes, from the first that was told on."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None

    def step(self, done: int, total: int, preview: Image.Image | None = None) -> ProgressUpdate:
        """So many parts are done."""
        now, left = time.perf_counter(), None
        if self._first is None:
            self._first = done, now
        elif done > self._first[0]:
            left = (now - self._first[1]) / (done - self._first[0]) * (total - done)
        return ProgressUpdate(done, total, seconds_left=left, preview=preview)


class TileProgress:
    """Tells progress in windows, of which every step of a large picture has so many."""

    def __init__(
        self,
        pipeline: Any,
        number: int,
        on_step: Callable[[ProgressUpdate], None],
        cancelled: threading.Event,
    ) -> None:
        self._pipeline = pipeline
        self._number = number
        self._on_step = on_step
        self._cancelled = cancelled
        self._pace = EtaEstimator()

    def __call__(self, done: int) -> None:
        """One more window is done; raises GenerationCancelled when the job was stopped."""
        if self._cancelled.is_set():
            raise GenerationCancelled("Stopped.")
        if done % self._number:  # the last one of a step is told with the step
            self._tell(done)

    def on_step(self, step: ProgressUpdate) -> None:
        """A step of the whole picture is done."""
        self._tell(step.step * self._number, step.preview)

    def _tell(self, done: int, preview: Image.Image | None = None) -> None:
        total = self._pipeline.num_timesteps * self._number
        self._on_step(self._pace.step(done, total, preview))
