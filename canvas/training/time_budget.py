"""Time budgets and checkpoints: a stage trains for given minutes and can be resumed."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

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


class TrainingLoop:
    """The frame of a training: its steps, learning rate, reports and the checkpoint from which it resumes."""

    def __init__(
        self, checkpoint: Path, budget: TimeBudget, model: nn.Module, optimizer: torch.optim.Optimizer, **parts: Any
    ) -> None:
        self._checkpoint, self._budget = checkpoint, budget
        self._parts = {"model": model, "optimizer": optimizer, **parts}
        self._parameters, self._optimizer = list(model.parameters()), optimizer
        self._learning_rate = optimizer.param_groups[0]["lr"]
        state = load_checkpoint(checkpoint, **self._parts)
        self.step, self._elapsed = state.get("step", 0), state.get("elapsed", 0.0)
        self._losses: dict[str, EMAMetric] = {}

    @property
    def progress(self) -> float:
        """Fraction of the whole training, 0 to 1."""
        return self._budget.progress

    def steps(self) -> Iterator[int]:
        """The numbers of the steps until the budget is exhausted; reports and saves after each that is due."""
        self._budget.start(self._elapsed)
        done = False
        while not done:
            yield self.step
            self.step += 1
            done = self._budget.is_exhausted
            if self._budget.is_report_due(done):
                losses = ", ".join(f"{name} {metric.value:.4f}" for name, metric in self._losses.items())
                logger.info("%s %.0f%% step %d: %s", self._checkpoint.stem, 100 * self.progress, self.step, losses)
            if self._budget.is_save_due(done):
                save_checkpoint(self._checkpoint, **self._parts, step=self.step, elapsed=self._budget.elapsed)

    def update(
        self, total_loss: torch.Tensor, lr_factor: float, max_norm: float | None = 1.0, **losses: torch.Tensor
    ) -> None:
        """One step of the optimizer with a factor of its learning rate.

        The other losses are reported by name, the total where there are none. `max_norm` clips the gradient.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate * lr_factor
        self._optimizer.zero_grad()
        total_loss.backward()
        if max_norm:
            nn.utils.clip_grad_norm_(self._parameters, max_norm)
        self._optimizer.step()
        for name, value in (losses or {"loss": total_loss}).items():
            self._losses.setdefault(name, EMAMetric(0.99)).update(value)
