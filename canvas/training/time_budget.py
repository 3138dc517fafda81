"""Time budgets and checkpoints: a stage trains for given minutes and can be resumed."""

import logging
import time
from pathlib import Path
from typing import Any

import torch

from canvas.files import atomic_write

logger = logging.getLogger(__name__)
MIN_SAVE_INTERVAL = 60.0  # seconds; saving a checkpoint takes up to one


class TimeBudget:
    """The minutes that a stage trains for; its progress drives the learning rate.

    `minutes` is the total over all runs, so that the learning rate decay always completes;
    `stop_after` (minutes) ends this run earlier, to be resumed.
    """

    def __init__(
        self, minutes: float, device: torch.device, report_every: float = 60.0, stop_after: float | None = None
    ) -> None:
        self.minutes = minutes
        self.device = device
        self.report_every = report_every
        self.stop_after = stop_after
        self._earlier_runs = 0.0
        self._started = self._reported = self._saved = time.monotonic()

    def start(self, elapsed: float = 0.0) -> None:
        """Start the clock; `elapsed` is the seconds of earlier runs."""
        self._earlier_runs, self._started = elapsed, time.monotonic()
        self._reported = self._saved = self._started

    @property
    def elapsed(self) -> float:
        """Seconds trained, earlier runs included."""
        return self._earlier_runs + time.monotonic() - self._started

    @property
    def progress(self) -> float:
        """Fraction of the whole training, 0 to 1."""
        return min(1.0, self.elapsed / (60 * self.minutes))

    @property
    def is_exhausted(self) -> bool:
        """Whether the training is complete or this run has reached `stop_after`."""
        run = time.monotonic() - self._started
        return self.progress >= 1 or (self.stop_after is not None and run > 60 * self.stop_after)

    def is_report_due(self, done: bool) -> bool:
        """Whether to log now: at the end, and every `report_every` seconds."""
        if not done and time.monotonic() - self._reported < self.report_every:
            return False
        self._reported = time.monotonic()
        return True

    def is_save_due(self, done: bool) -> bool:
        """Whether to save now: at the end and with the reports, but not more than once a minute."""
        interval = max(self.report_every, MIN_SAVE_INTERVAL)
        if not done and time.monotonic() - self._saved < interval:
            return False
        self._saved = time.monotonic()
        return True


class EMAMetric:
    """An exponential moving average that stays on its device until it is read."""

    def __init__(self, decay: float, value: float = 0.0, count: int = 0) -> None:
        self._decay = decay
        self._mean: torch.Tensor | float = value
        self._count = count

    def update(self, number: torch.Tensor) -> None:
        """Add a value; the first ones are averaged equally."""
        self._count += 1
        weight = max(1 - self._decay, 1 / self._count)
        self._mean = self._mean + (number.detach() - self._mean) * weight

    @property
    def value(self) -> float:
        """The average; synchronizes with the device."""
        return float(self._mean)


def save_checkpoint(path: Path, **parts: Any) -> None:
    """Save modules, optimizers and plain numbers by name, atomically."""
    state = {name: part.state_dict() if hasattr(part, "state_dict") else part for name, part in parts.items()}
    with atomic_write(path) as file:
        torch.save(state, file)


def load_checkpoint(path: Path, **parts: Any) -> dict[str, Any]:
    """Restore the parts and return the other entries; empty if there is no checkpoint."""
    if not path.exists():
        return {}
    state = torch.load(path, map_location="cpu", weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state.pop(name))
    numbers = {name: value for name, value in state.items() if isinstance(value, (int, float))}
    logger.info("resumed from %s: %s", path, numbers)
    return state
