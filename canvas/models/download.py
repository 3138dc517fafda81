"""What a model needs from the Hub, how many bytes that is, and fetching it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from canvas.catalog import ModelSpec
from canvas.errors import (
    CanvasError,
    DiskFull,
    HubOffline,
    LazyMessage,
    ModelCorrupted,
    ModelGated,
    ModelNotFound,
)
from canvas.models import hub_cache, pipeline_files
from canvas.models.hub_client import Hub, call


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


def resolve_files(
    hub: Hub,
    repo_id: str,
    choose: Callable[[Iterable[str]], Iterable[str]],
    cancelled: threading.Event | None = None,
) -> HubFiles:
    """The files that `choose` picks of all names; raises a kind of ModelUnavailable."""
    listed = call(hub, {"do": "list", "repo_id": repo_id}, cancelled=cancelled)
    wanted = list(choose(listed["files"]))
    if lacking := [name for name in wanted if name not in listed["files"]]:
        raise ModelCorrupted(f"{repo_id} does not hold {', '.join(lacking)} any more.")
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
    meter = ProgressMeter(wanted.size, on_progress, wanted.repo_id)
    answer = call(hub, {**task, "files": files}, on_bytes=meter, cancelled=cancelled)
    return Path(answer["path"])


RATE_SECONDS = 10.0


@dataclass(frozen=True)
class LocalModel:
    """A model on this disk: a diffusers folder or one `.safetensors` file."""

    path: Path
    repo_id: str
    revision: str = ""

    @property
    def variant(self) -> str | None:
        """What from_pretrained takes as `variant`: "fp16" where there are only such weights."""
        if self.path.is_file():
            return None
        return pipeline_files.selection_in(self.path).edition.variant


@dataclass(frozen=True)
class PlannedFile:
    """One file of a repository; `digest` is "sha256:…" or, for small files, "git:…"."""

    path: str
    size: int
    digest: str = ""


@dataclass(frozen=True)
class DownloadPlan:
    """Exactly what will be fetched and from where; `missing_bytes` are not in the cache yet."""

    repo_id: str
    revision: str
    files: tuple[PlannedFile, ...]
    total_bytes: int
    missing_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class DownloadProgress:
    """Bytes include what was there before; the rate is that of the last ten seconds."""

    bytes_done: int
    bytes_total: int
    bytes_per_second: float
    seconds_left: float | None
    label: str = ""  # the repository, where it is not that of the model


@dataclass(frozen=True)
class Download:
    """A finished download; `bytes` and `file_count` are what was fetched now."""

    local: LocalModel
    bytes: int
    file_count: int
    seconds: float


def find_local(spec: ModelSpec, *, hub: Hub | None = None) -> LocalModel | None:
    """The model where it is complete on this disk, from any of its sources; asks no network."""
    hub = hub or Hub()
    path = Path(spec.name)
    if spec.is_local:
        return _local_model(spec.name) if _is_usable(path) else None
    for repo_id in spec.sources:
        for folder in hub_cache.snapshots(hub, repo_id):
            if pipeline_files.is_complete(folder, hub_cache.listing(hub, repo_id, folder.name)):
                return LocalModel(folder, repo_id, folder.name)
    return None


def plan_download(
    spec: ModelSpec,
    *,
    half_precision: bool,
    hub: Hub | None = None,
    cancelled: threading.Event | None = None,
) -> DownloadPlan:
    """What to fetch, from the first source that has it; raises a kind of ModelUnavailable.

    With `half_precision` the fp16 files, where the repository has them for every part.
    """
    hub = hub or Hub()
    if spec.is_local:
        _check_local(Path(spec.name))
        return DownloadPlan(spec.name, "", (), 0, 0, hub_cache.free_bytes(hub))
    refusals: dict[str, CanvasError] = {}
    for repo_id in spec.sources:
        try:
            answer = call(hub, {"do": "list", "repo_id": repo_id}, cancelled=cancelled)
            return _plan(hub, repo_id, answer, half_precision)
        except (ModelNotFound, ModelGated, ModelCorrupted) as error:
            refusals[repo_id] = error
        except HubOffline as error:
            raise HubOffline(_offline_message(hub, spec, error)) from error
    raise _combine_errors(refusals)


def download(
    spec: ModelSpec,
    plan: DownloadPlan,
    on_progress: Callable[[DownloadProgress], None],
    cancelled: threading.Event,
    *,
    hub: Hub | None = None,
) -> Download:
    """Fetch the files of the plan and check them; raises a kind of ModelUnavailable.

    `on_progress` is called in this thread, at most some five times a second.
    """
    hub = hub or Hub()
    started = time.monotonic()
    if not plan.files:
        return Download(_local_model(spec.name), 0, 0, 0.0)
    hub_cache.remove_partial_files(hub, plan.repo_id)
    missing = _missing(hub, plan.repo_id, plan.revision, plan.files)
    fetched = sum(file.size for file in missing)
    _check_space(hub, spec, fetched)
    files = {file.path: {"size": file.size, "digest": file.digest} for file in plan.files}
    task = {"do": "fetch", "repo_id": plan.repo_id, "revision": plan.revision, "files": files}
    meter = ProgressMeter(plan.total_bytes, on_progress)
    try:
        answer = call(hub, task, on_bytes=meter, cancelled=cancelled)
    finally:
        hub_cache.remove_partial_files(hub, plan.repo_id)
    folder = Path(answer["path"])
    if not pipeline_files.is_complete(folder, {file.path: file.size for file in plan.files}):
        raise ModelCorrupted(f"{plan.repo_id} was fetched, but does not make a pipeline.")
    local = LocalModel(folder, plan.repo_id, plan.revision)
    return Download(local, fetched, len(missing), time.monotonic() - started)


def model_bytes_on_disk(spec: ModelSpec, *, hub: Hub | None = None) -> int:
    """Bytes that the model takes on this disk, half-finished downloads included."""
    if spec.is_local:
        path = Path(spec.name)
        files = [path] if path.is_file() else path.rglob("*")
        return sum(file.stat().st_size for file in files if file.is_file())
    return hub_cache.bytes_on_disk(hub or Hub(), spec.sources)


def remove(spec: ModelSpec, *, hub: Hub | None = None) -> int:
    """Delete the model and its mirrors from the cache; returns the bytes that became free.

    Raises CanvasError for a folder or file of the user's own.
    """
    hub = hub or Hub()
    if spec.is_local:
        raise CanvasError(f"{spec.name} is a model of your own; delete it there if you want to.")
    freed = model_bytes_on_disk(spec, hub=hub)
    hub_cache.delete(hub, spec.sources)
    return freed - model_bytes_on_disk(spec, hub=hub)


class ProgressMeter:
    """Turns byte counts into progress with a rate."""

    def __init__(
        self, total: int, on_progress: Callable[[DownloadProgress], None], what: str = ""
    ) -> None:
        self._total = total
        self._what = what
        self._on_progress = on_progress
        self._seen: deque[tuple[float, int]] = deque()

    def __call__(self, done: int) -> None:
        """So many bytes are there now."""
        now = time.monotonic()
        self._seen.append((now, done))
        while now - self._seen[0][0] > RATE_SECONDS:
            self._seen.popleft()
        seconds, before = now - self._seen[0][0], self._seen[0][1]
        rate = max(0.0, (done - before) / seconds) if seconds else 0.0
        left = (self._total - done) / rate if rate else None
        done = min(done, self._total)
        self._on_progress(DownloadProgress(done, self._total, rate, left, self._what))


def _local_model(name: str) -> LocalModel:
    return LocalModel(Path(name), name)


def _is_usable(path: Path) -> bool:
    try:
        _check_local(path)
    except (ModelCorrupted, ModelNotFound):
        return False
    return True


def _check_local(path: Path) -> None:
    if path.is_dir():
        pipeline_files.selection_in(path)
    elif path.is_file():
        pipeline_files.check_single_file(path)
    else:
        raise ModelNotFound(f"{path} does not exist; correct the model's name.")


def _plan(hub: Hub, repo_id: str, answer: dict[str, Any], half_precision: bool) -> DownloadPlan:
    listed = answer["files"]
    index = pipeline_files.parse_index(answer["index"], repo_id)
    chosen = pipeline_files.select_files(listed, index, half_precision=half_precision)
    files = tuple(
        PlannedFile(path, listed[path]["size"], listed[path]["digest"]) for path in chosen.files
    )
    missing = _missing(hub, repo_id, answer["revision"], files)
    return DownloadPlan(
        repo_id=repo_id,
        revision=answer["revision"],
        files=files,
        total_bytes=sum(file.size for file in files),
        missing_bytes=sum(file.size for file in missing),
        free_bytes=hub_cache.free_bytes(hub),
    )


def _missing(
    hub: Hub, repo_id: str, revision: str, files: tuple[PlannedFile, ...]
) -> list[PlannedFile]:
    return [
        file
        for file in files
        if not hub_cache.has_file(
            hub, repo_id, revision, file.path, file.digest.partition(":")[2], file.size
        )
    ]


def _check_space(hub: Hub, spec: ModelSpec, needed: int) -> None:
    free = hub_cache.free_bytes(hub)
    if needed > free:
        raise DiskFull(
            LazyMessage(
                "{model} needs {needed}, the disk of {folder} has {free} free: remove a model, or "
                "set HF_HOME to a larger disk.",
                model=spec.key,
                needed=f"{needed / 1e9:.2f} GB",
                folder=hub.cache,
                free=f"{free / 1e9:.2f} GB",
            )
        )


def _offline_message(hub: Hub, spec: ModelSpec, error: CanvasError) -> LazyMessage:
    [reason], size = error.args, model_bytes_on_disk(spec, hub=hub)
    if find_local(spec, hub=hub):
        text = "{reason} {model} is complete on this disk and works without it."
        return LazyMessage(text, reason=reason, model=spec.key)
    if size:
        text = "{reason} Of {model} {size} are on this disk, not enough to work."
        return LazyMessage(text, reason=reason, model=spec.key, size=f"{size / 1e6:.0f} MB")
    return LazyMessage(
        "{reason} Nothing of {model} is on this disk.", reason=reason, model=spec.key
    )


def _combine_errors(refusals: dict[str, CanvasError]) -> CanvasError:
    """One error for all sources: the most helpful kind, and what each of them said."""
    kinds = (ModelGated, ModelCorrupted, ModelNotFound)
    first = next(error for kind in kinds for error in refusals.values() if isinstance(error, kind))
    if len(refusals) == 1:
        return type(first)(f"{first} Pick another model.")
    tried = " ".join(str(error) for error in refusals.values())
    return type(first)(f"{tried} Tried were {', '.join(refusals)}. Pick another model.")
