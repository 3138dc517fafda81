"""The openvino package: imported without its telemetry, and one `Core` for the process."""

from __future__ import annotations

import sys
from functools import lru_cache
from importlib import metadata
from importlib.util import find_spec
from typing import Any

from canvas.engine.device import Device


def is_installed() -> bool:
    """Whether the package can be imported; does not import it."""
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


def version() -> str:
    """For example 2026.4.1; does not import the package."""
    return metadata.version("openvino")


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
