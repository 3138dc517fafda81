"""The one door for every front end: wishes go in, pictures come out and are kept."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from canvas.catalog import MODELS, Catalog, ModelSpec, get_model
from canvas.engine import downloads, prompts
from canvas.engine.device import Device, detect_device
from canvas.engine.generation import run
from canvas.engine.pipelines import PipelineCache
from canvas.errors import CanvasError, GenerationCancelled, GenerationFailed, NotFound, StorageError
from canvas.history.gallery import Gallery
from canvas.history.images import ImageFolder
from canvas.history.store import ModelEvent, Store
from canvas.jobs import Job, JobBook, JobQueue
from canvas.models import ModelState, describe
from canvas.request import GeneratedImage, GenerationRequest, Step
from canvas.settings import Settings, quiet_libraries

if TYPE_CHECKING:
    from canvas.engine.downloads import LocalModel

log = logging.getLogger(__name__)


class Studio:
    """Joins the engine and the history; every front end makes pictures through `submit`.

    One worker holds the device, one fetches models. Use it as a context manager, or
    call `close`. Raises StorageError when the data folder cannot be used.
    """

    def __init__(self, settings: Settings | None = None, models: Catalog = MODELS) -> None:
        self.settings = settings or Settings.from_environment()
        quiet_libraries()
        self.models = Catalog(models)
        if self.settings.models_file.is_file():
            self.models.load(self.settings.models_file)
        get_model(self.settings.model, self.models)
        _make_folder(self.settings.data_dir)
        self.store = Store(self.settings.database)
        self.gallery = Gallery(self.store, ImageFolder(self.settings.outputs))
        self.gallery.reconcile()
        self._book = JobBook()
        self._fetching = JobQueue()
        self._making = JobQueue()
        self._device_lock = threading.Lock()
        self._detecting = threading.Lock()
        self._device: Device | None = None
        self._pipelines: PipelineCache | None = None
        self._workers = [
            threading.Thread(target=self._work, args=(queue, task), daemon=True, name=name)
            for queue, task, name in (
                (self._fetching, self._fetch, "canvas-downloads"),
                (self._making, self._make, "canvas-device"),
            )
        ]
        for worker in self._workers:
            worker.start()

    def __enter__(self) -> Studio:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop what runs, let the workers end, close the database."""
        for job in self._book.of():
            job.cancel()
        for queue in (self._fetching, self._making):
            queue.close()
        for worker in self._workers:
            worker.join(timeout=30)
        self.store.close()

    # Asking for pictures and models

    def submit(self, request: GenerationRequest, owner: str = "local") -> Job:
        """Queue a wish; raises InvalidInput before anything is queued."""
        spec = get_model(request.model_key, self.models)
        job = Job(owner, "generate", spec.key, request.resolve(spec))
        self._book.add(job)
        on_disk = downloads.find_local(spec) is not None
        (self._making if on_disk else self._fetching).put(job)
        return job

    def generate(self, request: GenerationRequest, owner: str = "local") -> list[GeneratedImage]:
        """Submit and wait; returns the kept pictures or raises the reason why there are none."""
        return self.submit(request, owner).wait()

    def download(self, model_key: str, owner: str = "local") -> Job:
        """Fetch a model to the disk without loading it."""
        job = Job(owner, "download", get_model(model_key, self.models).key)
        self._book.add(job)
        self._fetching.put(job)
        return job

    def jobs(self, owner: str) -> list[Job]:
        """The owner's jobs, the oldest first: waiting, running, and what ended within the hour."""
        return self._book.of(owner)

    def job(self, job_id: str, owner: str) -> Job:
        """One job of this owner; raises NotFound for any other."""
        job = self._book.get(job_id)
        if job is None or job.owner != owner:
            raise NotFound(f"There is no job {job_id!r}; it may have ended long ago.")
        return job

    def queue_position(self, job: Job) -> int:
        """How many jobs are before this one; 0 when it runs or is next on a free device."""
        waiting = self._making.in_order()
        running = sum(1 for other in self._book.of() if other.status in ("loading", "running"))
        return waiting.index(job) + running if job in waiting else 0

    def seconds_to_wait(self, job: Job) -> float | None:
        """Seconds until this job's turn, from what jobs like those before it took; None: unknown."""
        waiting = self._making.in_order()
        before = waiting[: waiting.index(job)] if job in waiting else []
        seconds = 0.0
        for other in [*self._book.of(), *before]:
            if other.request is None or (other not in before and other.status != "running"):
                continue
            whole = self.estimate(other.request)
            if whole is None:
                return None
            done = other.progress.fraction if isinstance(other.progress, Step) else 0.0
            seconds += whole * (1 - done)
        return seconds

    # What is known before a picture is made

    @property
    def device(self) -> Device:
        """The device with its dtype; found by a short measurement at the first use."""
        with self._detecting:
            if self._device is None:
                self._device = detect_device(
                    self.settings.cache_dir, self.settings.device, self.settings.dtype
                )
            return self._device

    @property
    def device_if_known(self) -> Device | None:
        """The device when it has been found already; never waits."""
        return self._device

    def warm_up(self) -> None:
        """Find the device and load the first model in the background."""
        threading.Thread(target=self._warm_up, daemon=True, name="canvas-warm-up").start()

    def _warm_up(self) -> None:
        spec = get_model(self.settings.model, self.models)
        local = downloads.find_local(spec)
        if local is not None:
            try:
                with self._device_lock:
                    self._load(spec, local)
            except CanvasError as error:  # said again, to the user, when the model is asked for
                log.warning("%s", error)

    def estimate(self, request: GenerationRequest) -> float | None:
        """Seconds that a request will take once its model is loaded; None before any was timed."""
        device = self._device
        if device is None:
            return None
        request = request.resolve(get_model(request.model_key, self.models))
        per_step = self.store.seconds_per_step(request, device.name, device.dtype)
        steps = (request.num_inference_steps or 0) * request.num_images
        return None if per_step is None else per_step * steps

    def model_state(self, model_key: str, *, ask_hub: bool = False) -> ModelState:
        """Where a model is and what picking it means; asks the Hub for bytes only when told to."""
        spec = get_model(model_key, self.models)
        in_memory = self._pipelines is not None and self._pipelines.is_loaded(spec)
        on_disk = in_memory or downloads.find_local(spec) is not None
        missing = None
        if ask_hub and not on_disk:
            missing = downloads.plan_download(spec, half_precision=self._half()).missing_bytes
        where: Literal["memory", "disk", "hub"] = (
            "memory" if in_memory else "disk" if on_disk else "hub"
        )
        seconds = self.estimate(GenerationRequest("a picture", model_key=model_key))
        free = shutil.disk_usage(self.settings.data_dir).free
        return describe(spec, where, missing_bytes=missing, free_bytes=free, seconds=seconds)

    def enhanced_prompt(self, request: GenerationRequest) -> str:
        """The prompt as the model will get it."""
        return prompts.enhance_prompt(request, get_model(request.model_key, self.models))

    def prompt_fit(self, request: GenerationRequest) -> prompts.PromptFit:
        """How much of the enhanced prompt the model can read."""
        spec = get_model(request.model_key, self.models)
        text = prompts.enhance_prompt(request, spec)
        local = downloads.find_local(spec)
        return prompts.split_at_limit(text, local) if local else prompts.estimate_fit(text)

    # What was made

    def recent(
        self, owner: str | None = "local", limit: int = 24, offset: int = 0
    ) -> list[GeneratedImage]:
        """The owner's pictures, the newest first."""
        return self.store.recent(owner, limit, offset)

    def image(self, image_id: int, owner: str | None = "local") -> GeneratedImage:
        """One picture of this owner (None: anybody's); raises NotFound for any other."""
        image = self.store.image(image_id)
        if image is None or owner not in (None, image.owner):
            raise NotFound(f"There is no picture {image_id}.")
        return image

    def picture_path(self, filename: str, thumbnail: bool = False) -> Path:
        """The file of a picture or of its thumbnail, by the name that cannot be guessed."""
        image = self.store.image_by_filename(filename)
        if image is None:
            raise NotFound("There is no such picture.")
        folder = self.gallery.folder
        path = folder.thumbnail(image) if thumbnail else folder.path_of(image)
        if not path.is_file():
            raise NotFound("The file of this picture is missing.")
        return path

    def free(self, model_key: str) -> bool:
        """Let a loaded model go from memory; raises CanvasError while the device works."""
        spec = get_model(model_key, self.models)
        if not self._device_lock.acquire(timeout=1):
            raise CanvasError("A picture is being made; free the model when it is done.")
        try:
            return self._pipelines is not None and self._pipelines.free(spec)
        finally:
            self._device_lock.release()

    # The workers

    def _work(self, queue: JobQueue, task: object) -> None:
        while (job := queue.take()) is not None:
            try:
                task(job)  # type: ignore[operator]
            except GenerationCancelled as error:
                job.update(status="cancelled", error=error)
            except CanvasError as error:
                job.update(status="failed", error=error)
            except Exception as error:  # noqa: BLE001 - a worker must survive any job, and say so
                log.exception("job %s failed", job.id)
                sentence = f"Something unforeseen went wrong: {type(error).__name__}: {error}"
                job.update(status="failed", error=GenerationFailed(sentence))

    def _fetch(self, job: Job) -> None:
        spec = get_model(job.model_key, self.models)
        if downloads.find_local(spec) is None:
            job.update(status="downloading")
            self._download(job, spec)
        if job.kind == "download":
            job.update(status="done")
        else:
            job.update(status="queued", progress=None)
            self._making.put(job)

    def _download(self, job: Job, spec: ModelSpec) -> None:
        started = time.monotonic()
        repo_id, revision, size, count = spec.name, "", 0, 0
        status, message = "failed", "interrupted"
        try:
            plan = downloads.plan_download(spec, half_precision=self._half())
            repo_id, revision = plan.repo_id, plan.revision
            done = downloads.download(
                spec, plan, lambda progress: job.update(progress=progress), job.cancelled
            )
            size, count, status, message = done.bytes, done.file_count, "complete", ""
        except CanvasError as error:
            message = str(error)
            status = "cancelled" if job.cancelled.is_set() else "failed"
            if job.cancelled.is_set():
                raise GenerationCancelled("The download was stopped.") from error
            raise
        finally:
            seconds = time.monotonic() - started
            self.store.record_download(
                ModelEvent(
                    spec.key, "download", repo_id, revision, size, count, seconds, status, message
                )
            )

    def _make(self, job: Job) -> None:
        if job.request is None:
            return
        spec = get_model(job.model_key, self.models)
        local = downloads.find_local(spec)
        if local is None:  # removed from the disk while the job waited
            self._fetching.put(job)
            return
        with self._device_lock:
            job.update(status="loading")
            pipeline = self._load(spec, local)
            if job.cancelled.is_set():
                raise GenerationCancelled("Stopped before the first step.")
            job.update(status="running")
            pictures = run(
                pipeline,
                job.request,
                spec=spec,
                device=self.device,
                on_step=lambda step: self._on_step(job, step),
                cancelled=job.cancelled,
                model_revision=local.revision,
            )
            for picture in pictures:
                kept = self.gallery.keep(picture, owner=job.owner)
                job.update(images=[*job.images, kept])
        job.update(status="done", preview=None)

    @staticmethod
    def _on_step(job: Job, step: Step) -> None:
        job.update(progress=step, preview=step.preview or job.preview)

    def _load(self, spec: ModelSpec, local: LocalModel) -> object:
        if self._pipelines is None:
            self._pipelines = PipelineCache(self.device, self.settings.memory_budget)
        if self._pipelines.is_loaded(spec):
            return self._pipelines.get(spec, local)
        started = time.monotonic()
        status, message = "failed", "interrupted"
        try:
            pipeline = self._pipelines.get(spec, local)
            status, message = "complete", ""
            return pipeline
        except CanvasError as error:
            message = str(error)
            raise
        finally:
            seconds = time.monotonic() - started
            self.store.record_download(
                ModelEvent(
                    spec.key, "load", local.repo_id, local.revision, 0, 0, seconds, status, message
                )
            )

    def _half(self) -> bool:
        return self.device.dtype != "float32"


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"data_dir: {str(folder)!r} cannot be made ({error.strerror}); "
            "choose a folder that you may write to with --data-dir."
        ) from error
