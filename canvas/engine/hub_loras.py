"""LoRAs of the Hub, by `owner/name` or `owner/name:file.safetensors`."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from canvas.engine import hub_cache, hub_files
from canvas.engine.downloads import DownloadProgress
from canvas.engine.hub import Hub
from canvas.engine.hub_files import HubFiles
from canvas.errors import InvalidInput

NAME = re.compile(r"(?P<repo_id>[\w-][\w.-]*/[\w-][\w.-]*)(?::(?P<file>[^:<>\\]+\.safetensors))?")
USUAL = "pytorch_lora_weights.safetensors"  # what diffusers' trainers write


def is_hub_name(name: str) -> bool:
    """Whether a LoRA is named by its place on the Hub, and not by a file of the folder."""
    return NAME.fullmatch(name) is not None


def find(name: str, *, hub: Hub | None = None) -> Path | None:
    """The file on this disk; asks no network."""
    hub = hub or Hub()
    repo_id, file = _parts(name)
    for folder in hub_cache.snapshots(hub, repo_id):
        present = [path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors")]
        if file in present:
            return folder / file
        if file is None and present:
            return folder / _chosen(name, present)
    return None


def look_up(
    name: str, *, hub: Hub | None = None, cancelled: threading.Event | None = None
) -> HubFiles:
    """What fetching it takes; raises InvalidInput where a file has to be named."""
    repo_id, file = _parts(name)

    def choose(names: Iterable[str]) -> list[str]:
        return [file or _chosen(name, [each for each in names if each.endswith(".safetensors")])]

    return hub_files.look_up(hub or Hub(), repo_id, choose, cancelled)


def fetch(
    name: str,
    on_progress: Callable[[DownloadProgress], None],
    cancelled: threading.Event,
    *,
    hub: Hub | None = None,
) -> Path:
    """Download the one file; raises a kind of ModelUnavailable, or InvalidInput as `look_up`."""
    wanted = look_up(name, hub=hub, cancelled=cancelled)
    [file] = wanted.files
    return hub_files.fetch(hub or Hub(), wanted, on_progress, cancelled) / file


def _parts(name: str) -> tuple[str, str | None]:
    match = NAME.fullmatch(name)
    if match is None:
        raise InvalidInput("loras", name, "owner/name or owner/name:file.safetensors")
    return match["repo_id"], match["file"]


def _chosen(name: str, files: list[str]) -> str:
    if not files:
        raise InvalidInput(
            "loras", name, "a repository with a .safetensors file; others may hold programs"
        )
    if USUAL in files:
        return USUAL
    if len(files) > 1:
        shown = ", ".join(sorted(files)[:8])
        raise InvalidInput("loras", name, f"one of its files after a colon: {shown}")
    return files[0]
