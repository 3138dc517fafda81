"""Plans and downloads models, finds the ones on disk, and keeps the licences that people agreed to before."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from canvas.catalog import ModelSpec, is_local_source, split_source
from canvas.errors import (
    CanvasError,
    ConsentRequired,
    DiskFull,
    HubOffline,
    LazyMessage,
    ModelCorrupted,
    ModelGated,
    ModelNotFound,
)
from canvas.files import atomic_write
from canvas.models import hub_cache, pipeline_files, single_file
from canvas.models.capabilities import adapt_spec, read_capabilities
from canvas.models.hub_client import Hub, call

RATE_SECONDS = 10.0
COMPONENT_FILES = frozenset({"config.json", "diffusion_pytorch_model.safetensors"})
LICENCES_FILE = "licences.json"  # in the data folder


@dataclass(frozen=True)
class LocalModel:
    """A model on disk: a diffusers folder or one `.safetensors` file.

    `components` are the folders or files of those from other sources.
    """

    path: Path
    repo_id: str
    revision: str = ""
    components: tuple[tuple[str, Path], ...] = ()

    @property
    def cache_folder(self) -> Path | None:
        """The folder of the repository in the Hub cache; None for a model outside of it."""
        return self.path.parent.parent if self.path.parent.name == "snapshots" else None

    def component(self, name: str) -> Path | None:
        """Where a component comes from if that is not the model's own folder."""
        return dict(self.components).get(name)

    @property
    def variant(self) -> str | None:
        """The `variant` for `from_pretrained`: "fp16" if there are no other weights."""
        if self.path.is_file():
            return None
        return pipeline_files.select_local_files(self.path, without=dict(self.components)).weights.variant


@dataclass(frozen=True)
class PlannedFile:
    """A file of a repository; `etag` is its SHA-256, or its git object ID if it is not in LFS."""

    path: str
    size: int
    etag: str = ""


@dataclass(frozen=True)
class DownloadPlan:
    """The files of one commit to download; `missing_bytes` are not in the cache, even in part.

    `components`: the plans of those from other repositories, which the bytes include.
    """

    repo_id: str
    revision: str
    files: tuple[PlannedFile, ...]
    total_bytes: int
    missing_bytes: int
    free_bytes: int
    components: tuple[tuple[str, DownloadPlan], ...] = ()


@dataclass(frozen=True)
class DownloadProgress:
    """`bytes_done` includes what was cached before; the rate covers the last ten seconds."""

    bytes_done: int
    bytes_total: int
    bytes_per_second: float
    seconds_left: float | None
    label: str = ""  # the repository, unless it is the model's


@dataclass(frozen=True)
class DownloadResult:
    """A finished download; `bytes` and `file_count` do not count what was already in the cache."""

    local: LocalModel
    bytes: int
    file_count: int
    seconds: float


def find_local(spec: ModelSpec, *, hub: Hub | None = None) -> LocalModel | None:
    """The model if it is complete on disk, from any of its repositories; makes no request."""
    hub = hub or Hub()
    components = _find_components(hub, spec)
    if components is None:
        return None
    if spec.is_local:
        path = Path(spec.name)
        try:
            _check_local(path, spec)
        except (ModelCorrupted, ModelNotFound):
            return None
        return LocalModel(path, spec.name, components=components)
    for repo_id in spec.sources:
        for folder in hub_cache.snapshots(hub, repo_id):
            tree = hub_cache.cached_tree(hub, repo_id, folder.name)
            if pipeline_files.is_complete(folder, tree, without=dict(spec.components)):
                return LocalModel(folder, repo_id, folder.name, components)
    return None


def plan_download(spec: ModelSpec, *, hub: Hub | None = None, cancelled: threading.Event | None = None) -> DownloadPlan:
    """Plan the download from the first repository that has the model.

    The files do not depend on the device, so their bytes are known before it is. Raises
    ModelUnavailable.
    """
    hub = hub or Hub()
    if spec.is_local:
        _check_local(Path(spec.name), spec)
        return _with_components(hub, spec, DownloadPlan(spec.name, "", (), 0, 0, hub_cache.free_bytes(hub)), cancelled)
    errors: dict[str, CanvasError] = {}
    for repo_id in spec.sources:
        try:
            listing = call(hub, {"action": "list", "repo_id": repo_id}, cancelled=cancelled)
            index = pipeline_files.parse_index(listing["index"], repo_id)
            read_capabilities(index, {}, repo_id)  # refuses what does not run before a byte is fetched
            selection = pipeline_files.select_files(
                listing["files"], index, half_precision=spec.half_precision, without=dict(spec.components)
            )
            return _with_components(hub, spec, _plan(hub, repo_id, listing, selection.files), cancelled)
        except (ModelNotFound, ModelGated, ModelCorrupted) as error:
            errors[repo_id] = error
        except HubOffline as error:
            raise HubOffline(_offline_message(hub, spec, error)) from error
    raise _combine_errors(errors)


