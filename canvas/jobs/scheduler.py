"""The threads behind the studio: one fetches models, one goes with each painter."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Any

from canvas.backends.base import Backend, GenerationTask, WorkerCrashed
from canvas.backends.local import log_event
from canvas.backends.remote_backends import RemoteBackends
from canvas.backends.subprocess_pool import create_backends
from canvas.catalog import Catalog, ModelSpec, get_model
from canvas.engine.device import Device
from canvas.engine.generate import GenerationInputs
from canvas.errors import (
    CanvasError,
    DownloadCancelled,
    GenerationCancelled,
    OutOfMemory,
    unexpected_error,
)
from canvas.formatting import format_bytes, format_duration
from canvas.history.database import ModelEvent
from canvas.jobs.dependencies import DownloadProgressLogger, ModelDependencies
from canvas.jobs.job import Job
from canvas.jobs.queue import JobQueue
from canvas.models import download
from canvas.models.hub_client import Hub
from canvas.request import LOCAL, GeneratedImage, GenerationRequest
from canvas.settings import Settings

log = logging.getLogger(__name__)
REMOTE_CONCURRENCY = 4  # jobs that are elsewhere at the same time
MAX_ATTEMPTS = 3  # at a job whose worker dies: it may be the job that kills it


class JobScheduler:
    """Runs jobs: downloads in one thread, pictures in one a painter.

    `gather` finds what a request of an owner names beside its words.
    `keep` gets every finished picture with its job and returns it as kept; `record`
    gets every download and load.
    """

    def __init__(
        self,
        settings: Settings,
        models: Catalog,
        elsewhere: RemoteBackends,
        keep: Callable[[GeneratedImage, Job], GeneratedImage],
        record: Callable[[ModelEvent], Any],
        gather: Callable[[GenerationRequest, str], GenerationInputs],
        hub: Hub | None = None,
    ) -> None:
        self._models = models
        self._keep = keep
        self._record = record
        self._gather = gather
        self._hub = hub
        self._dependencies = ModelDependencies(settings, hub)
        self._download_queue = JobQueue()
        self._generate_queue = JobQueue()
        self._remote_queue = JobQueue()
        self._painters = create_backends(settings, record, hub)
        self._threads: list[threading.Thread] = []
        self._start(self._download_loop)
        for painter in self._painters:
            self._start(self._generate_loop, painter)
        for _ in range(REMOTE_CONCURRENCY):
            self._start(self._remote_loop, elsewhere)

    def put(self, job: Job) -> None:
        """Queue a job where it has to begin: at the download, at a painter, or elsewhere."""
        if _is_remote(job):
            self._remote_queue.put(job)
            return
        ready = job.request and self.is_ready(get_model(job.model_key, self._models), job.request)
        (self._generate_queue if ready else self._download_queue).put(job)

    def is_ready(self, spec: ModelSpec, request: GenerationRequest, checker: bool = True) -> bool:
        """Whether what a request asks for, and the safety checker, needs no download."""
        has_model = not request.needs_model or self.find_local(spec) is not None
        return has_model and self._dependencies.all_present(request, spec, checker)

    def addons_download_size(self, spec: ModelSpec, preset: str) -> int:
        """About how much the first picture of that mode fetches beside the model."""
        return self._dependencies.download_size(preset, spec)

    def jobs_ahead_of(self, job: Job, jobs: list[Job]) -> list[Job]:
        """Those of `jobs` that are painted or will be before this one, if that waits."""
        waiting = (self._remote_queue if _is_remote(job) else self._generate_queue).snapshot()
        if job not in waiting:
            return []
        working = [
            other
            for other in jobs
            if other.status in ("loading", "running") and _is_remote(other) == _is_remote(job)
        ]
        return working + waiting[: waiting.index(job)]

    def close(self) -> None:
        """End the threads after what they do now, then the painters."""
        self._download_queue.close()
        self._generate_queue.close()
        self._remote_queue.close()
        for thread in self._threads:
            thread.join(timeout=30)
        for painter in self._painters:
            painter.close()

    @property
    def backends(self) -> list[Backend]:
        """Who makes pictures here: one in this process, or several workers."""
        return list(self._painters)

    @property
    def device(self) -> Device:
        """The device with its dtype; found by a short measurement at the first use."""
        return self.device_if_known or self._painters[0].device

    @property
    def device_if_known(self) -> Device | None:
        """The device when it has been found already; never waits."""
        known = (painter.device_if_known for painter in self._painters)
        return next((device for device in known if device), None)

    def find_local(self, spec: ModelSpec) -> download.LocalModel | None:
        """The model where it is complete on this disk; asks no network."""
        return download.find_local(spec, hub=self._hub)

    def plan_download(
        self, spec: ModelSpec, cancelled: threading.Event | None = None
    ) -> download.DownloadPlan:
        """What to fetch for this device, 16-bit weights where it works with them; asks the Hub."""
        half = self.device.dtype != "float32"
        return download.plan_download(spec, half_precision=half, hub=self._hub, cancelled=cancelled)

    def model_bytes_on_disk(self, spec: ModelSpec) -> int:
        """What the model takes in the cache of downloads."""
        return download.model_bytes_on_disk(spec, hub=self._hub)

    def delete_model(self, spec: ModelSpec) -> int:
        """Free a model from memory and delete its download; returns the bytes won."""
        self.unload(spec)
        return download.remove(spec, hub=self._hub)

    def is_loaded(self, spec: ModelSpec) -> bool:
        """Whether a model's pipeline is in memory."""
        return any(painter.is_loaded(spec) for painter in self._painters)

    def unload(self, spec: ModelSpec) -> bool:
        """Let a loaded model go from memory; raises CanvasError while it is painted with."""
        return any([painter.unload(spec) for painter in self._painters])

    def warm_up(self, spec: ModelSpec, *, wait: bool = False) -> None:
        """Have every painter find its device and load a model that is on disk."""
        for painter in self._painters:
            if wait:  # in this very thread: on ZeroGPU no other may place models
                self._warm_up(painter, spec)
            else:
                self._start(self._warm_up, painter, spec)

    def _start(self, task: Callable[..., None], *arguments: Any) -> None:
        """In a thread of its own; `close` waits for its end."""
        thread = threading.Thread(target=task, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _warm_up(self, painter: Backend, spec: ModelSpec) -> None:
        local = self.find_local(spec)
        if local is None:
            return
        try:
            painter.load(spec, local)
        except CanvasError as error:  # said again, to the user, when the model is asked for
            log.warning("%s", error)

    def _download_loop(self) -> None:
        while (job := self._download_queue.take()) is not None:
            self._run_job(job, self._fetch)

    def _generate_loop(self, painter: Backend) -> None:
        def suits(job: Job) -> bool:
            spec, request = self._models.get(job.model_key), job.request
            return bool(spec and request and painter.is_loaded(spec, request.preset))

        alone, make = len(self._painters) == 1, self._prepare_and_run
        while (job := self._generate_queue.take(None if alone else suits)) is not None:
            self._run_job(job, partial(make, painter=painter))
            if alone and isinstance(job.error, OutOfMemory):  # workers see to it themselves
                make = self._run_in_fresh_thread

    def _remote_loop(self, elsewhere: RemoteBackends) -> None:
        while (job := self._remote_queue.take()) is not None:
            self._run_job(job, lambda job: self._run(job, elsewhere, None))

    def _run_job(self, job: Job, task: Callable[[Job], None]) -> None:
        try:
            job.context.run(task, job)
        except (GenerationCancelled, DownloadCancelled) as error:
            job.update(status="cancelled", error=error)
        except WorkerCrashed as error:
            self._requeue(job, error)
        except CanvasError as error:
            job.update(status="failed", error=error)
        except Exception as error:  # the thread must survive any job, and say so
            log.exception("job %s failed", job.id)
            job.update(status="failed", error=unexpected_error(error))

    def _requeue(self, job: Job, error: WorkerCrashed) -> None:
        """Run a job again whose worker died, unless it has outlived too many of them."""
        log.warning("%s", error)
        job.attempts += 1
        if job.cancelled.is_set():
            job.update(status="cancelled", error=GenerationCancelled("Stopped."))
        elif job.attempts >= MAX_ATTEMPTS:
            job.update(status="failed", error=error)
        else:
            job.update(status="queued", progress=None, preview=None)
            self._generate_queue.put(job, first=True)

    def _fetch(self, job: Job) -> None:
        spec = get_model(job.model_key, self._models)
        if job.request is None or not self.is_ready(spec, job.request):
            job.update(status="downloading")
        needed = job.request is None or job.request.needs_model
        if needed and self.find_local(spec) is None:
            self._download(job, spec)
        if job.request is None:
            job.update(status="done")
        else:
            self._dependencies.fetch(job.request, spec, DownloadProgressLogger(job), job.cancelled)
            job.update(status="queued", progress=None)
            self._generate_queue.put(job)

    def _download(self, job: Job, spec: ModelSpec) -> None:
        with log_event(self._record, ModelEvent(spec.key, "download", spec.name)) as facts:
            plan = self.plan_download(spec, cancelled=job.cancelled)
            facts.update(repo_id=plan.repo_id, revision=plan.revision)
            log.info(
                "%s: fetching %s of %s", spec.key, format_bytes(plan.missing_bytes), plan.repo_id
            )
            done = download.download(
                spec,
                plan,
                on_progress=DownloadProgressLogger(job),
                cancelled=job.cancelled,
                hub=self._hub,
            )
            facts.update(bytes=done.bytes, file_count=done.file_count)
            log.info("%s: fetched in %s", spec.key, format_duration(done.seconds))

    def _run_in_fresh_thread(self, job: Job, painter: Backend) -> None:
        """In a new thread: one that has met OutOfMemory must not compute again."""
        with ThreadPoolExecutor(1) as fresh:
            fresh.submit(self._prepare_and_run, job, painter).result()

    def _prepare_and_run(self, job: Job, painter: Backend) -> None:
        assert job.request is not None  # noqa: S101 - only generate jobs come here
        spec = get_model(job.model_key, self._models)
        local = self.find_local(spec)
        if not self.is_ready(spec, job.request):  # removed while the job waited
            self._download_queue.put(job)
            return
        self._run(job, painter, local)

    def _run(
        self, job: Job, painter: Backend | RemoteBackends, local: download.LocalModel | None
    ) -> None:
        assert job.request is not None  # noqa: S101 - only generate jobs come here
        spec = get_model(job.model_key, self._models)
        materials = self._gather(job.request, job.owner)
        order = GenerationTask(job.request.remaining(len(job.images)), spec, local, materials)
        with closing(painter.generate(order, job.report_progress, job.cancelled)) as pictures:
            for picture in pictures:
                job.update(images=[*job.images, self._keep(picture, job)])
        job.update(status="done")


def _is_remote(job: Job) -> bool:
    return job.request is not None and job.request.backend != LOCAL
