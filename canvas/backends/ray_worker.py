"""What runs on a node of a Ray cluster: an actor with a LocalBackend that uses the node's own files."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from canvas.backends.base import GenerationTask, ProgressCallback
from canvas.backends.local import LocalBackend, RecordEvent, download_model
from canvas.backends.worker_backend import Message, Worker
from canvas.builtin_models import ASSETS
from canvas.catalog import ModelSpec
from canvas.engine import configure_process, safety, system_info
from canvas.engine.generate import GenerationInputs
from canvas.errors import DownloadCancelled, LazyMessage, ModelNotFound
from canvas.files import atomic_write
from canvas.models import addons, download
from canvas.models.download import DownloadProgress, LocalModel
from canvas.models.hub_client import Hub
from canvas.platform import program_version
from canvas.request import GeneratedImage
from canvas.settings import Settings

PACKAGE = Path(__file__).resolve().parent.parent
APART = ("benchmark", "training")  # not installed everywhere
RECEIVE_TIMEOUT = 10.0  # seconds
Report = Callable[[DownloadProgress], None]


@dataclass(frozen=True)
class WorkerOptions:
    """What an actor gets from the server.

    `settings` are those that concern it. `assets` is the server's folder of that name, `slots` the
    number of actors on the node, and `cores` those of each (None: all of the node).
    """

    settings: dict[str, Any]
    hub: Hub | None
    assets: str
    slots: int
    cores: int | None


def code_version() -> str:
    """The version of the program and a digest of its source, so that two equal ones understand each other."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.relative_to(PACKAGE).parts[0] not in APART:
            digest.update(path.relative_to(PACKAGE).as_posix().encode() + path.read_bytes())
    return f"{program_version()} ({digest.hexdigest()[:8]})"


class RayWorker:
    """The actor; `receive` waits for messages, as Ray Client has no streams."""

    def __init__(self, options: WorkerOptions) -> None:
        configure_process()
        settings = Settings.from_environment(**options.settings)
        self._files = settings.cache_dir / "cluster-files"
        self._outbox: list[Message] = []
        self._changed = threading.Condition()
        num_workers = options.slots
        if options.cores is not None:
            num_workers = max(options.slots, system_info.core_count() // options.cores)
        record_event = partial(self._put, "record")
        backend = NodeBackend(settings, record_event, options.hub, num_workers, options.assets, self._files)
        self._worker = Worker(backend, self._put)
        threading.Thread(target=self._worker.run, daemon=True).start()

    def version(self) -> str:
        return code_version()

    def send(self, message: object) -> None:
        self._worker.put(message)

    def receive(self) -> list[Message]:
        """All messages since the last call; waits for one up to RECEIVE_TIMEOUT."""
        with self._changed:
            self._changed.wait_for(lambda: self._outbox, RECEIVE_TIMEOUT)
            messages, self._outbox = self._outbox, []
            return messages

    def has_file(self, name: str) -> bool:
        return (self._files / name).is_file()

    def put_file(self, name: str, content: bytes) -> None:
        self._files.mkdir(parents=True, exist_ok=True)
        with atomic_write(self._files / name) as file:
            file.write(content)

    def _put(self, kind: str, value: object) -> None:
        with self._changed:
            self._outbox.append((kind, value))
            self._changed.notify_all()


def input_files(inputs: GenerationInputs) -> dict[str, Path]:
    """The files of LoRAs and embeddings by the names that they have on the nodes."""
    paths = [lora.path for lora, _ in inputs.loras] + [embedding.path for embedding in inputs.embeddings]
    return {_name_on_nodes(path): path for path in paths}


def _name_on_nodes(path: Path) -> str:
    status = path.stat()
    return f"{path.stem}-{status.st_size}-{status.st_mtime_ns}{path.suffix}"


def rename_inputs(inputs: GenerationInputs, rename: Callable[[Path], Path]) -> GenerationInputs:
    """The inputs with other paths of LoRAs and embeddings."""
    loras = tuple((replace(lora, path=rename(lora.path)), weight) for lora, weight in inputs.loras)
    embeddings = tuple(replace(embedding, path=rename(embedding.path)) for embedding in inputs.embeddings)
    return replace(inputs, loras=loras, embeddings=embeddings)


class NodeBackend(LocalBackend):
    """A LocalBackend that finds what a task needs on its own node, and downloads what is missing.

    `server_assets` is the server's folder of built-in models.
    """

    def __init__(
        self,
        settings: Settings,
        record_event: RecordEvent,
        hub: Hub | None,
        num_workers: int,
        server_assets: str,
        files: Path,
    ) -> None:
        super().__init__(settings, record_event, hub, num_workers)
        self._server_assets = server_assets
        self._files = files

    def loaded_models(self) -> frozenset[str]:
        """The cache keys as they are on the server."""
        return frozenset(key.replace(str(ASSETS), self._server_assets) for key in super().loaded_models())

    def load(self, spec: ModelSpec, local: LocalModel) -> None:
        spec = self._on_node(spec)
        super().load(spec, self._find_model(spec, lambda **_: None, threading.Event()))

    def unload(self, spec: ModelSpec) -> bool:
        return super().unload(self._on_node(spec))

    def generate(
        self, task: GenerationTask, on_progress: ProgressCallback, cancelled: threading.Event
    ) -> Generator[GeneratedImage]:
        spec, local = self._on_node(task.spec), None
        if task.local is not None:
            local = self._find_model(spec, on_progress, cancelled)
            if addons.missing(task.request.preset, spec, hub=self._hub):
                with self._downloading(on_progress, cancelled) as report:
                    addons.fetch(task.request.preset, spec, report, cancelled, hub=self._hub)
        if self._settings.safety_level == "full" and safety.find_checker(hub=self._hub) is None:
            with self._downloading(on_progress, cancelled) as report:
                safety.fetch_checker(report, cancelled, hub=self._hub)
        inputs = rename_inputs(task.inputs, lambda path: self._files / path.name)
        yield from super().generate(replace(task, spec=spec, local=local, inputs=inputs), on_progress, cancelled)

    def _on_node(self, spec: ModelSpec) -> ModelSpec:
        """The entry with the folder that a built-in model has on this node."""
        return replace(spec, name=spec.name.replace(self._server_assets, str(ASSETS)))

    def _find_model(self, spec: ModelSpec, on_progress: ProgressCallback, cancelled: threading.Event) -> LocalModel:
        """The model on this node, downloaded by one of its actors if it is missing."""
        local = download.find_local(spec, hub=self._hub)
        if local is not None:
            return local
        if spec.is_local:
            text = (
                "{model} is not on the node of the cluster. Put {path} there, too, or on a disk that all nodes share."
            )
            raise ModelNotFound(LazyMessage(text, model=spec.key, path=spec.name))
        with self._downloading(on_progress, cancelled) as report:
            local = download.find_local(spec, hub=self._hub)  # another actor was first
            return local or download_model(spec, self._record_event, report, cancelled, self._hub)

    @contextmanager
    def _downloading(self, on_progress: ProgressCallback, cancelled: threading.Event) -> Iterator[Report]:
        """Let one actor of the node download at a time; raises DownloadCancelled."""
        on_progress(status="downloading")
        self._files.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._files / "download.lock")
        while not lock.is_locked:
            if cancelled.is_set():
                raise DownloadCancelled("The download was cancelled. What has arrived is kept.")
            with suppress(Timeout):
                lock.acquire(timeout=0.2)
        try:
            yield lambda progress: on_progress(download=progress)
        finally:
            lock.release()
