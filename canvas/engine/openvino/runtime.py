"""The openvino package without its telemetry, one `Core` for the process, and graphs compiled for the shapes in use."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canvas.engine.device import Device

if TYPE_CHECKING:
    import torch

COMPILED_DIR = "compiled"
# Each size is compiled separately, with its own copy of the weights, because a graph for all
# sizes is 5 % slower. Up to so many sizes are kept, and one of a larger model.
MAX_SIZES, MAX_BYTES = 4, 400_000_000


def is_installed() -> bool:
    """Whether openvino can be imported; does not import it."""
    return find_spec("openvino") is not None


def import_openvino() -> Any:
    """The package; raises ImportError.

    openvino and nncf report usage to Google Analytics unless the package openvino_telemetry
    cannot be imported.
    """
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino

    return openvino


@lru_cache(maxsize=1)
def core() -> Any:
    """The process's `openvino.Core`."""
    return import_openvino().Core()


def compile_config(device: Device) -> dict[str, Any]:
    """The properties with which graphs are compiled for the device."""
    import torch

    bfloat16 = device.dtype == "bfloat16" and "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "ENABLE_CPU_PINNING": False,  # worker processes would be pinned to the same cores
        "CACHE_MODE": "OPTIMIZE_SIZE",  # without a second copy of the weights
    }


class Graph:
    """The graph of a file, compiled for each set of input shapes that is used."""

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        itemsize = 2 if config["INFERENCE_PRECISION_HINT"] == "bf16" else 4
        self.num_bytes = path.with_suffix(".bin").stat().st_size * itemsize // 2  # in memory
        self._path = path
        self._config = {**config, "CACHE_DIR": str(path.parent / COMPILED_DIR)}
        self._requests: OrderedDict[tuple[tuple[int, ...], ...], Any] = OrderedDict()

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The outputs in float32; a small model computes a batch at once."""
        import torch

        if len(inputs[0]) > 1 and self.num_bytes > MAX_BYTES:
            count = len(inputs[0])
            parts = [self(*(each[i : i + 1] if len(each) == count else each for each in inputs)) for i in range(count)]
            return tuple(torch.cat(outputs) for outputs in zip(*parts, strict=True))
        arrays = [each.detach().to(torch.float32).contiguous().numpy() for each in inputs]
        result = self.compiled(tuple(each.shape for each in arrays)).infer(arrays, share_inputs=True)
        return tuple(torch.from_numpy(result[index]) for index in range(len(result)))

    def release(self) -> None:
        """Free the memory of the compiled sizes."""
        self._requests.clear()

    def compiled(self, shapes: tuple[tuple[int, ...], ...]) -> Any:
        """The `InferRequest` for these shapes of the inputs."""
        if shapes not in self._requests:
            keep = MAX_SIZES if self.num_bytes <= MAX_BYTES else 1
            while len(self._requests) >= keep:
                self._requests.popitem(last=False)
            model = core().read_model(str(self._path))
            model.reshape(dict(enumerate(map(list, shapes))))
            self._requests[shapes] = core().compile_model(model, "CPU", self._config).create_infer_request()
        self._requests.move_to_end(shapes)
        return self._requests[shapes]
