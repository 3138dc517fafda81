"""Replaces the `.bin` weights of downloaded models by safetensors files with the same tensors."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
from itertools import groupby
from pathlib import Path
from typing import Any

from canvas.errors import ModelCorrupted
from canvas.models import pipeline_files
from canvas.models.download import LocalModel

logger = logging.getLogger(__name__)

MIN_FREE_BYTES = 2_000_000_000  # that a new file must leave on the disk
LOCK_FILE = "bin_weights.lock"


def replace_bin_weights(local: LocalModel) -> None:
    """Replace the weights in the Hub cache; nothing changes if that fails.

    The model then loads faster, from mapped files, and takes the disk space of its download. The
    user's own folders are not touched. Workers that load the same model wait here.
    """
    from filelock import FileLock
    from safetensors import SafetensorError

    if local.cache_folder is None or not pipeline_files.bin_weights(local.path):
        return
    try:
        with FileLock(local.cache_folder / LOCK_FILE):
            # The copies that version 0.2 made beside the `.bin` files, one for each dtype
            for copy in local.cache_folder.glob(f"converted/{local.path.name}-*"):
                if "openvino" not in copy.name:
                    shutil.rmtree(copy)
            for _, names in groupby(pipeline_files.bin_weights(local.path), lambda name: name.partition("/")[0]):
                _replace(local.path, list(names))
    # A read-only cache or full disk; for a damaged file, loading the model raises the error.
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        logger.warning("Cannot convert %s to safetensors: %s", local.repo_id, error)
    except ModelCorrupted as error:
        logger.warning("%s", error)


def _replace(folder: Path, names: list[str]) -> None:
    """Write the safetensors files of a component, the index of its shards last, then delete the others."""
    for name in sorted(names, key=lambda each: each.endswith(".json")):
        source, target = folder / name, folder / pipeline_files.safetensors_name(name)
        if name.endswith(".json"):
            index = json.loads(source.read_text(encoding="utf-8"))
            weight_map = {key: pipeline_files.safetensors_name(file) for key, file in index["weight_map"].items()}
            target.write_text(json.dumps({**index, "weight_map": weight_map}), encoding="utf-8")
        else:
            _convert(source, target)
    for name in names:
        blob = (folder / name).resolve()
        (folder / name).unlink()
        if not any(path.resolve() == blob for path in folder.parent.glob(f"*/{name}")):  # in other commits
            blob.unlink(missing_ok=True)


def _convert(source: Path, target: Path) -> None:
    from safetensors.torch import save_file

    if shutil.disk_usage(source.parent).free < source.stat().st_size + MIN_FREE_BYTES:
        raise OSError("the disk is nearly full")
    part = target.with_name(f"{target.name}.part")
    try:
        save_file(_load(source), part, {"format": "pt"})
        os.replace(part, target)
        pipeline_files.check_single_file(target)
    finally:
        part.unlink(missing_ok=True)


def _load(path: Path) -> dict[str, Any]:
    """The tensors, each with a memory of its own, as safetensors requires."""
    import torch

    options: dict[str, Any] = {"map_location": "cpu", "weights_only": True}
    try:
        loaded = torch.load(path, mmap=True, **options)
    except RuntimeError:  # a file of torch before 1.6 cannot be mapped
        loaded = torch.load(path, **options)
    found: dict[str, Any] = {}
    addresses: set[int] = set()
    for name, tensor in loaded.items():
        if isinstance(tensor, torch.Tensor):
            address = tensor.untyped_storage().data_ptr()
            found[name] = tensor.clone() if address in addresses else tensor.contiguous()
            addresses.add(address)
    return found
