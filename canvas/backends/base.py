"""The task and the interface of all backends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from canvas.catalog import ModelSpec
from canvas.engine.device import Device
from canvas.engine.generate import GenerationInputs
from canvas.errors import CanvasError, GenerationFailed
from canvas.models.download import DownloadProgress, LocalModel
from canvas.request import GeneratedImage, GenerationRequest, JobStatus, ProgressUpdate

Result = TypeVar("Result")


@dataclass(frozen=True)
class GenerationTask:
    """A resolved request with its inputs; `local` is None if no model is loaded here."""

    request: GenerationRequest
    spec: ModelSpec
    local: LocalModel | None = None
    inputs: GenerationInputs = field(default_factory=GenerationInputs)


class ProgressCallback(Protocol):
    """Called with each new status of the job, with each step, and with the progress of a worker's download."""

    def __call__(
        self,
        *,
        status: JobStatus | None = None,
        step: ProgressUpdate | None = None,
        download: DownloadProgress | None = None,
    ) -> None:
        """Report one of the three."""


class Backend(Protocol):
    """A device and the models loaded on it; runs one task at a time.

    `name` is that of the process or actor, `node` that of its machine. `error` is why it takes no
    jobs.
    """

    name: str
    node: str
    error: CanvasError | None

    @property
    def device(self) -> Device:
        """The device; the first access may wait for its detection."""

    @property
    def device_if_known(self) -> Device | None:
        """The device if it is already detected; never waits."""

    def wait_until_ready(self) -> bool:
        """Wait until it can run a task; False once it is closed."""

    def is_loaded(self, spec: ModelSpec, preset: str = "quality") -> bool:
        """Whether the model is in memory; never waits."""

    def load(self, spec: ModelSpec, local: LocalModel) -> None:
        """Load a model into memory."""

    def unload(self, spec: ModelSpec) -> bool:
        """Unload a model, and return whether it was loaded; raises CanvasError during a task."""

    def generate(
        self, task: GenerationTask, on_progress: ProgressCallback, cancelled: threading.Event
    ) -> Generator[GeneratedImage]:
        """Yield each image as soon as it is complete.

        Raises GenerationCancelled within one step, and WorkerCrashed if the task may be run again.
        """

    def close(self) -> None:
        """Release the backend after its current task."""


def run_in_fresh_thread(function: Callable[..., Result], *args: Any) -> Result:
    """Call a function in a new thread and return its result.

    For work after OutOfMemory: oneDNN's code generator remembers a failed allocation for the
    lifetime of the thread, and rejects every new kernel.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *args).result()


def busy_error() -> CanvasError:
    """The error for unloading a model during a task."""
    return CanvasError("An image is being generated. Unload the model when it is finished.")


class WorkerCrashed(GenerationFailed):
    """The worker exited unexpectedly; the task is not known to be the cause."""


class WorkerRemoved(WorkerCrashed):
    """The worker had ended for good before the task started."""
