"""Runs jobs: worker threads for downloads, for each local backend and for remote backends."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any

from canvas.backends.base import Backend, GenerationTask, WorkerCrashed, WorkerRemoved, run_in_fresh_thread
from canvas.backends.local import download_model
from canvas.backends.ray_cluster import RayCluster
from canvas.backends.remote_backends import RemoteBackends
from canvas.backends.subprocess_pool import create_backends
from canvas.catalog import Catalog, ModelSpec, get_model
from canvas.engine import safety
from canvas.engine.control_detectors import needs_depth_model
from canvas.engine.device import Device
from canvas.engine.generate import GenerationInputs
from canvas.errors import CanvasError, DownloadCancelled, GenerationCancelled, OutOfMemory, unexpected_error
from canvas.formatting import format_progress
from canvas.history.rows import ModelEvent
from canvas.jobs.inputs import requested_loras
from canvas.jobs.job import Job
from canvas.jobs.queue import JobQueue
from canvas.models import addons, controlnets, download, ip_adapters, loras
from canvas.models.download import DownloadProgress
from canvas.models.hub_client import Hub
from canvas.request import LOCAL, GeneratedImage, GenerationRequest
from canvas.settings import Settings

log = logging.getLogger(__name__)
REMOTE_CONCURRENCY = 4  # remote jobs at the same time
MAX_ATTEMPTS = 3  # of a job whose worker crashes, since the job may be the cause
LOG_INTERVAL = 5.0  # seconds between log lines of a download
STOP_TIMEOUT = 1.0  # seconds for the current step, after which worker processes are ended
CLOSE_TIMEOUT = 30.0  # seconds for work in this process that cannot be interrupted, such as loading a model
CHECKER = "safety checker"  # see `JobScheduler.missing`


class JobScheduler:
    """Runs jobs; threads start with the first job that needs them.

    `load_inputs` resolves the images and LoRAs of a request for an owner. `save_image` gets
    every finished image with its job and returns the saved one. `record_event` gets every
    download and load of a model.
    """

    def __init__(
        self,
        settings: Settings,
        models: Catalog,
        remote_backends: RemoteBackends,
        save_image: Callable[[GeneratedImage, Job], GeneratedImage],
        record_event: Callable[[ModelEvent], Any],
        load_inputs: Callable[[GenerationRequest, str], GenerationInputs],
        hub: Hub | None = None,
    ) -> None:
        self._settings = settings
        self._models = models
        self._save_image = save_image
        self._record_event = record_event
        self._load_inputs = load_inputs
        self._hub = hub
        self.backends: list[Backend] = [] if settings.cluster else create_backends(settings, record_event, hub)
        self._busy: set[Backend] = set()
        self._download_queue = JobQueue()
        self._generate_queue = JobQueue()
        self._remote_queue = JobQueue()
        remote_loop = partial(self._remote_loop, remote_backends)
        self._loops: dict[JobQueue, list[tuple[str, Callable[[], None]]]] = {  # not started yet
            self._download_queue: [("canvas-download", self._download_loop)],
            self._generate_queue: [
                ("canvas-generate", partial(self._generate_loop, backend)) for backend in self.backends
            ],
            self._remote_queue: [("canvas-remote", remote_loop)] * REMOTE_CONCURRENCY,
        }
        self._threads: list[threading.Thread] = []
        self._threads_lock = threading.Lock()  # a thread that was not started yet cannot be joined
        self._closed = False
        self._default_model: ModelSpec | None = None
        self._cluster: RayCluster | None = None
        if settings.cluster is not None:
            callbacks = (self._add_backend, self._remove_backend, self._count_jobs)
            self._cluster = RayCluster(settings, hub, record_event, *callbacks)

    def put(self, job: Job, *, ready: bool) -> None:
        """Queue a job; one that is not `ready` starts with its downloads."""
        if _is_remote(job):
            self._enqueue(self._remote_queue, job)
        else:
            self._enqueue(self._generate_queue if ready else self._download_queue, job)

    def missing(self, spec: ModelSpec, request: GenerationRequest) -> set[str]:
        """What a request needs that is not on disk; makes no network request."""
        needs_model = request.needs_model and self.find_local(spec) is None
        return self._missing_addons(spec, request) | ({"model"} if needs_model else set())

    def _missing_addons(self, spec: ModelSpec, request: GenerationRequest) -> set[str]:
        adapters = ip_adapters.missing(request, self._settings.ip_adapters_dir, hub=self._hub)
        missing = {*self._missing_loras(request), *(adapter.files[0] for adapter in adapters)}
        missing.update(controlnets.missing(request, self._settings.controlnets_dir, hub=self._hub))
        if self._needs_depth_model(request):
            missing.add(addons.DEPTH)
        if request.needs_model:
            missing.update(addons.missing(request.preset, spec, hub=self._hub))
        if self._needs_checker():
            missing.add(CHECKER)
        return missing

    def _missing_loras(self, request: GenerationRequest) -> list[str]:
        names = (name for name, _ in requested_loras(request) if loras.is_hub_name(name, self._settings.loras_dir))
        return [name for name in names if loras.find(name, hub=self._hub) is None]

    def _needs_depth_model(self, request: GenerationRequest) -> bool:
        return any(map(needs_depth_model, request.control_images)) and addons.find(addons.DEPTH, hub=self._hub) is None

    def _needs_checker(self) -> bool:
        return self._settings.safety_level == "full" and safety.find_checker(hub=self._hub) is None

    def jobs_ahead_of(self, job: Job, jobs: list[Job]) -> list[Job]:
        """The jobs that run or will run before a waiting job; empty if it does not wait."""
        waiting = (self._remote_queue if _is_remote(job) else self._generate_queue).snapshot()
        if job not in waiting:
            return []
        running = [
            other for other in jobs if other.status in ("loading", "running") and _is_remote(other) == _is_remote(job)
        ]
        return running + waiting[: waiting.index(job)]

    def close(self) -> None:
        """Stop the threads, whose jobs are cancelled, and the backends."""
        with self._threads_lock:
            self._closed = True
        for queue in (self._download_queue, self._generate_queue, self._remote_queue):
            queue.close()
        self._join_threads(STOP_TIMEOUT)  # most end within a step
        if self._cluster is not None:
            self._cluster.close()
        for backend in self.backends:
            backend.close()
        self._join_threads(CLOSE_TIMEOUT)

    def _add_backend(self, backend: Backend) -> None:
        self.backends = [*self.backends, backend]
        self._start_thread("canvas-generate", partial(self._cluster_loop, backend))

    def _remove_backend(self, backend: Backend) -> None:
        self.backends = [other for other in self.backends if other is not backend]

    def _cluster_loop(self, backend: Backend) -> None:
        if self._default_model is not None:
            self._warm_up(backend, self._default_model)
        self._generate_loop(backend)

    def _count_jobs(self) -> int:
        """The generations that wait or run."""
        return len(self._generate_queue.snapshot()) + len(self._busy)

    def _join_threads(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    @property
    def device_if_known(self) -> Device | None:
        """The device if it is already detected; never waits."""
        known = (backend.device_if_known for backend in self.backends)
        return next((device for device in known if device), None)

    @property
    def usable_backends(self) -> list[Backend]:
        """Those that take jobs: without the nodes of a cluster that were refused."""
        return [backend for backend in self.backends if backend.error is None]

    def find_local(self, spec: ModelSpec) -> download.LocalModel | None:
        return download.find_local(spec, hub=self._hub)

    def warm_up(self, spec: ModelSpec, *, wait: bool = False) -> None:
        """Detect the device of every backend and load a model that is on disk."""
        self._default_model = spec
        for backend in self.backends:
            if wait:  # in this thread: on ZeroGPU no other may place models
                self._warm_up(backend, spec)
            else:
                self._start_thread("canvas-warm-up", partial(self._warm_up, backend, spec))

    def _enqueue(self, queue: JobQueue, job: Job, *, first: bool = False) -> None:
        queue.put(job, first=first)
        for name, loop in self._loops.pop(queue, ()):
            self._start_thread(name, loop)

    def _start_thread(self, name: str, target: Callable[[], None]) -> None:
        with self._threads_lock:
            if not self._closed:
                thread = threading.Thread(target=target, name=name, daemon=True)
                self._threads.append(thread)  # `close` waits for it
                thread.start()

    def _warm_up(self, backend: Backend, spec: ModelSpec) -> None:
        local = self.find_local(spec)
        if local is None or not backend.wait_until_ready():
            return
        try:
            backend.load(spec, local)
        except CanvasError as error:  # the first job that needs the model reports it again
            log.warning("%s", error)

    def _download_loop(self) -> None:
        while (job := self._download_queue.take()) is not None:
            self._run_job(job, self._download)
            if job.status == "queued":
                self._enqueue(self._generate_queue, job)

    def _generate_loop(self, backend: Backend) -> None:
        def prefers(job: Job) -> bool:
            spec, request = self._models.get(job.model_key), job.request
            return bool(spec and request and backend.is_loaded(spec, request.preset))

        alone = len(self.backends) == 1 and self._settings.cluster is None
        run: Callable[[Job], None] = partial(self._generate, backend)
        while backend.wait_until_ready() and (job := self._generate_queue.take(None if alone else prefers)) is not None:
            self._busy.add(backend)
            job.node = backend.node
            self._run_job(job, run)
            self._busy.discard(backend)
            if alone and isinstance(job.error, OutOfMemory):  # workers do this themselves
                run = partial(run_in_fresh_thread, self._generate, backend)

    def _remote_loop(self, backend: RemoteBackends) -> None:
        while (job := self._remote_queue.take()) is not None:
            self._run_job(job, partial(self._run, backend, None))

    def _run_job(self, job: Job, run: Callable[[Job], None]) -> None:
        # Queue it outside of the context, which two threads must not enter at the same time.
        try:
            job.context.run(run, job)
        except _FilesDeleted:
            self._enqueue(self._download_queue, job)
        except (GenerationCancelled, DownloadCancelled) as error:
            job.update(status="cancelled", error=error)
        except WorkerCrashed as error:
            self._requeue(job, error)
        except CanvasError as error:
            job.update(status="failed", error=error)
        except Exception as error:  # the thread must survive any job
            log.exception("job %s failed", job.id)
            job.update(status="failed", error=unexpected_error(error))

    def _requeue(self, job: Job, error: WorkerCrashed) -> None:
        """Run a job again after its worker crashed, at most MAX_ATTEMPTS times."""
        log.warning("%s", error)
        job.attempts += not isinstance(error, WorkerRemoved)
        if job.cancelled.is_set():
            job.update(status="cancelled", error=GenerationCancelled("Cancelled."))
        elif job.attempts >= MAX_ATTEMPTS:
            job.update(status="failed", error=error)
        else:
            job.update(status="queued", progress=None, preview=None)
            self._enqueue(self._generate_queue, job, first=True)

    def _download(self, job: Job) -> None:
        """Download what a job needs; a generation is "queued" again afterwards."""
        spec, request = get_model(job.model_key, self._models), job.request
        on_progress = DownloadReporter(job)
        needs_model = request is None or request.needs_model
        missing_model = needs_model and self.find_local(spec) is None
        if request is None or missing_model or any(self._missing_addons(spec, each) for each in job.requests):
            job.update(status="downloading")
        if missing_model:
            download_model(spec, self._record_event, on_progress, job.cancelled, self._hub)
        if request is None:
            job.update(status="done")
            return
        if request.needs_model:
            addons.fetch(request.preset, spec, on_progress, job.cancelled, hub=self._hub)
        for name in {name for each in job.requests for name in self._missing_loras(each)}:
            loras.fetch(name, on_progress, job.cancelled, hub=self._hub)
        self._download_guidance(job, on_progress)
        if self._needs_checker():
            safety.fetch_checker(on_progress, job.cancelled, hub=self._hub)
        job.update(status="queued", progress=None)

    def _download_guidance(self, job: Job, on_progress: DownloadReporter) -> None:
        """Download the ControlNets, detectors and IP-Adapters of a job's requests."""
        for request in job.requests:
            for name in controlnets.missing(request, self._settings.controlnets_dir, hub=self._hub):
                controlnets.fetch(name, on_progress, job.cancelled, hub=self._hub)
            for addon in ip_adapters.missing(request, self._settings.ip_adapters_dir, hub=self._hub):
                addons.fetch_files(addon, on_progress, job.cancelled, hub=self._hub)
            if self._needs_depth_model(request):
                addons.fetch_files(addons.ADDONS[addons.DEPTH], on_progress, job.cancelled, hub=self._hub)

    def _generate(self, backend: Backend, job: Job) -> None:
        assert job.request is not None  # noqa: S101 - downloads are in another queue
        spec = get_model(job.model_key, self._models)
        local = self.find_local(spec) if job.request.needs_model else None
        missing_model = job.request.needs_model and local is None
        if missing_model or any(self._missing_addons(spec, request) for request in job.requests):
            raise _FilesDeleted
        self._run(backend, local, job)

    def _run(self, backend: Backend | RemoteBackends, local: download.LocalModel | None, job: Job) -> None:
        assert job.request is not None  # noqa: S101 - downloads are in another queue
        spec = get_model(job.model_key, self._models)
        # Loaded now and not when the job was submitted: the decoded images of many waiting jobs
        # would fill the memory.
        for index, request in enumerate(job.requests):
            done = max(0, len(job.images) - job.first_image(index))
            if done >= request.num_images:
                continue
            job.update(current=index)
            inputs = self._load_inputs(request, job.owner)
            task = GenerationTask(request.remaining(done), spec, local, inputs)
            with closing(backend.generate(task, job.report_progress, job.cancelled)) as images:
                for image in images:
                    job.update(images=[*job.images, self._save_image(image, job)])
        job.update(status="done")


class _FilesDeleted(Exception):
    """Files that a waiting job needs were deleted: it has to download them again."""


class DownloadReporter:
    """Reports the progress of a download to its job, and every LOG_INTERVAL to the log."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._last_logged = time.monotonic()

    def __call__(self, progress: DownloadProgress) -> None:
        self._job.update(progress=progress)
        if time.monotonic() - self._last_logged >= LOG_INTERVAL:
            self._last_logged = time.monotonic()
            _, text = format_progress(self._job.status, progress)
            log.info("%s: %s", progress.label or self._job.model_key, text)


def _is_remote(job: Job) -> bool:
    return job.request is not None and job.request.backend != LOCAL
