"""Trainings that take given minutes and can be resumed."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from canvas.files import atomic_write

logger = logging.getLogger(__name__)
REPORT_INTERVAL = 60.0  # seconds between log lines and checkpoints


class TimeBudget:
    """The minutes that a stage trains for; its progress drives the learning rate.

    `minutes` is the total over all runs, so that the learning rate decay always completes;
    `stop_after` (minutes) ends this run earlier, to be resumed.
    """

    def __init__(self, minutes: float, device: torch.device, stop_after: float | None = None) -> None:
        self.minutes, self.device, self.stop_after = minutes, device, stop_after
        self.start()

    def start(self, elapsed: float = 0.0) -> None:
        """Start the clock; `elapsed` is the seconds of earlier runs."""
        self._earlier_runs, self._started = elapsed, time.monotonic()

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


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """`torch.save`, of which an interruption leaves no half file."""
    with atomic_write(path) as file:
        torch.save(state, file)


class TrainingLoop:
    """The frame of a training: its steps, learning rate, reports and the checkpoint from which it resumes."""

    def __init__(
        self, checkpoint: Path, budget: TimeBudget, model: nn.Module, optimizer: torch.optim.Optimizer, **parts: Any
    ) -> None:
        self._checkpoint, self._budget = checkpoint, budget
        self._parts = {"model": model, "optimizer": optimizer, **parts}
        self._parameters, self._optimizer = list(model.parameters()), optimizer
        self._learning_rate = optimizer.param_groups[0]["lr"]
        self._losses: dict[str, torch.Tensor] = {}  # moving averages; the first values count equally
        self._num_updates = 0
        self.step, self._elapsed = 0, 0.0
        if checkpoint.exists():
            state = torch.load(checkpoint, map_location="cpu", weights_only=True)
            for name, part in self._parts.items():
                part.load_state_dict(state[name])
            self.step, self._elapsed = state["step"], state["elapsed"]
            logger.info("resumed from %s at step %d", checkpoint, self.step)

    @property
    def progress(self) -> float:
        """Fraction of the whole training, 0 to 1."""
        return self._budget.progress

    def steps(self) -> Iterator[int]:
        """The numbers of the steps until the budget is exhausted; reports and saves regularly and at the end."""
        self._budget.start(self._elapsed)
        reported, done = time.monotonic(), False
        while not done:
            yield self.step
            self.step += 1
            done = self._budget.is_exhausted
            if done or time.monotonic() - reported >= REPORT_INTERVAL:
                losses = ", ".join(f"{name} {float(mean):.4f}" for name, mean in self._losses.items())
                logger.info("%s %.0f%% step %d: %s", self._checkpoint.stem, 100 * self.progress, self.step, losses)
                state = {name: part.state_dict() for name, part in self._parts.items()}
                save_atomically({**state, "step": self.step, "elapsed": self._budget.elapsed}, self._checkpoint)
                reported = time.monotonic()

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
        self._num_updates += 1
        for name, value in (losses or {"loss": total_loss}).items():
            mean = self._losses.get(name, value).detach()
            self._losses[name] = mean.lerp(value.detach(), max(0.01, 1 / self._num_updates))
