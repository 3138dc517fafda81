"""Backends on the nodes of a Ray cluster: one actor per GPU, or per `cores_per_worker` CPU cores.

The queue, the history and the images stay in this process. `RayWorker` is the actor, with a LocalBackend that
uses the node's own files.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from canvas.backends.base import (
    Backend,
    GenerationTask,
    ProgressCallback,
    WorkerCrashed,
    WorkerRemoved,
    run_in_fresh_thread,
)
from canvas.backends.local import LocalBackend, RecordEvent, download_model
from canvas.backends.worker_backend import Message, Worker, WorkerBackend
from canvas.builtin_models import ASSETS
from canvas.catalog import ModelSpec
from canvas.engine import configure_process, safety, system_info
from canvas.engine.generate import GenerationInputs
from canvas.errors import CanvasError, DownloadCancelled, InvalidInput, LazyMessage, ModelNotFound
from canvas.files import atomic_write
from canvas.models import addons, download
from canvas.models.download import DownloadProgress, LocalModel
from canvas.models.hub_client import Hub
from canvas.platform import program_version
from canvas.request import GeneratedImage
from canvas.settings import Settings

PACKAGE = Path(__file__).resolve().parent.parent
APART = ("benchmark", "training")  # not installed everywhere
REFUSED = (
    "{name} is not used, as its version of Magic Canvas differs: {version}; the server has {own}. Install the same "
    "version on all nodes and restart Ray there."
)
NOT_INSTALLED = "No module named 'canvas"
ENDED = "The worker on {name} ended unexpectedly: {reason}"
POLL_INTERVAL = 1.0  # seconds between looks at the nodes
MAX_REQUESTED = 64  # workers that the autoscaler is asked for
END_TIMEOUT = 2.0  # seconds until Ray reports the end of an actor that was killed
RECEIVE_TIMEOUT = 10.0  # seconds
ACTOR_THREADS = 8  # one of them waits in `receive`
# The settings that concern a worker; the others stay on the server, secrets included.
WORKER_SETTINGS = ("device", "dtype", "engine", "quantization", "offload", "memory_budget")
Report = Callable[[DownloadProgress], None]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Node:
    """An alive node of the cluster; `resources` are its "CPU" and "GPU"."""

    id: str
    name: str
    resources: dict[str, float]


class RayCluster:
    """Keeps a backend for each GPU, or each `cores_per_worker` cores, of the nodes that are alive.

    `on_join` and `on_leave` are called with each backend. With `scale_down_after` the unfinished jobs,
    which `count_jobs` returns, have Ray's autoscaler start nodes, and without jobs for so many
    seconds all workers end, so that it removes them. Raises CanvasError if the cluster cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        hub: Hub | None,
        record_event: RecordEvent,
        on_join: Callable[[Backend], None],
        on_leave: Callable[[Backend], None],
        count_jobs: Callable[[], int],
    ) -> None:
        self._settings = settings
        self._hub = hub
        self._record_event = record_event
        self._on_join = on_join
        self._on_leave = on_leave
        self._count_jobs = count_jobs
        self._requested = 0
        self._last_busy = time.monotonic()
        self._backends: dict[str, list[WorkerBackend]] = {}  # by node
        self._closed = threading.Event()
        run_in_fresh_thread(self._connect)  # in the main thread Ray replaces the handler of SIGTERM
        self._thread = threading.Thread(target=self._watch, name="canvas-cluster", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the actors and leave the cluster."""
        import ray

        self._closed.set()
        self._thread.join()
        self._remove(set(self._backends))
        ray.shutdown()

    def _connect(self) -> None:
        address = self._settings.cluster
        if importlib.util.find_spec("ray") is None:
            text = "A cluster needs the package ray. Install it with: pip install 'ray[default]'"
            raise InvalidInput("cluster", address, message=LazyMessage(text))
        import ray

        try:
            ray.init(address, logging_level=logging.ERROR, log_to_driver=False)
            self._update()
        # Also if the head has another version of Ray or Python, or (ImportError) not this program.
        except (ConnectionError, RuntimeError, ValueError, ImportError) as error:
            ray.shutdown()
            text = "The Ray cluster {address} cannot be used: {reason}"
            raise CanvasError(LazyMessage(text, address=address, reason=reason_of(error))) from error

    def _watch(self) -> None:
        import ray

        while not self._closed.wait(POLL_INTERVAL):
            try:
                self._update()
            except (ConnectionError, ImportError, ray.exceptions.RayError) as error:
                if ray.is_initialized():
                    log.warning("The connection to the Ray cluster was lost: %s", reason_of(error))
                self._remove(set(self._backends))
                ray.shutdown()
                with suppress(CanvasError):
                    self._connect()

    def _update(self) -> None:
        nodes = {node.id: node for node in alive_nodes()}
        if self._settings.scale_down_after is not None and self._scale(self._settings.scale_down_after):
            nodes = {}
        self._remove(self._backends.keys() - nodes.keys())
        for node_id in nodes.keys() - self._backends.keys():
            self._backends[node_id] = self._add(nodes[node_id])

    def _scale(self, idle_seconds: int) -> bool:
        """Ask the autoscaler for a worker per unfinished job; whether all workers should go, as there was no job."""
        wanted = min(self._count_jobs(), MAX_REQUESTED)
        if wanted:
            self._last_busy = time.monotonic()
        is_idle = time.monotonic() - self._last_busy > idle_seconds
        if wanted > self._requested or (is_idle and self._requested):
            self._requested = wanted
            request_workers(self._worker_resources, wanted)
        return is_idle

    def _remove(self, node_ids: set[str]) -> None:
        for node_id in node_ids:
            for backend in self._backends.pop(node_id):
                log.info("%s has left the cluster.", backend.name)
                backend.close()
                self._on_leave(backend)

    def _add(self, node: Node) -> list[WorkerBackend]:
        resources, slots = self._slots(node)
        settings = {name: getattr(self._settings, name) for name in WORKER_SETTINGS}
        settings["safety"] = self._settings.safety_level
        options = WorkerOptions(settings, self._hub, str(ASSETS), slots, None if "GPU" in resources else self._cores)
        probe_lock, backends = threading.Lock(), []
        for number in range(1, slots + 1):
            name = f"{node.name}, {number}" if slots > 1 else node.name
            connect = partial(start_actor, node, name, resources, options)
            with suppress(WorkerRemoved):  # the node was lost at this moment
                backends.append(WorkerBackend(connect, self._record_event, name, probe_lock, node.name))
        for backend in backends:
            log.info("%s has joined the cluster.", backend.name)
            self._on_join(backend)
        return backends

    @property
    def _cores(self) -> int | None:
        return self._settings.cores_per_worker

    @property
    def _worker_resources(self) -> dict[str, float]:
        """What a new node should have for a worker."""
        if self._settings.device == "cpu" or self._cores is not None:
            return {"CPU": self._cores or 1}
        return {"GPU": 1}

    def _slots(self, node: Node) -> tuple[dict[str, float], int]:
        """The resources of each worker of a node, and how many workers it has."""
        gpus, cpus = int(node.resources.get("GPU", 0)), int(node.resources.get("CPU", 0))
        if gpus and self._settings.device in (None, "cuda"):
            return {"CPU": min(1, cpus / gpus), "GPU": 1}, gpus
        cores = min(self._cores or cpus, cpus)
        return {"CPU": cores}, cpus // cores if cores else 0


def connected_ray() -> Any:
    """The module ray; raises ConnectionError without a connection, where ray would start a cluster of its own."""
    import ray

    if not ray.is_initialized():
        raise ConnectionError("There is no connection to the Ray cluster.")
    return ray


def alive_nodes() -> list[Node]:
    """The nodes by their host names, or by the names that they were started with."""
    found: list[Node] = []
    for node in [node for node in connected_ray().nodes() if node["Alive"]]:
        is_named = node["NodeName"] != node["NodeManagerAddress"]  # the default
        name = node["NodeName"] if is_named else node["NodeManagerHostname"]
        if name in [other.name for other in found]:
            name = f"{name} ({node['NodeID'][:8]})"
        found.append(Node(node["NodeID"], name, node["Resources"]))
    return found


def request_workers(resources: dict[str, float], count: int) -> None:
    """Ask the autoscaler, if the cluster has one, for nodes with room for that many workers."""
    import ray
    from ray.autoscaler.sdk import request_resources

    # On the cluster, as Ray Client cannot; it is Ray's own function.
    ray.remote(request_resources).options(num_cpus=0).remote(bundles=[resources] * count)


def start_actor(node: Node, name: str, resources: dict[str, float], options: WorkerOptions) -> ActorConnection:
    """Start an actor on a node; raises WorkerRemoved if the node is gone."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if node.id not in {alive.id for alive in alive_nodes()}:
        raise WorkerRemoved(LazyMessage("{name} has left the cluster.", name=name))
    actor = ray.remote(RayWorker).options(
        num_cpus=resources["CPU"],
        num_gpus=resources.get("GPU", 0),
        max_concurrency=ACTOR_THREADS,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
    )
    return ActorConnection(actor.remote(options), name)


class ActorConnection:
    """A `RayWorker`; a thread fetches its messages."""

    def __init__(self, actor: Any, name: str) -> None:
        self.messages: queue.Queue[Message | None] = queue.Queue()
        self._actor = actor
        self._name = name
        self._reason = ""
        self._is_checked = False
        self._ended = threading.Event()
        self._end_lock = threading.Lock()
        threading.Thread(target=self._read, name="canvas-actor", daemon=True).start()

    @property
    def is_alive(self) -> bool:
        return not self._ended.is_set()

    def wait_until_started(self) -> None:
        """Compare the versions of the program; raises WorkerRemoved if they differ."""
        if self._is_checked:
            return
        version = self._call(self._actor.version)
        if version is None:
            error = self.crash_error()
            if NOT_INSTALLED not in self._reason:
                raise error
            version = self._reason
        if version != code_version():
            raise WorkerRemoved(LazyMessage(REFUSED, name=self._name, version=version, own=code_version()))
        self._is_checked = True

    def send(self, message: object) -> None:
        if isinstance(message, GenerationTask):
            files = input_files(message.inputs)
            for name, path in files.items():
                if self._call(self._actor.has_file, name) is False:
                    self._call(self._actor.put_file, name, path.read_bytes())
            names = {path: Path(name) for name, path in files.items()}
            message = replace(message, inputs=rename_inputs(message.inputs, names.__getitem__))
        self._call(self._actor.send, message)

    def crash_error(self) -> WorkerCrashed:
        self._ended.wait()
        return WorkerCrashed(LazyMessage(ENDED, name=self._name, reason=self._reason))

    def close(self) -> None:
        import ray

        with suppress(ConnectionError, ray.exceptions.RayError, SystemExit):
            connected_ray().kill(self._actor)
        self._ended.wait(END_TIMEOUT)

    def _read(self) -> None:
        while self.is_alive:
            for message in self._call(self._actor.receive) or ():
                self.messages.put(message)

    def _call(self, method: Any, *args: object) -> Any:
        """The result of a method of the actor; None if it has ended, for whatever reason."""
        import ray

        try:
            return connected_ray().get(method.remote(*args))
        # Ray raises SystemExit in threads that wait while it shuts down
        except (ConnectionError, ray.exceptions.RayError, SystemExit) as error:
            with self._end_lock:
                if self.is_alive:
                    self._reason = reason_of(error)
                    self._ended.set()
                    self.messages.put(None)
            self.close()
            return None


def reason_of(error: BaseException) -> str:
    """The last line of Ray's message, which says why; the others have identifiers and a traceback."""
    if isinstance(error, SystemExit):
        return "Ray was shut down."
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


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
