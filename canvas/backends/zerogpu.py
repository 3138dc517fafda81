"""Generates on a ZeroGPU Space: each task requests a GPU, in a process forked for it."""

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
from canvas.backends.local import LocalBackend, RecordEvent
from canvas.engine.device import Device
from canvas.engine.estimate import estimate_seconds
from canvas.errors import CanvasError, GenerationCancelled, GenerationFailed
from canvas.history.database import ModelEvent
from canvas.models.hub_client import Hub
from canvas.request import GeneratedImage
from canvas.settings import Settings

Message = tuple[str, Any]
# The duration is charged to the visitor's quota: too short ends the task, too long is rejected.
MAX_DURATION = 120.0  # seconds
STARTUP_SECONDS = 15.0  # to move a model to the GPU, or to load it there
DEFAULT_DURATION = 60.0  # seconds for models without an estimate
ASSUMED_GFLOPS = 30_000.0  # per second, a low value for half an H200 running a UNet


def gpu_duration(task: GenerationTask, device: Device) -> float:
    """Seconds of GPU time to request for a task."""
    seconds = estimate_seconds(task.request, task.spec, replace(device, gflops=ASSUMED_GFLOPS))
    if seconds is None:
        return DEFAULT_DURATION
    return min(MAX_DURATION, STARTUP_SECONDS + seconds * task.request.num_images)


class ZeroGpuBackend(LocalBackend):
    """A LocalBackend whose tasks run in processes that ZeroGPU forks.

    Models loaded before the page is served are inherited by every process, on an emulated "cuda"
    as ZeroGPU requires; other models are loaded there, on the real GPU. Outside ZeroGPU the
    package `spaces` does not wrap functions, and everything runs in this process. The backend
    must be created before torch is imported.
    """

    name = "ZeroGPU"

    def __init__(self, settings: Settings, record_event: RecordEvent, hub: Hub | None = None) -> None:
        import spaces

        parent_pid = os.getpid()

        def record_in_parent(event: ModelEvent) -> None:
            if os.getpid() == parent_pid:  # a forked process must not use the inherited database connection
                record_event(event)

        super().__init__(settings, record_in_parent, hub)
        self._on_gpu = spaces.GPU(self._run_on_gpu, duration=lambda _, seconds: round(seconds))

    def generate(
        self, task: GenerationTask, on_progress: ProgressCallback, cancelled: threading.Event
    ) -> Generator[GeneratedImage]:
        """Yield the images of a task; raises GenerationFailed with ZeroGPU's message."""
        from gradio.exceptions import Error as GradioError

        seconds = gpu_duration(task, self.device)
        try:
            with closing(self._on_gpu(task, seconds)) as messages:
                for kind, value in messages:
                    if cancelled.is_set():
                        raise GenerationCancelled("Cancelled.")
                    if kind == "image":
                        yield value
                    elif kind == "error":
                        raise value
                    else:
                        on_progress(**value)
        except GradioError as error:
            raise GenerationFailed(f"ZeroGPU: {error.message}") from error

    def _run_on_gpu(self, task: GenerationTask, _: float) -> Generator[Message]:
        """Run in the forked process: yield images, progress and errors as messages."""
        messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        stop = threading.Event()

        def on_progress(**progress: Any) -> None:
            messages.put(("progress", progress))

        def run() -> None:
            try:
                for image in LocalBackend.generate(self, task, on_progress, stop):
                    messages.put(("image", image))
            except CanvasError as error:
                messages.put(("error", error))
            finally:
                messages.put(("end", None))

        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(run)
            try:
                while (message := messages.get())[0] != "end":
                    yield message
                future.result()  # raises unexpected exceptions
            finally:
                stop.set()