def complete_spec(spec: ModelSpec, *, hub: Hub | None = None) -> ModelSpec:
    """The entry with the defaults of the model where it has none of its own.

    Asks the Hub if the model is not on disk. Raises ModelUnavailable for what does not run here.
    """
    if not spec.unset:
        return spec
    hub = hub or Hub()
    local = find_local(spec, hub=hub)
    if local is not None:
        return adapt_spec(spec, single_file.read_local(local.path, spec.name))
    if spec.is_local:
        return spec
    listing = call(hub, {"action": "list", "repo_id": spec.name})
    return adapt_spec(spec, read_capabilities(pipeline_files.parse_index(listing["index"], spec.name), {}, spec.name))


def plan_files(
    hub: Hub, repo_id: str, select: Callable[[Iterable[str]], Iterable[str]], cancelled: threading.Event | None = None
) -> DownloadPlan:
    """Plan the download of the files that `select` returns for the names of all files.

    Raises ModelUnavailable.
    """
    listing = call(hub, {"action": "list", "repo_id": repo_id}, cancelled=cancelled)
    selected = list(select(listing["files"]))
    if missing := [name for name in selected if name not in listing["files"]]:
        raise ModelCorrupted(f"{repo_id} no longer contains {', '.join(missing)}.")
    return _plan(hub, repo_id, listing, selected)


def download(
    spec: ModelSpec,
    plan: DownloadPlan,
    on_progress: Callable[[DownloadProgress], None],
    cancelled: threading.Event,
    *,
    hub: Hub | None = None,
) -> DownloadResult:
    """Download the files of a model; see `download_files`."""
    hub = hub or Hub()
    started = time.monotonic()
    count = len(_missing_files(hub, plan.repo_id, plan.revision, plan.files))
    _check_disk_space(hub, spec.key, plan.missing_bytes)
    done = 0
    for _, part in plan.components:
        count += len(_missing_files(hub, part.repo_id, part.revision, part.files))
        download_files(hub, part, _part_of(plan, done, on_progress), cancelled)
        done += part.total_bytes
    folder = Path(spec.name)
    if plan.files:
        folder = download_files(hub, plan, _part_of(plan, done, on_progress), cancelled, model_key=spec.key)
        tree = {file.path: file.size for file in plan.files}
        if not pipeline_files.is_complete(folder, tree, without=dict(spec.components)):
            raise ModelCorrupted(f"{plan.repo_id} was downloaded but is not a complete pipeline.")
    components = _find_components(hub, spec)
    if components is None:
        raise ModelCorrupted(f"The components of {spec.key} were downloaded but are not complete.")
    local = LocalModel(folder, plan.repo_id, plan.revision, components)
    return DownloadResult(local, plan.missing_bytes, count, time.monotonic() - started)


def _part_of(
    plan: DownloadPlan, done_before: int, on_progress: Callable[[DownloadProgress], None]
) -> Callable[[DownloadProgress], None]:
    """Reports the progress of one repository as that of the whole plan."""

    def report(part: DownloadProgress) -> None:
        done, rate = done_before + part.bytes_done, part.bytes_per_second
        left = (plan.total_bytes - done) / rate if rate else None
        on_progress(replace(part, bytes_done=done, bytes_total=plan.total_bytes, seconds_left=left))

    return report


