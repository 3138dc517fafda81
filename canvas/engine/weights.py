"""The weight files of a model folder: which will be read, and how much memory they take."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

INDEX = "model_index.json"
HALF = ".fp16."
# Parts that are never loaded, and so never counted.
NOT_LOADED = ("safety_checker",)


def read_index(folder: Path) -> dict[str, Any]:
    """The pipeline's parts by name; raises OSError or ValueError if there is no readable index."""
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    if not isinstance(index, dict):
        raise ValueError(f"{INDEX} is not a table")
    return index


def has_half_precision_files(folder: Path) -> bool:
    """Whether the folder holds the `fp16` variant of any part."""
    return any(HALF in path.name for path in _files(folder))


def estimate_bytes(path: Path, itemsize: int) -> int:
    """Bytes that the weights take in memory with `itemsize` bytes a number.

    Safetensors tell their exact count; of other files the size on disk is taken. What
    cannot be read counts nothing: loading it will say what is wrong.
    """
    files = [path] if path.is_file() else list(_weight_files(path))
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


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*/*") if path.suffix in (".safetensors", ".bin")]


def _weight_files(folder: Path) -> Iterator[Path]:
    """One set of files a part, as diffusers picks them: safetensors first, fp16 first if there."""
    parts: dict[Path, list[Path]] = {}
    for path in _files(folder):
        if path.parent.name not in NOT_LOADED:
            parts.setdefault(path.parent, []).append(path)
    for files in parts.values():
        safe = [path for path in files if path.suffix == ".safetensors"] or files
        half = [path for path in safe if HALF in path.name]
        yield from half or [path for path in safe if ".non_ema" not in path.name]


def _estimate_file(path: Path, itemsize: int) -> int:
    if path.suffix != ".safetensors":
        return path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, 100_000_000)))
        return sum(
            math.prod(tensor["shape"]) * itemsize
            for name, tensor in header.items()
            if name != "__metadata__"
        )
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError):
        return 0
