"""Runs upscale requests: with Lanczos or a super-resolution model, or by tiled diffusion."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from canvas.catalog import ModelSpec
from canvas.engine.controlnet import Controls
from canvas.engine.device import Device
from canvas.engine.generate import generate
from canvas.engine.image_io import flatten_alpha, resize_to_fit
from canvas.engine.model_effects import capabilities_of
from canvas.engine.multidiffusion import tile_count, tiled_pipeline
from canvas.engine.openvino.engine import engine_name
from canvas.engine.optimizations import deepcache
from canvas.engine.references import NO_REFERENCES, References
from canvas.engine.step_callback import raise_if_cancelled
from canvas.engine.super_resolution import upscale_image
from canvas.engine.work_area import whole_area
from canvas.errors import InvalidInput, LazyMessage
from canvas.presets import PRESETS
from canvas.request import GeneratedImage, GenerationRequest, ProgressUpdate


@dataclass(frozen=True)
class LoadedPipeline:
    """A diffusers pipeline with its model and device, and the ControlNets of the request."""

    pipeline: Any
    spec: ModelSpec
    device: Device
    model_revision: str = ""
    controlnets: tuple[Any, ...] = ()


def run_upscale(
    request: GenerationRequest,
    image: Image.Image,
    *,
    on_step: Callable[[ProgressUpdate], None],
    cancelled: threading.Event,
    model: LoadedPipeline | None = None,
    controls: Controls | None = None,
    references: References = NO_REFERENCES,
) -> GeneratedImage:
    """Upscale the image of a resolved request; `model` is for the upscaler `detail`.

    Raises GenerationCancelled within one tile.
    """
    started = time.perf_counter()
    width, height = (side // request.scale for side in request.size)
    image = flatten_alpha(image, request.fill_color)
    image = resize_to_fit(image, (width, height), request.resize_mode, request.fill_color)
    raise_if_cancelled(cancelled)
    if model is None:
        progress = EtaEstimator()
        upscaled = upscale_image(
            *(image, request.scale, request.upscaler),
            on_tile=lambda done, total: on_step(progress.update(done, total)),
            cancelled=cancelled,
        )
    else:
        upscaled = _upscale_diffusion(request, image, model, on_step, cancelled, controls, references)
    device = model.device if model else Device("cpu", "float32", "")
    return GeneratedImage(
        request=request,
        enhanced_prompt=request.prompt,
        generation_time=time.perf_counter() - started,
        device=device.name,
        dtype=device.dtype,
        model_revision=model.model_revision if model else "",
        engine=engine_name(model.pipeline) if model else "",
        image=upscaled,
    )


def _upscale_diffusion(
    request: GenerationRequest,
    image: Image.Image,
    model: LoadedPipeline,
    on_step: Callable[[ProgressUpdate], None],
    cancelled: threading.Event,
    controls: Controls | None,
    references: References,
) -> Image.Image:
    """Upscale with Lanczos, then redraw the image in tiles of the model's resolution."""
    pipeline, spec = model.pipeline, model.spec
    if getattr(pipeline, "unet", None) is None:
        message = LazyMessage("The model {model} does not support upscaling.", model=spec.key)
        raise InvalidInput("upscaler", request.upscaler, message=message)
    upscaled = upscale_image(image, request.scale, "lanczos")
    work_size = whole_area(upscaled.size, capabilities_of(pipeline, spec.name).size_step).size
    num_tiles = tile_count(work_size, spec.resolution, pipeline.vae_scale_factor)
    progress = TileProgress(pipeline, num_tiles, on_step, cancelled)
    schedule = deepcache.cache_schedule(PRESETS[request.preset], request.step_counts[1])
    forwards = deepcache.make_forwards(pipeline.unet, schedule, num_tiles)
    with tiled_pipeline(pipeline, spec.resolution, forwards, progress.on_tile):
        [result] = generate(
            pipeline,
            replace(request, preset="quality"),  # each tile has its own DeepCache
            spec=spec,
            device=model.device,
            on_step=progress.on_step,
            cancelled=cancelled,
            images={"image": upscaled},
            controls=controls,
            references=references,
        )
    assert result.image is not None  # noqa: S101 - it has just been generated
    return result.image


class EtaEstimator:
    """Estimates the remaining time of many equal steps from the first reported one on."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None

    def update(self, done: int, total: int, preview: Image.Image | None = None) -> ProgressUpdate:
        """The progress after `done` of `total` steps."""
        now, left = time.perf_counter(), None
        if self._first is None:
            self._first = done, now
        elif done > self._first[0]:
            left = (now - self._first[1]) / (done - self._first[0]) * (total - done)
        return ProgressUpdate(done, total, seconds_left=left, preview=preview)


class TileProgress:
    """Reports progress in tiles; every denoising step of a large image has `num_tiles`."""

    def __init__(
        self, pipeline: Any, num_tiles: int, on_step: Callable[[ProgressUpdate], None], cancelled: threading.Event
    ) -> None:
        self._pipeline = pipeline
        self._num_tiles = num_tiles
        self._on_step = on_step
        self._cancelled = cancelled
        self._eta = EtaEstimator()

    def on_tile(self, done: int) -> None:
        """Report a tile; raises GenerationCancelled."""
        raise_if_cancelled(self._cancelled)
        if done % self._num_tiles:  # the last tile of a step is reported by on_step
            self._report(done)

    def on_step(self, step: ProgressUpdate) -> None:
        """Report a denoising step of the whole image."""
        self._report(step.step * self._num_tiles, step.preview)

    def _report(self, done: int, preview: Image.Image | None = None) -> None:
        self._on_step(self._eta.update(done, self._pipeline.num_timesteps * self._num_tiles, preview))
