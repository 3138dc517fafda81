"""The workers behind the studio: one fetches models, one holds the device."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

from canvas.catalog import Catalog, ModelSpec, get_model
from canvas.drawing import draw, finish
from canvas.engine import downloads, extras
from canvas.engine.device import Device, detect_device
from canvas.engine.editing import variant_of
from canvas.engine.enlarging import Redrawing
from canvas.engine.hub import Hub
from canvas.engine.pipelines import PipelineCache
from canvas.engine.safety import PictureChecker
from canvas.errors import CanvasError, DownloadCancelled, GenerationCancelled, GenerationFailed
from canvas.history.store import ModelEvent
from canvas.jobs import Job, JobQueue
from canvas.materials import Materials
from canvas.models import duration, gigabytes
from canvas.request import GeneratedImage, GenerationRequest, Step
from canvas.settings import Settings

log = logging.getLogger(__name__)


class Workshop:
    """Runs jobs: downloads in one thread, pictures in another that alone touches the device.

    `gather` finds what a request of an owner names beside its words.
    `keep` gets every finished picture with its owner and returns it as kept; `record`
    gets every download and load.
    """

    def __init__(
        self,
        settings: Settings,
        models: Catalog,
        keep: Callable[[GeneratedImage, str], GeneratedImage],
        record: Callable[[ModelEvent], Any],
        gather: Callable[[GenerationRequest, str], Materials],
        hub: Hub | None = None,
    ) -> None:
        self._settings = settings
        self._models = models
        self._keep = keep
        self._record = record
        self._gather = gather
        self._checker: PictureChecker | None = None
        self._hub = hub
        self._to_fetch = JobQueue()
        self._to_make = JobQueue()
        self._device: Device | None = None
        self._pipelines: PipelineCache | None = None
        self._device_lock = threading.Lock()
        self._detecting = threading.Lock()
        self._workers = [
            threading.Thread(target=self._work, args=(self._to_fetch, self._fetch), daemon=True),
            threading.Thread(target=self._work, args=(self._to_make, self._make), daemon=True),
        ]
        for worker in self._workers:
            worker.start()

    def put(self, job: Job) -> None:
        """Queue a job where it has to begin: at the download, or at the device."""
        spec = get_model(job.model_key, self._models)
        needed = job.request is None or job.request.needs_model
        fetch_first = job.kind == "download" or (needed and not self._has_all(job, spec))
        (self._to_fetch if fetch_first else self._to_make).put(job)

    def _has_all(self, job: Job, spec: ModelSpec) -> bool:
        mode = job.request.mode if job.request else "quality"
        return self.find_local(spec) is not None and not extras.missing(mode, spec, hub=self._hub)

    def waiting(self) -> list[Job]:
        """The jobs that wait for the device, in the order in which they will be taken."""
        return self._to_make.in_order()

    def close(self) -> None:
        """End the workers after what they do now."""
        self._to_fetch.close()
        self._to_make.close()
        for worker in self._workers:
            worker.join(timeout=30)

    @property
    def device(self) -> Device:
        """The device with its dtype; found by a short measurement at the first use."""
        with self._detecting:
            if self._device is None:
                self._device = detect_device(
                    self._settings.cache_dir, self._settings.device, self._settings.dtype
                )
            return self._device

    @property
    def device_if_known(self) -> Device | None:
        """The device when it has been found already; never waits."""
        return self._device

    def find_local(self, spec: ModelSpec) -> downloads.LocalModel | None:
        """The model where it is complete on this disk; asks no network."""
        return downloads.find_local(spec, hub=self._hub)

    def plan_download(
        self, spec: ModelSpec, cancelled: threading.Event | None = None
    ) -> downloads.DownloadPlan:
        """What to fetch for this device, 16-bit weights where it works with them; asks the Hub."""
        half = self.device.dtype != "float32"
        return downloads.plan_download(
            spec, half_precision=half, hub=self._hub, cancelled=cancelled
        )

    def bytes_on_disk(self, spec: ModelSpec) -> int:
        """What the model takes in the cache of downloads."""
        return downloads.model_bytes_on_disk(spec, hub=self._hub)

    def remove(self, spec: ModelSpec) -> int:
        """Free a model from memory and delete its download; returns the bytes won."""
        self.free(spec)
        return downloads.remove(spec, hub=self._hub)

    def is_loaded(self, spec: ModelSpec) -> bool:
        """Whether a model's pipeline is in memory."""
        return self._pipelines is not None and self._pipelines.is_loaded(spec)

    def free(self, spec: ModelSpec) -> bool:
        """Let a loaded model go from memory; raises CanvasError while the device works."""
        if not self._device_lock.acquire(timeout=1):
            raise CanvasError("A picture is being made; free the model when it is done.")
        try:
            return self._pipelines is not None and self._pipelines.free(spec)
        finally:
            self._device_lock.release()

    def warm_up(self, spec: ModelSpec) -> None:
        """Find the device and load a model that is on disk, in a thread of its own."""
        threading.Thread(target=self._warm_up, args=(spec,), daemon=True).start()

    def _warm_up(self, spec: ModelSpec) -> None:
        local = self.find_local(spec)
        if local is None:
            return
        try:
            with self._device_lock:
                self._load(spec, local)
        except CanvasError as error:  # said again, to the user, when the model is asked for
            log.warning("%s", error)

    def _work(self, queue: JobQueue, task: Callable[[Job], None]) -> None:
        while (job := queue.take()) is not None:
            try:
                task(job)
            except (GenerationCancelled, DownloadCancelled) as error:
                job.update(status="cancelled", error=error)
            except CanvasError as error:
                job.update(status="failed", error=error)
            except Exception as error:  # the worker must survive any job, and say so
                log.exception("job %s failed", job.id)
                sentence = f"Something unforeseen went wrong: {type(error).__name__}: {error}"
                job.update(status="failed", error=GenerationFailed(sentence))

    def _fetch(self, job: Job) -> None:
        spec = get_model(job.model_key, self._models)
        if not self._has_all(job, spec):
            job.update(status="downloading")
        if self.find_local(spec) is None:
            self._download(job, spec)
        if job.request is None:
            job.update(status="done")
        else:
            extras.fetch(job.request.mode, spec, _Telling(job), job.cancelled, hub=self._hub)
            job.update(status="queued", progress=None)
            self._to_make.put(job)

    def _download(self, job: Job, spec: ModelSpec) -> None:
        with self._recorded(ModelEvent(spec.key, "download", spec.name)) as facts:
            plan = self.plan_download(spec, cancelled=job.cancelled)
            facts.update(repo_id=plan.repo_id, revision=plan.revision)
            log.info("%s: fetching %s of %s", spec.key, gigabytes(plan.missing_bytes), plan.repo_id)
            done = downloads.download(
                spec,
                plan,
                on_progress=_Telling(job),
                cancelled=job.cancelled,
                hub=self._hub,
            )
            facts.update(bytes=done.bytes, file_count=done.file_count)
            log.info("%s: fetched in %s", spec.key, duration(done.seconds))

    def _make(self, job: Job) -> None:
        assert job.request is not None  # noqa: S101 - only generate jobs come here
        spec = get_model(job.model_key, self._models)
        local = self.find_local(spec)
        if local is None and job.request.needs_model:  # removed while the job waited
            self._to_fetch.put(job)
            return
        materials = self._gather(job.request, job.owner)
        with (
            self._device_lock,
            closing(self._pictures(job, job.request, materials, local)) as pictures,
        ):
            for picture in pictures:
                finished = finish(picture, self._safety_checker())
                job.update(images=[*job.images, self._keep(finished, job.owner)])
        job.update(status="done", preview=None)

    def _pictures(
        self,
        job: Job,
        request: GenerationRequest,
        materials: Materials,
        local: downloads.LocalModel | None,
    ) -> Generator[GeneratedImage]:
        model = None
        if local is not None and request.needs_model:
            job.update(status="loading")
            spec = get_model(job.model_key, self._models)
            pipeline = self._load(spec, local, request)
            model = Redrawing(pipeline, spec, self.device, local.revision)
            if job.cancelled.is_set():
                raise GenerationCancelled("Stopped before the first step.")
        job.update(status="running")
        yield from draw(request, materials, model, lambda step: _show(job, step), job.cancelled)

    def _safety_checker(self) -> PictureChecker | None:
        if self._settings.safety_level == "full" and self._checker is None:
            self._checker = PictureChecker(self.device)
        return self._checker

    def _load(
        self,
        spec: ModelSpec,
        local: downloads.LocalModel,
        request: GenerationRequest | None = None,
    ) -> Any:
        """The model's pipeline, in the variant that a request needs."""
        if self._pipelines is None:
            budget = self._settings.memory_budget
            self._pipelines = PipelineCache(self.device, budget, hub=self._hub)
        mode = request.mode if request else "quality"
        if not self._pipelines.is_loaded(spec, mode):
            with self._recorded(ModelEvent(spec.key, "load", local.repo_id, local.revision)):
                self._pipelines.get(spec, local, mode=mode)
        pipeline = self._pipelines.get(spec, local, mode=mode)
        if request is None:
            return pipeline
        return self._pipelines.get(spec, local, variant_of(pipeline, request), mode)

    @contextmanager
    def _recorded(self, event: ModelEvent) -> Iterator[dict[str, Any]]:
        """Record a download or load however it ends; the block adds facts to the yielded dict."""
        started = time.monotonic()
        facts: dict[str, Any] = {"status": "failed"}
        try:
            yield facts
            facts["status"] = "complete"
        except (GenerationCancelled, DownloadCancelled):
            facts["status"] = "cancelled"
            raise
        except CanvasError as error:
            facts["error"] = str(error)
            raise
        finally:
            facts["download_time"] = time.monotonic() - started
            self._record(replace(event, **facts))


class _Telling:
    """Tells a download's progress to the job's watchers and, now and then, to the terminal."""

    EVERY = 5.0  # seconds

    def __init__(self, job: Job) -> None:
        self._job = job
        self._told = time.monotonic()

    def __call__(self, progress: downloads.DownloadProgress) -> None:
        self._job.update(progress=progress)
        if time.monotonic() - self._told < self.EVERY:
            return
        self._told = time.monotonic()
        log.info(
            "%s: %s of %s, %s a second, %s left",
            self._job.model_key,
            gigabytes(progress.bytes_done),
            gigabytes(progress.bytes_total),
            gigabytes(int(progress.bytes_per_second)),
            "unknown time" if progress.seconds_left is None else duration(progress.seconds_left),
        )


def _show(job: Job, step: Step) -> None:
    job.update(progress=step, preview=step.preview or job.preview)
