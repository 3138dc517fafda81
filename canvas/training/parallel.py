"""Several processes of one thread each that train one model, their gradients averaged.

On two cores that others use as well this is two to three times as quick as one process of two
threads: threads wait for each other at every operation, processes once a step.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing, nn


@dataclass(frozen=True)
class Team:
    """This process's place among those that train together."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process reports and saves."""
        return self.rank == 0

    def share_weights(self, model: nn.Module) -> None:
        """Start all from the leader's weights."""
        if self.size > 1:
            for parameter in model.parameters():
                distributed.broadcast(parameter.data, src=0)

    def descend(self, optimizer: torch.optim.Optimizer, loss: torch.Tensor, rate: float) -> None:
        """One step of the optimizer at this learning rate, along the team's mean gradients."""
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss.backward()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._average_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    def _average_gradients(self, parameters: list[nn.Parameter]) -> None:
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        flat /= self.size
        for gradient, part in zip(
            gradients, flat.split([g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(part.view_as(gradient))

    def agree(self, *numbers: float) -> list[float]:
        """The leader's numbers, everywhere."""
        if self.size == 1:
            return list(numbers)
        shared = torch.tensor(numbers, dtype=torch.float64)
        distributed.broadcast(shared, src=0)
        return shared.tolist()


def _work(
    rank: int, size: int, meeting: str, task: Callable[..., None], args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
    try:
        task(Team(rank, size), *args)
    finally:
        distributed.destroy_process_group()


def run_team(size: int, work: Path, task: Callable[..., None], *args: Any) -> None:
    """Run `task(team, *args)` in `size` processes; in this one when `size` is 1."""
    if size == 1:
        task(Team(), *args)
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    meeting = work / f"meeting-{os.getpid()}"
    meeting.unlink(missing_ok=True)
    multiprocessing.start_processes(
        _work,
        (size, f"file://{meeting.resolve()}", task, args),
        nprocs=size,
        start_method="spawn",
    )
    meeting.unlink(missing_ok=True)
