"""The threads behind the studio: one fetches models, one goes with each painter."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Any

from canvas.backends.base import Order, Painter, WorkerDied
from canvas.backends.local import recorded
from canvas.backends.remote_backends import Elsewhere
from canvas.backends.subprocess_pool import hire
from canvas.catalog import Catalog, ModelSpec, get_model
from canvas.engine.device import Device
from canvas.engine.generate import Materials
from canvas.errors import (
    CanvasError,
    DownloadCancelled,
    GenerationCancelled,
    OutOfMemory,
    unforeseen,
)
from canvas.formatting import duration, gigabytes
from canvas.history.database import ModelEvent
from canvas.jobs.dependencies import Supplies, Telling
from canvas.jobs.job import Job
from canvas.jobs.queue import JobQueue
from canvas.models import download
from canvas.models.hub_client import Hub
from canvas.request import HERE, GeneratedImage, GenerationRequest
from canvas.settings import Settings

log = logging.getLogger(__name__)
ASKED_AT_ONCE = 4  # jobs that are elsewhere at the same time
ATTEMPTS = 3  # at a job whose worker dies: it may be the job that kills it


class Workshop:
    """Runs jobs: downloads in one thread, pictures in one a painter.

    `gather` finds what a request of an owner names beside its words.
    `keep` gets every finished picture with its job and returns it as kept; `record`
    gets every download and load.
    """

    def __init__(
        self,
        settings: Settings,
        models: Catalog,
        elsewhere: Elsewhere,
        keep: Callable[[GeneratedImage, Job], GeneratedImage],
        record: Callable[[ModelEvent], Any],
        gather: Callable[[GenerationRequest, str], Materials],
        hub: Hub | None = None,
    ) -> None:
        self._models = models
        self._keep = keep
        self._record = record
        self._gather = gather
        self._hub = hub
        self._supplies = Supplies(settings, hub)
        self._to_fetch = JobQueue()
        self._to_make = JobQueue()
        self._to_ask = JobQueue()
        self._painters = hire(settings, record, hub)
        self._threads: list[threading.Thread] = []
        self._start(self._fetch_all)
        for painter in self._painters:
            self._start(self._paint_all, painter)
        for _ in range(ASKED_AT_ONCE):
            self._start(self._ask_all, elsewhere)

    def put(self, job: Job) -> None:
        """Queue a job where it has to begin: at the download, at a painter, or elsewhere."""
        if _is_elsewhere(job):
            self._to_ask.put(job)
            return
        ready = job.request and self.has_all(get_model(job.model_key, self._models), job.request)
        (self._to_make if ready else self._to_fetch).put(job)

    def has_all(self, spec: ModelSpec, request: GenerationRequest, checker: bool = True) -> bool:
        """Whether what a request asks for, and the safety checker, needs no download."""
        has_model = not request.needs_model or self.find_local(spec) is not None
        return has_model and self._supplies.are_there(request, spec, checker)

    def bytes_of_extras(self, spec: ModelSpec, mode: str) -> int:
        """About how much the first picture of that mode fetches beside the model."""
        return self._supplies.bytes_of_extras(mode, spec)

    def before(self, job: Job, jobs: list[Job]) -> list[Job]:
        """Those of `jobs` that are painted or will be before this one, if that waits."""
        waiting = (self._to_ask if _is_elsewhere(job) else self._to_make).in_order()
        if job not in waiting:
            return []
        working = [
            other
            for other in jobs
            if other.status in ("loading", "running") and _is_elsewhere(other) == _is_elsewhere(job)
        ]
        return working + waiting[: waiting.index(job)]

    def close(self) -> None:
        """End the threads after what they do now, then the painters."""
        self._to_fetch.close()
        self._to_make.close()
        self._to_ask.close()
        for thread in self._threads:
            thread.join(timeout=30)
        for painter in self._painters:
            painter.close()

    @property
    def painters(self) -> list[Painter]:
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

    def bytes_on_disk(self, spec: ModelSpec) -> int:
        """What the model takes in the cache of downloads."""
        return download.model_bytes_on_disk(spec, hub=self._hub)

    def remove(self, spec: ModelSpec) -> int:
        """Free a model from memory and delete its download; returns the bytes won."""
        self.free(spec)
        return download.remove(spec, hub=self._hub)

    def is_loaded(self, spec: ModelSpec) -> bool:
        """Whether a model's pipeline is in memory."""
        return any(painter.is_loaded(spec) for painter in self._painters)

    def free(self, spec: ModelSpec) -> bool:
        """Let a loaded model go from memory; raises CanvasError while it is painted with."""
        return any([painter.free(spec) for painter in self._painters])

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

    def _warm_up(self, painter: Painter, spec: ModelSpec) -> None:
        local = self.find_local(spec)
        if local is None:
            return
        try:
            painter.load(spec, local)
        except CanvasError as error:  # said again, to the user, when the model is asked for
            log.warning("%s", error)

    def _fetch_all(self) -> None:
        while (job := self._to_fetch.take()) is not None:
            self._do(job, self._fetch)

    def _paint_all(self, painter: Painter) -> None:
        def suits(job: Job) -> bool:
            spec, request = self._models.get(job.model_key), job.request
            return bool(spec and request and painter.is_loaded(spec, request.mode))

        alone, make = len(self._painters) == 1, self._make
        while (job := self._to_make.take(None if alone else suits)) is not None:
            self._do(job, partial(make, painter=painter))
            if alone and isinstance(job.error, OutOfMemory):  # workers see to it themselves
                make = self._make_apart

    def _ask_all(self, elsewhere: Elsewhere) -> None:
        while (job := self._to_ask.take()) is not None:
            self._do(job, lambda job: self._paint(job, elsewhere, None))

    def _do(self, job: Job, task: Callable[[Job], None]) -> None:
        try:
            job.context.run(task, job)
        except (GenerationCancelled, DownloadCancelled) as error:
            job.update(status="cancelled", error=error)
        except WorkerDied as error:
            self._again(job, error)
        except CanvasError as error:
            job.update(status="failed", error=error)
        except Exception as error:  # the thread must survive any job, and say so
            log.exception("job %s failed", job.id)
            job.update(status="failed", error=unforeseen(error))

    def _again(self, job: Job, error: WorkerDied) -> None:
        """Run a job again whose worker died, unless it has outlived too many of them."""
        log.warning("%s", error)
        job.attempts += 1
        if job.cancelled.is_set():
            job.update(status="cancelled", error=GenerationCancelled("Stopped."))
        elif job.attempts >= ATTEMPTS:
            job.update(status="failed", error=error)
        else:
            job.update(status="queued", progress=None, preview=None)
            self._to_make.put(job, first=True)

    def _fetch(self, job: Job) -> None:
        spec = get_model(job.model_key, self._models)
        if job.request is None or not self.has_all(spec, job.request):
            job.update(status="downloading")
        needed = job.request is None or job.request.needs_model
        if needed and self.find_local(spec) is None:
            self._download(job, spec)
        if job.request is None:
            job.update(status="done")
        else:
            self._supplies.fetch(job.request, spec, Telling(job), job.cancelled)
            job.update(status="queued", progress=None)
            self._to_make.put(job)

    def _download(self, job: Job, spec: ModelSpec) -> None:
        with recorded(self._record, ModelEvent(spec.key, "download", spec.name)) as facts:
            plan = self.plan_download(spec, cancelled=job.cancelled)
            facts.update(repo_id=plan.repo_id, revision=plan.revision)
            log.info("%s: fetching %s of %s", spec.key, gigabytes(plan.missing_bytes), plan.repo_id)
            done = download.download(
                spec,
                plan,
                on_progress=Telling(job),
                cancelled=job.cancelled,
                hub=self._hub,
            )
            facts.update(bytes=done.bytes, file_count=done.file_count)
            log.info("%s: fetched in %s", spec.key, duration(done.seconds))

    def _make_apart(self, job: Job, painter: Painter) -> None:
        """In a new thread: one that has met OutOfMemory must not compute again."""
        with ThreadPoolExecutor(1) as fresh:
            fresh.submit(self._make, job, painter).result()

    def _make(self, job: Job, painter: Painter) -> None:
        assert job.request is not None  # noqa: S101 - only generate jobs come here
        spec = get_model(job.model_key, self._models)
        local = self.find_local(spec)
        if not self.has_all(spec, job.request):  # removed while the job waited
            self._to_fetch.put(job)
            return
        self._paint(job, painter, local)

    def _paint(
        self, job: Job, painter: Painter | Elsewhere, local: download.LocalModel | None
    ) -> None:
        assert job.request is not None  # noqa: S101 - only generate jobs come here
        spec = get_model(job.model_key, self._models)
        materials = self._gather(job.request, job.owner)
        order = Order(job.request.rest(len(job.images)), spec, local, materials)
        with closing(painter.paint(order, job.tell, job.cancelled)) as pictures:
            for picture in pictures:
                job.update(images=[*job.images, self._keep(picture, job)])
        job.update(status="done")


def _is_elsewhere(job: Job) -> bool:
    return job.request is not None and job.request.where != HERE
