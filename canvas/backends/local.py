"""Generates in this process: the device, the pipelines loaded on it, and the safety checker."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

from canvas.backends.base import GenerationTask, ProgressCallback, busy_error
from canvas.catalog import ModelSpec
from canvas.engine.device import Device, detect_device
from canvas.engine.img2img import pipeline_task
from canvas.engine.openvino.engine import OpenVinoEngine, make_engine
from canvas.engine.pipeline_cache import PipelineCache, cache_key, default_budget
from canvas.engine.references import reference_bytes
from canvas.engine.safety import ImageSafetyChecker, find_checker
from canvas.engine.tasks import postprocess, run_task
from canvas.engine.upscale import LoadedPipeline
from canvas.errors import CanvasError, DownloadCancelled, GenerationCancelled
from canvas.formatting import format_bytes, format_duration
from canvas.history.database import ModelEvent
from canvas.models import download
from canvas.models.download import DownloadProgress, LocalModel
from canvas.models.hub_client import Hub
from canvas.request import GeneratedImage, GenerationRequest
from canvas.settings import Settings

RecordEvent = Callable[[ModelEvent], Any]

log = logging.getLogger(__name__)


class LocalBackend:
    """The backend that uses the device itself; `record_event` is called for every model load.

    `num_workers` backends in as many processes share the CPU cores and the memory.
    """

    name = "This process"
    node = "local"
    error: CanvasError | None = None

    def __init__(
        self, settings: Settings, record_event: RecordEvent, hub: Hub | None = None, num_workers: int = 1
    ) -> None:
        self._settings = settings
        self._record_event = record_event
        self._hub = hub
        self._num_workers = num_workers
        self._device: Device | None = None
        self._pipelines: PipelineCache | None = None
        self._openvino: OpenVinoEngine | None = None
        self._checker: ImageSafetyChecker | None = None
        self._generate_lock = threading.Lock()
        self._device_lock = threading.Lock()

    @property
    def device(self) -> Device:
        with self._device_lock:
            if self._device is None:
                settings = self._settings
                self._device = detect_device(
                    settings.cache_dir,
                    settings.device,
                    settings.dtype,
                    num_processes=self._num_workers,
                    measure=not settings.zero_gpu,
                )
            return self._device

    @property
    def device_if_known(self) -> Device | None:
        return self._device

    def loaded_models(self) -> frozenset[str]:
        """The cache keys of the pipelines in memory."""
        return frozenset(self._pipelines.loaded() if self._pipelines else ())

    def wait_until_ready(self) -> bool:
        return True

    def is_loaded(self, spec: ModelSpec, preset: str = "quality") -> bool:
        return cache_key(spec, preset) in self.loaded_models()

    def load(self, spec: ModelSpec, local: LocalModel) -> None:
        with self._generate_lock:
            self._pipeline(spec, local)

    def unload(self, spec: ModelSpec) -> bool:
        if not self._generate_lock.acquire(timeout=1):
            raise busy_error()
        try:
            return self._pipelines is not None and self._pipelines.unload(spec)
        finally:
            self._generate_lock.release()

    def close(self) -> None:
        """Stop the background process; all other resources belong to this one."""
        if self._openvino is not None:
            self._openvino.close()

    def generate(
        self, task: GenerationTask, on_progress: ProgressCallback, cancelled: threading.Event
    ) -> Generator[GeneratedImage]:
        with self._generate_lock, closing(self._run(task, on_progress, cancelled)) as images:
            for image in images:
                yield postprocess(image, self._safety_checker())

    def _run(
        self, task: GenerationTask, on_progress: ProgressCallback, cancelled: threading.Event
    ) -> Generator[GeneratedImage]:
        request, model = task.request, None
        if task.local is not None and request.needs_model:
            on_progress(status="loading")
            inputs = task.inputs
            torch_only = any(weight for _, weight in inputs.loras) or bool(
                inputs.embeddings or inputs.controls or inputs.references
            )
            pipeline = self._pipeline(task.spec, task.local, request, torch_only=torch_only)
            assert self._pipelines is not None  # noqa: S101 - it has the pipeline
            nets = tuple(self._pipelines.get_controlnet(each.folder, pipeline) for each in inputs.controls)
            self._pipelines.make_room(reference_bytes(inputs.references, pipeline), pipeline)
            model = LoadedPipeline(pipeline, task.spec, self.device, task.local.revision, nets)
            if cancelled.is_set():
                raise GenerationCancelled("Cancelled before the first step.")
        on_progress(status="running")
        with self._openvino.generating(model.pipeline) if self._openvino and model else nullcontext():
            yield from run_task(request, task.inputs, model, lambda step: on_progress(step=step), cancelled)

    def _safety_checker(self) -> ImageSafetyChecker | None:
        if self._settings.safety_level == "full" and self._checker is None:
            self._checker = ImageSafetyChecker(self.device, find_checker(hub=self._hub))
        return self._checker

    def _pipeline(
        self,
        spec: ModelSpec,
        local: LocalModel,
        request: GenerationRequest | None = None,
        *,
        torch_only: bool = False,  # LoRAs cannot be applied to OpenVINO's graphs
    ) -> Any:
        """The pipeline for a request, or the text-to-image pipeline."""
        if self._pipelines is None:
            self._openvino = make_engine(self.device, self._settings.cache_dir, self._settings.engine)
            self._pipelines = PipelineCache(
                self.device,
                self._memory_budget(),
                hub=self._hub,
                openvino=self._openvino,
                quantization=self._settings.quantization,
                offload=self._settings.offload,
            )
        preset = request.preset if request else "quality"
        if not self._pipelines.is_loaded(spec, preset, torch_only=torch_only):
            with log_event(self._record_event, ModelEvent(spec.key, "load", local.repo_id, local.revision)):
                self._pipelines.get(spec, local, preset=preset, torch_only=torch_only)
        pipeline = self._pipelines.get(spec, local, preset=preset, torch_only=torch_only)
        if request is None:
            return pipeline
        return self._pipelines.get(spec, local, pipeline_task(pipeline, request), preset, torch_only=torch_only)

    def _memory_budget(self) -> int:
        """Bytes for models: workers have a GPU each, but share the memory of the CPU."""
        budget = self._settings.memory_budget or default_budget(self.device)
        return budget if self.device.name == "cuda" else budget // self._num_workers


@contextmanager
def log_event(record_event: RecordEvent, event: ModelEvent) -> Iterator[dict[str, Any]]:
    """Record a download or load when the block ends; the block may add fields to the dict."""
    started = time.monotonic()
    fields: dict[str, Any] = {"status": "failed"}
    try:
        yield fields
        fields["status"] = "complete"
    except (GenerationCancelled, DownloadCancelled):
        fields["status"] = "cancelled"
        raise
    except CanvasError as error:
        fields["error"] = str(error)
        raise
    finally:
        fields["download_time"] = time.monotonic() - started
        record_event(replace(event, **fields))


def download_model(
    spec: ModelSpec,
    record_event: RecordEvent,
    on_progress: Callable[[DownloadProgress], None],
    cancelled: threading.Event,
    hub: Hub | None,
) -> LocalModel:
    """Download a model and record that."""
    with log_event(record_event, ModelEvent(spec.key, "download", spec.name)) as event:
        plan = download.plan_download(spec, hub=hub, cancelled=cancelled)
        event.update(repo_id=plan.repo_id, revision=plan.revision)
        log.info("%s: downloading %s of %s", spec.key, format_bytes(plan.missing_bytes), plan.repo_id)
        result = download.download(spec, plan, on_progress, cancelled, hub=hub)
        event.update(bytes=result.bytes, file_count=result.file_count)
        log.info("%s: downloaded in %s", spec.key, format_duration(result.seconds))
    return result.local
