"""How much memory the weights of a model take, before and after they are loaded."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any


def estimate_bytes(files: list[Path], itemsize: int) -> int:
    """Bytes that the weights in those files take in memory with `itemsize` bytes a number.

    Safetensors tell their exact count; of other files the size on disk is taken. What
    cannot be read counts nothing: loading it will say what is wrong.
    """
    return sum(_estimate_file(file, itemsize) for file in files)


def bytes_in_memory(pipeline: Any) -> int:
    """Bytes of all parameters and buffers of a pipeline, shared ones counted once."""
    import torch

    tensors = {
        tensor.data_ptr(): tensor.nbytes
        for part in pipeline.components.values()
        if isinstance(part, torch.nn.Module)
        for tensor in (*part.parameters(), *part.buffers())
    }
    return sum(tensors.values())


def _estimate_file(path: Path, itemsize: int) -> int:
    if path.suffix == ".bin":
        return path.stat().st_size
    if path.suffix != ".safetensors":
        return 0
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, path.stat().st_size)))
        return sum(
            math.prod(tensor["shape"]) * itemsize
            for name, tensor in header.items()
            if name != "__metadata__"
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 0