def download_files(
    hub: Hub,
    plan: DownloadPlan,
    on_progress: Callable[[DownloadProgress], None],
    cancelled: threading.Event,
    *,
    model_key: str = "",
) -> Path:
    """Download the planned files, verify their checksums and return the snapshot folder.

    A file that broke off is continued where it ended, also after a crash.

    `on_progress` is called in this thread, up to five times a second. Raises ModelUnavailable.
    """
    etags = {file.etag for file in plan.files}
    hub_cache.remove_partial_files(hub, plan.repo_id, keep=etags)
    missing = _missing_files(hub, plan.repo_id, plan.revision, plan.files)
    _check_disk_space(hub, model_key or plan.repo_id, _missing_bytes(hub, plan.repo_id, missing))
    task = {
        "action": "fetch",
        "repo_id": plan.repo_id,
        "revision": plan.revision,
        "files": {file.path: {"size": file.size, "etag": file.etag} for file in plan.files},
    }
    own_bytes = sum(file.size for file in plan.files)
    meter = ProgressMeter(own_bytes, on_progress, "" if model_key else plan.repo_id)
    try:
        return Path(call(hub, task, on_bytes=meter, cancelled=cancelled)["path"])
    finally:
        hub_cache.remove_partial_files(hub, plan.repo_id, keep=etags)


def model_bytes_on_disk(spec: ModelSpec, *, hub: Hub | None = None) -> int:
    """Bytes that the model takes on disk, including incomplete downloads."""
    if spec.is_local:
        path = Path(spec.name)
        files = [path] if path.is_file() else path.rglob("*")
        return sum(file.stat().st_size for file in files if file.is_file())
    return hub_cache.bytes_on_disk(hub or Hub(), (*spec.sources, *component_repositories(spec)))


def remove(spec: ModelSpec, *, hub: Hub | None = None) -> int:
    """Delete the model, its mirrors and its components from the cache; returns the bytes freed.

    Raises CanvasError for a local model.
    """
    hub = hub or Hub()
    if spec.is_local:
        raise CanvasError(
            f"{spec.name} is a local model and is not deleted by this program. Delete its files yourself."
        )
    before = model_bytes_on_disk(spec, hub=hub)
    hub_cache.delete(hub, (*spec.sources, *component_repositories(spec)))
    return before - model_bytes_on_disk(spec, hub=hub)


def component_repositories(spec: ModelSpec) -> tuple[str, ...]:
    """The Hub repositories of the components from other sources."""
    return tuple(split_source(source)[0] for _, source in spec.components if not is_local_source(source))


def _find_components(hub: Hub, spec: ModelSpec) -> tuple[tuple[str, Path], ...] | None:
    """The components from other sources on disk; None if one is missing."""
    found = []
    for name, source in spec.components:
        path = Path(source) if is_local_source(source) else _find_component(hub, source)
        if path is None or not path.exists():
            return None
        found.append((name, path))
    return tuple(found)


def _find_component(hub: Hub, source: str) -> Path | None:
    repo_id, path = split_source(source)
    for folder in hub_cache.snapshots(hub, repo_id):
        tree = hub_cache.cached_tree(hub, repo_id, folder.name) or {}
        names = [path] if path else [name for name in tree if name in COMPONENT_FILES]
        if names and all(
            (folder / name).is_file() and (folder / name).stat().st_size == tree.get(name) for name in names
        ):
            return folder / path
    return None


def _with_components(
    hub: Hub, spec: ModelSpec, plan: DownloadPlan, cancelled: threading.Event | None = None
) -> DownloadPlan:
    """The plan with those of the components that come from other repositories."""
    parts = [
        (name, _plan_component(hub, source, cancelled))
        for name, source in spec.components
        if not is_local_source(source)
    ]
    return replace(
        plan,
        components=tuple(parts),
        total_bytes=plan.total_bytes + sum(part.total_bytes for _, part in parts),
        missing_bytes=plan.missing_bytes + sum(part.missing_bytes for _, part in parts),
    )


def _plan_component(hub: Hub, source: str, cancelled: threading.Event | None) -> DownloadPlan:
    repo_id, path = split_source(source)
    return plan_files(hub, repo_id, lambda _: [path] if path else sorted(COMPONENT_FILES), cancelled)


class ProgressMeter:
    """Turns byte counts into DownloadProgress."""

    def __init__(self, total: int, on_progress: Callable[[DownloadProgress], None], label: str = "") -> None:
        self._total = total
        self._label = label
        self._on_progress = on_progress
        self._samples: deque[tuple[float, int]] = deque()

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        self._samples.append((now, done))
        while now - self._samples[0][0] > RATE_SECONDS:
            self._samples.popleft()
        seconds, before = now - self._samples[0][0], self._samples[0][1]
        rate = max(0.0, (done - before) / seconds) if seconds else 0.0
        done = min(done, self._total)
        left = (self._total - done) / rate if rate else None
        self._on_progress(DownloadProgress(done, self._total, rate, left, self._label))


