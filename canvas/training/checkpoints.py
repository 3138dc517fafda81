"""Clocks and checkpoints: every stage runs for given minutes and goes on where it stopped."""

import logging
import os
import time
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)
SAVE_EVERY = 60.0  # seconds; a checkpoint costs up to one


class Clock:
    """Minutes that a stage trains for; its share drives the learning rate.

    `minutes` is the whole training over all runs, so that the decay always completes;
    `stop_after` ends this run earlier, to be resumed. With a `deadline` on the monotonic clock
    the minutes are what is left until then when the training begins.
    """

    def __init__(
        self,
        minutes: float,
        device: torch.device,
        report_every: float = 60.0,
        stop_after: float | None = None,
        deadline: float | None = None,
    ) -> None:
        self.minutes = minutes
        self.deadline = deadline
        self.device = device
        self.report_every = report_every
        self.stop_after = stop_after
        self._before = 0.0
        self._started = self._reported = self._saved = time.monotonic()

    def begin(self, spent: float = 0.0) -> None:
        """Start counting after the seconds that earlier runs spent."""
        self._before, self._started = spent, time.monotonic()
        self._reported = self._saved = self._started
        if self.deadline is not None:
            self.minutes = max(1.0, spent + self.deadline - self._started) / 60

    @property
    def spent(self) -> float:
        """Seconds trained, earlier runs included."""
        return self._before + time.monotonic() - self._started

    @property
    def run_seconds(self) -> float:
        """Seconds of this run."""
        return max(1e-3, time.monotonic() - self._started)

    @property
    def share(self) -> float:
        """Part of the whole training that is done, 0 to 1."""
        return min(1.0, self.spent / (60 * self.minutes))

    @property
    def is_over(self) -> bool:
        """Whether the training is complete, or this run is to stop."""
        run = time.monotonic() - self._started
        return self.share >= 1 or (self.stop_after is not None and run > 60 * self.stop_after)

    def is_report_due(self, over: bool) -> bool:
        """Whether it is time to report: at the end, and every `report_every` seconds."""
        if not over and time.monotonic() - self._reported < self.report_every:
            return False
        self._reported = time.monotonic()
        return True

    def is_save_due(self, over: bool) -> bool:
        """Whether it is time to save, as often as it reports and at most every minute."""
        if not over and time.monotonic() - self._saved < max(self.report_every, SAVE_EVERY):
            return False
        self._saved = time.monotonic()
        return True


class Mean:
    """A running mean of numbers that stay on their device until it is read."""

    def __init__(self, amount: float, start: float = 0.0, count: int = 0) -> None:
        self._amount = amount
        self._mean: torch.Tensor | float = start
        self._count = count

    def add(self, number: torch.Tensor) -> None:
        """Move towards the number; the first ones count alike."""
        self._count += 1
        share = max(self._amount, 1 / self._count)
        self._mean = self._mean + (number.detach() - self._mean) * share

    @property
    def value(self) -> float:
        """Waits for the device."""
        return float(self._mean)


def pick_device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(device: torch.device) -> torch.autocast:
    """Half the bits where they do; keeps no cast weights, which a CUDA graph could not renew."""
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


def memory_format(device: torch.device) -> torch.memory_format:
    """Channels last where convolutions are quickest so; on a CPU narrow ones crash in training."""
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def save_checkpoint(path: Path, **parts: Any) -> None:
    """Write state of modules and optimizers, and plain numbers, replacing the file at once."""
    state = {
        name: part.state_dict() if hasattr(part, "state_dict") else part
        for name, part in parts.items()
    }
    part_path = path.with_suffix(".part")
    torch.save(state, part_path)
    os.replace(part_path, path)


def load_checkpoint(path: Path, **parts: Any) -> dict[str, Any]:
    """Restore the parts and return the rest; empty when there is no checkpoint yet."""
    if not path.exists():
        return {}
    state = torch.load(path, map_location="cpu", weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state.pop(name))
    logger.info(
        "resumed from %s: %s", path, {k: v for k, v in state.items() if isinstance(v, (int, float))}
    )
    return state
