"""The painter of a ZeroGPU Space: each order borrows a GPU, in a process forked off for it."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import Any

from canvas.backends.base import GenerationTask, ProgressCallback
from canvas.backends.local import LocalBackend, Record
from canvas.catalog import ModelSpec
from canvas.engine.device import Device
from canvas.engine.estimate import estimate_seconds
from canvas.errors import CanvasError, GenerationCancelled, GenerationFailed
from canvas.history.database import ModelEvent
from canvas.models.download import LocalModel
from canvas.models.hub_client import Hub
from canvas.request import GeneratedImage, JobStatus, ProgressUpdate
from canvas.settings import Settings

Message = tuple[str, Any]
# What a visitor's quota is charged for: too little breaks the picture off, too much is refused.
MAX_DURATION = 120.0  # seconds
STARTUP_SECONDS = 15.0  # seconds to move a model to the GPU, or to load it there
DEFAULT_DURATION = 60.0  # seconds for models that nobody has estimated
ASSUMED_GFLOPS = 30_000.0  # a second, of half an H200 at a UNet's kind of work, cautiously


def gpu_duration(order: GenerationTask, device: Device) -> float:
    """For how long an order needs the GPU, by the estimate of its work."""
    request = order.request
    fast = replace(device, gigaflops=ASSUMED_GFLOPS)
    seconds = estimate_seconds(request, order.spec, fast)
    if seconds is None:
        return DEFAULT_DURATION
    return min(MAX_DURATION, STARTUP_SECONDS + seconds * request.num_images)


class ZeroGpuBackend:
    """Paints in the process that ZeroGPU forks off; only the order and its pictures travel.

    Models that are loaded before the page is served lie in memory as ZeroGPU wants it, on an
    emulated "cuda", and every process inherits them; others are loaded there, on the real one.
    Elsewhere than on ZeroGPU the package `spaces` leaves functions as they are, and all of it
    happens in this process. It must be made before torch is imported.
    """

    def __init__(self, settings: Settings, record: Record, hub: Hub | None = None) -> None:
        import spaces

        self._home = os.getpid()
        self._record = record
        self._local = LocalBackend(settings, self._record_at_home, hub)
        self._on_gpu = spaces.GPU(self._work, duration=lambda _, seconds: round(seconds))

    def _record_at_home(self, event: ModelEvent) -> None:
        # A database connection must not be used in a process that has inherited it.
        if os.getpid() == self._home:
            self._record(event)

    @property
    def device(self) -> Device:
        """The GPU that will be borrowed, as `spaces` emulates it."""
        return self._local.device

    @property
    def device_if_known(self) -> Device | None:
        """The same, when it has been looked at already."""
        return self._local.device_if_known

    def is_loaded(self, spec: ModelSpec, preset: str = "quality") -> bool:
        """Whether every process inherits the model."""
        return self._local.is_loaded(spec, preset)

    def load(self, spec: ModelSpec, local: LocalModel) -> None:
        """Have a model ready for all processes to come."""
        self._local.load(spec, local)

    def unload(self, spec: ModelSpec) -> bool:
        """Let a model go here; processes that live keep theirs."""
        return self._local.unload(spec)

    def close(self) -> None:
        """ZeroGPU ends its processes itself."""

    def generate(
        self, order: GenerationTask, tell: ProgressCallback, cancelled: threading.Event
    ) -> Generator[GeneratedImage]:
        """The pictures of an order; raises GenerationFailed with ZeroGPU's words if it refuses."""
        from gradio.exceptions import Error as GradioError

        seconds = gpu_duration(order, self.device)
        try:
            with closing(self._on_gpu(order, seconds)) as messages:
                for kind, value in messages:
                    if cancelled.is_set():
                        raise GenerationCancelled("Stopped.")
                    if kind == "picture":
                        yield value
                    elif kind == "error":
                        raise value
                    else:
                        tell(**value)
        except GradioError as error:
            raise GenerationFailed(f"ZeroGPU: {error.message}") from error

    def _work(self, order: GenerationTask, _: float) -> Generator[Message]:
        """What happens where the GPU is: paint, and say everything in messages."""
        told: queue.SimpleQueue[Message] = queue.SimpleQueue()
        stop = threading.Event()

        def tell(*, status: JobStatus | None = None, step: ProgressUpdate | None = None) -> None:
            told.put(("tell", {"status": status, "step": step}))

        def paint() -> None:
            try:
                for picture in self._local.generate(order, tell, stop):
                    told.put(("picture", picture))
            except CanvasError as error:
                told.put(("error", error))
            finally:
                told.put(("end", None))

        with ThreadPoolExecutor(1) as pool:
            painted = pool.submit(paint)
            try:
                while (message := told.get())[0] != "end":
                    yield message
                painted.result()  # raises what nobody foresaw
            finally:
                stop.set()
