"""What every painter takes: an order, and how it tells how far it is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from canvas.catalog import ModelSpec
from canvas.engine.device import Device
from canvas.engine.generate import GenerationInputs
from canvas.errors import GenerationFailed
from canvas.models.download import LocalModel
from canvas.request import GeneratedImage, GenerationRequest, JobStatus, ProgressUpdate

Result = TypeVar("Result")


@dataclass(frozen=True)
class GenerationTask:
    """A resolved request with all that it needs; `local` is None where no model is loaded."""

    request: GenerationRequest
    spec: ModelSpec
    local: LocalModel | None = None
    inputs: GenerationInputs = field(default_factory=GenerationInputs)


class ProgressCallback(Protocol):
    """Called with the job's new status, and with each step."""

    def __call__(
        self, *, status: JobStatus | None = None, step: ProgressUpdate | None = None
    ) -> None:
        """Either may be left out."""


class Backend(Protocol):
    """A device with the models loaded on it; one thread has it paint at a time."""

    @property
    def device(self) -> Device:
        """The device; found at the first use, which may wait."""

    @property
    def device_if_known(self) -> Device | None:
        """The device when it has been found already; never waits."""

    def is_loaded(self, spec: ModelSpec, preset: str = "quality") -> bool:
        """Whether it has the model in memory; never waits."""

    def load(self, spec: ModelSpec, local: LocalModel) -> None:
        """Have a model ready."""

    def unload(self, spec: ModelSpec) -> bool:
        """Let a loaded model go; raises CanvasError while it paints."""

    def generate(
        self, order: GenerationTask, tell: ProgressCallback, cancelled: threading.Event
    ) -> Generator[GeneratedImage]:
        """The pictures, each as soon as it is done; raises WorkerDied where it may be tried again.

        Raises GenerationCancelled within one step.
        """

    def close(self) -> None:
        """End after what it does now."""


def run_in_fresh_thread(function: Callable[..., Result], *args: Any) -> Result:
    """Call a function in a new thread and return what it returns.

    For work after OutOfMemory: oneDNN's code generator remembers an allocation that failed for
    as long as its thread lives, and refuses whatever is new there.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *args).result()


class WorkerCrashed(GenerationFailed):
    """The process that painted has ended; nothing is wrong with the order, as far as is known."""
