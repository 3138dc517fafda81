"""What every painter takes: an order, and how it tells how far it is."""

from __future__ import annotations

import threading
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Protocol

from canvas.catalog import ModelSpec
from canvas.engine.device import Device
from canvas.engine.generate import Materials
from canvas.errors import GenerationFailed
from canvas.models.download import LocalModel
from canvas.request import GeneratedImage, GenerationRequest, Status, Step


@dataclass(frozen=True)
class Order:
    """A resolved request with all that it needs; `local` is None where no model is loaded."""

    request: GenerationRequest
    spec: ModelSpec
    local: LocalModel | None = None
    materials: Materials = field(default_factory=Materials)


class Tell(Protocol):
    """Called with the job's new status, and with each step."""

    def __call__(self, *, status: Status | None = None, step: Step | None = None) -> None:
        """Either may be left out."""


class Painter(Protocol):
    """A device with the models loaded on it; one thread has it paint at a time."""

    @property
    def device(self) -> Device:
        """The device; found at the first use, which may wait."""

    @property
    def device_if_known(self) -> Device | None:
        """The device when it has been found already; never waits."""

    def is_loaded(self, spec: ModelSpec, mode: str = "quality") -> bool:
        """Whether it has the model in memory; never waits."""

    def load(self, spec: ModelSpec, local: LocalModel) -> None:
        """Have a model ready."""

    def free(self, spec: ModelSpec) -> bool:
        """Let a loaded model go; raises CanvasError while it paints."""

    def paint(
        self, order: Order, tell: Tell, cancelled: threading.Event
    ) -> Generator[GeneratedImage]:
        """The pictures, each as soon as it is done; raises WorkerDied where it may be tried again.

        Raises GenerationCancelled within one step.
        """

    def close(self) -> None:
        """End after what it does now."""


class WorkerDied(GenerationFailed):
    """The process that painted has ended; nothing is wrong with the order, as far as is known."""
