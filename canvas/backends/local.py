"""The painter in this process: its device, the models loaded on it, and its checker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

from canvas.backends.base import GenerationTask, ProgressCallback
from canvas.catalog import ModelSpec
from canvas.engine.device import Device, detect_device
from canvas.engine.img2img import pipeline_task
from canvas.engine.pipeline_cache import PipelineCache, cache_key, default_budget
from canvas.engine.safety import ImageSafetyChecker, find_checker
from canvas.engine.tasks import postprocess, run_task
from canvas.engine.upscale import LoadedPipeline
from canvas.errors import CanvasError, DownloadCancelled, GenerationCancelled
from canvas.history.database import ModelEvent
from canvas.models.download import LocalModel
from canvas.models.hub_client import Hub
from canvas.request import GeneratedImage, GenerationRequest
from canvas.settings import Settings

Record = Callable[[ModelEvent], Any]


class LocalBackend:
    """Alone touches the device. `record` gets every load; `of` painters share the processor."""

    def __init__(
        self, settings: Settings, record: Record, hub: Hub | None = None, of: int = 1
    ) -> None:
        self._settings = settings
        self._record = record
        self._hub = hub
        self._of = of
        self._device: Device | None = None
        self._pipelines: PipelineCache | None = None
        self._checker: ImageSafetyChecker | None = None
        self._generate_lock = threading.Lock()
        self._device_lock = threading.Lock()

    @property
    def device(self) -> Device:
        """The device with its dtype; found by a short measurement at the first use."""
        with self._device_lock:
            if self._device is None:
                settings = self._settings
                self._device = detect_device(
                    settings.cache_dir,
                    settings.device,
                    settings.dtype,
                    sharing=self._of,
                    measured=not settings.zero_gpu,
                )
            return self._device

    @property
    def device_if_known(self) -> Device | None:
        """The device when it has been found already; never waits."""
        return self._device

    def worker_count(self) -> frozenset[str]:
        """The sources of the models in memory."""
        return frozenset(self._pipelines.loaded() if self._pipelines else ())

    def is_loaded(self, spec: ModelSpec, preset: str = "quality") -> bool:
        """Whether the model is in memory."""
        return cache_key(spec, preset) in self.worker_count()

    def load(self, spec: ModelSpec, local: LocalModel) -> None:
        """Have a model ready for plain pictures."""
        with self._generate_lock:
            self._pipeline(spec, local)

    def unload(self, spec: ModelSpec) -> bool:
        """Let a loaded model go from memory; raises CanvasError while the device works."""
        if not self._generate_lock.acquire(timeout=1):
            raise CanvasError("A picture is being made; free the model when it is done.")
        try:
            return self._pipelines is not None and self._pipelines.unload(spec)
        finally:
            self._generate_lock.release()

    def close(self) -> None:
        """Nothing outlives this process."""

    def generate(
        self, order: GenerationTask, tell: ProgressCallback, cancelled: threading.Event
    ) -> Generator[GeneratedImage]:
        """The finished pictures of an order, one after the other."""
        with (
            self._generate_lock,
            closing(self._pictures(order, tell, cancelled)) as pictures,
        ):
            for picture in pictures:
                yield postprocess(picture, self._safety_checker())

    def _pictures(
        self, order: GenerationTask, tell: ProgressCallback, cancelled: threading.Event
    ) -> Generator[GeneratedImage]:
        request, model = order.request, None
        if order.local is not None and request.needs_model:
            tell(status="loading")
            pipeline = self._pipeline(order.spec, order.local, request)
            model = LoadedPipeline(pipeline, order.spec, self.device, order.local.revision)
            if cancelled.is_set():
                raise GenerationCancelled("Stopped before the first step.")
        tell(status="running")
        yield from run_task(request, order.inputs, model, lambda step: tell(step=step), cancelled)

    def _safety_checker(self) -> ImageSafetyChecker | None:
        if self._settings.safety_level == "full" and self._checker is None:
            self._checker = ImageSafetyChecker(self.device, find_checker(hub=self._hub))
        return self._checker

    def _pipeline(
        self, spec: ModelSpec, local: LocalModel, request: GenerationRequest | None = None
    ) -> Any:
        """The model's pipeline, in the variant that a request needs."""
        if self._pipelines is None:
            self._pipelines = PipelineCache(self.device, self._budget(), hub=self._hub)
        preset = request.preset if request else "quality"
        if not self._pipelines.is_loaded(spec, preset):
            with log_event(
                self._record, ModelEvent(spec.key, "load", local.repo_id, local.revision)
            ):
                self._pipelines.get(spec, local, preset=preset)
        pipeline = self._pipelines.get(spec, local, preset=preset)
        if request is None:
            return pipeline
        return self._pipelines.get(spec, local, pipeline_task(pipeline, request), preset)

    def _budget(self) -> int:
        """Bytes for models: each GPU has memory of its own, the processor's is divided."""
        whole = self._settings.memory_budget or default_budget(self.device)
        return whole if self.device.name == "cuda" else whole // self._of


@contextmanager
def log_event(record: Record, event: ModelEvent) -> Iterator[dict[str, Any]]:
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
        record(replace(event, **facts))