def _check_local(path: Path, spec: ModelSpec) -> None:
    if path.is_dir():
        pipeline_files.select_local_files(path, without=dict(spec.components))
    elif path.is_file():
        pipeline_files.check_single_file(path)
    else:
        raise ModelNotFound(f"{path} does not exist. Correct the name of the model.")


def _plan(hub: Hub, repo_id: str, listing: Mapping[str, Any], names: Iterable[str]) -> DownloadPlan:
    revision = listing["revision"]
    files = tuple(PlannedFile(name, **listing["files"][name]) for name in names)
    return DownloadPlan(
        repo_id=repo_id,
        revision=revision,
        files=files,
        total_bytes=sum(file.size for file in files),
        missing_bytes=_missing_bytes(hub, repo_id, _missing_files(hub, repo_id, revision, files)),
        free_bytes=hub_cache.free_bytes(hub),
    )


def _missing_files(hub: Hub, repo_id: str, revision: str, files: Iterable[PlannedFile]) -> list[PlannedFile]:
    return [file for file in files if not hub_cache.has_file(hub, repo_id, revision, file.path, file.etag, file.size)]


def _missing_bytes(hub: Hub, repo_id: str, files: Iterable[PlannedFile]) -> int:
    """Bytes to download for missing files, without the parts that are already there."""
    return sum(file.size - hub_cache.partial_bytes(hub, repo_id, file.etag, file.size) for file in files)


def _check_disk_space(hub: Hub, name: str, needed: int) -> None:
    free = hub_cache.free_bytes(hub)
    if needed > free:
        raise DiskFull(
            LazyMessage(
                "{model} needs {needed}, but the disk of {folder} has only {free} free. Remove a "
                "model, or set HF_HOME to a larger disk.",
                model=name,
                needed=f"{needed / 1e9:.2f} GB",
                folder=hub.cache,
                free=f"{free / 1e9:.2f} GB",
            )
        )


def _offline_message(hub: Hub, spec: ModelSpec, error: CanvasError) -> LazyMessage:
    values: dict[str, object] = {"reason": error.args[0], "model": spec.key}
    if find_local(spec, hub=hub):
        return LazyMessage("{reason} {model} is already downloaded and works offline.", **values)
    if size := model_bytes_on_disk(spec, hub=hub):
        text = "{reason} {model} is only partly downloaded ({size})."
        return LazyMessage(text, size=f"{size / 1e6:.0f} MB", **values)
    return LazyMessage("{reason} {model} is not downloaded yet.", **values)


def _combine_errors(errors: dict[str, CanvasError]) -> CanvasError:
    """One error for all repositories, of the class that helps the user most."""
    classes = (ModelGated, ModelCorrupted, ModelNotFound)
    first = next(error for kind in classes for error in errors.values() if isinstance(error, kind))
    tried = f" Tried: {', '.join(errors)}." if len(errors) > 1 else ""
    reasons = " ".join(str(error) for error in errors.values())
    return type(first)(f"{reasons}{tried} Choose another model.")


class AcceptedLicences:
    """Addresses of licences that were agreed to before a download, in the data folder; thread-safe."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LICENCES_FILE
        self._lock = threading.Lock()

    def accepts(self, spec: ModelSpec) -> bool:
        """Whether the model needs no agreement, or has it."""
        return not spec.terms or spec.terms in self._read()

    def accept(self, spec: ModelSpec) -> None:
        """Record the agreement to the model's licence, if it needs one. Raises OSError."""
        with self._lock:
            if self.accepts(spec):
                return
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self._path) as file:
                file.write(json.dumps(sorted({*self._read(), spec.terms}), indent=1).encode())

    def check(self, spec: ModelSpec) -> None:
        """Raise ConsentRequired if the model must not be downloaded yet."""
        if not self.accepts(spec):
            text = (
                "The model {model} has a licence with conditions ({license}): read {terms}. To agree, use the Models "
                'tab, --accept-terms on the command line, or "accept_terms": true in a request to '
                "/v1/images/generations."
            )
            raise ConsentRequired(LazyMessage(text, model=spec.key, license=spec.license, terms=spec.terms))

    def _read(self) -> set[str]:
        try:
            stored = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return set()  # missing or damaged: people are asked again
        return {item for item in stored if isinstance(item, str)} if isinstance(stored, list) else set()
