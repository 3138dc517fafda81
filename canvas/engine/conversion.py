"""Weights that were pickled, kept as safetensors in the working precision after the first load."""

from __future__ import annotations

import logging
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canvas.engine import sources
from canvas.errors import ModelBroken

if TYPE_CHECKING:
    from canvas.engine.device import Device
    from canvas.engine.downloads import LocalModel

logger = logging.getLogger(__name__)

FOLDER = "converted"
ROOM_LEFT = 2_000_000_000  # bytes that a copy may not take from the disk


def converted(local: LocalModel, device: Device) -> Path | None:
    """The copy of a model of the Hub in the dtype of the device, where it is whole."""
    folder = _place(local, device)
    if folder is None or not sources.is_complete(folder):
        return None
    try:
        for weights in folder.glob("*/*.safetensors"):
            sources.check_single_file(weights)
    except ModelBroken as error:  # the machine lost power while it was written, say
        logger.warning("The copy is made anew: %s", error)
        shutil.rmtree(folder)
        return None
    return folder


def keep_converted(pipeline: Any, local: LocalModel, device: Device) -> bool:
    """Write a pipeline that was read from `.bin` files as safetensors; whether it was done.

    The copy lies in the repository's own folder of the Hub's cache, so it is counted and
    deleted with it. Models in folders of the user's own are left as they are.
    """
    target = _place(local, device)
    if target is None or sources.selection_in(local.path).edition.format != "bin":
        return False
    try:
        target.parent.mkdir(exist_ok=True)
        needed = sum(path.stat().st_size for path in local.path.glob("*/*.bin"))
        if shutil.disk_usage(target.parent).free < needed + ROOM_LEFT:
            logger.warning("%s stays in .bin files: the disk is nearly full.", local.repo_id)
            return False
        _write(pipeline, target)
    except OSError as error:  # a cache that only others may write to, say; the model works
        logger.warning("%s stays in .bin files: %s", local.repo_id, error)
        return False
    return True


def _write(pipeline: Any, target: Path) -> None:
    """All of it at once: no half copy stands under its final name."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / "made"
        pipeline.save_pretrained(made, safe_serialization=True)
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)


def _place(local: LocalModel, device: Device) -> Path | None:
    """`models--…/converted/REVISION-DTYPE`, beside `models--…/snapshots/REVISION`."""
    if local.path.parent.name != "snapshots" or not local.path.is_dir():
        return None
    return local.path.parent.parent / FOLDER / f"{local.path.name}-{device.dtype}"
