"""Single files of a repository on the Hub: what they take, and fetching them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from canvas.engine import hub_cache
from canvas.engine.downloads import DownloadProgress, Meter
from canvas.engine.hub import Hub, ask
from canvas.errors import DiskFull, ModelBroken


@dataclass(frozen=True)
class HubFiles:
    """Files of one commit of a repository, with their sizes and digests."""

    repo_id: str
    revision: str
    files: Mapping[str, Mapping[str, Any]]

    @property
    def size(self) -> int:
        """Bytes of all of them."""
        return sum(file["size"] for file in self.files.values())


def look_up(
    hub: Hub,
    repo_id: str,
    choose: Callable[[Iterable[str]], Iterable[str]],
    cancelled: threading.Event | None = None,
) -> HubFiles:
    """The files that `choose` picks of all names; raises a kind of ModelUnavailable."""
    listed = ask(hub, {"do": "list", "repo_id": repo_id}, cancelled=cancelled)
    wanted = list(choose(listed["files"]))
    if lacking := [name for name in wanted if name not in listed["files"]]:
        raise ModelBroken(f"{repo_id} does not hold {', '.join(lacking)} any more.")
    files = {name: listed["files"][name] for name in wanted}
    return HubFiles(repo_id, listed["revision"], files)


def fetch(
    hub: Hub,
    wanted: HubFiles,
    on_progress: Callable[[DownloadProgress], None],
    cancelled: threading.Event,
) -> Path:
    """Download them; returns the folder of the commit."""
    if wanted.size > (free := hub_cache.free_bytes(hub)):
        raise DiskFull(
            f"{wanted.repo_id} needs {wanted.size / 1e9:.2f} GB, the disk of {hub.cache} has "
            f"{free / 1e9:.2f} GB free."
        )
    task = {"do": "fetch", "repo_id": wanted.repo_id, "revision": wanted.revision}
    files = {name: dict(file) for name, file in wanted.files.items()}
    meter = Meter(wanted.size, on_progress, wanted.repo_id)
    answer = ask(hub, {**task, "files": files}, on_bytes=meter, cancelled=cancelled)
    return Path(answer["path"])
