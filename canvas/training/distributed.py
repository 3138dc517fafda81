"""Data-parallel training in several single-threaded processes with averaged gradients.

On two cores shared with other programs this is two to three times as fast as one process with two
threads: threads synchronize in every operation, processes once per step.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing, nn


@dataclass(frozen=True)
class ProcessGroup:
    """This process among those that train one model."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process logs and saves."""
        return self.rank == 0

    def broadcast_weights(self, model: nn.Module) -> None:
        """Copy the weights of the main process to all others."""
        if self.size > 1:
            for parameter in model.parameters():
                distributed.broadcast(parameter.data, src=0)

    def backward_and_step(self, optimizer: torch.optim.Optimizer, loss: torch.Tensor, learning_rate: float) -> None:
        """One optimizer step along the averaged and clipped gradients of all processes."""
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
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
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def broadcast_values(self, *numbers: float) -> list[float]:
        """The numbers of the main process."""
        if self.size == 1:
            return list(numbers)
        shared = torch.tensor(numbers, dtype=torch.float64)
        distributed.broadcast(shared, src=0)
        return shared.tolist()


def _process_main(rank: int, size: int, init_method: str, task: Callable[..., None], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=init_method, rank=rank, world_size=size)
    try:
        task(ProcessGroup(rank, size), *args)
    finally:
        distributed.destroy_process_group()


def launch(size: int, work: Path, task: Callable[..., None], *args: Any) -> None:
    """Run `task(process_group, *args)` in `size` processes; in this one if `size` is 1."""
    if size == 1:
        task(ProcessGroup(), *args)
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    rendezvous_file = work / f"rendezvous-{os.getpid()}"
    rendezvous_file.unlink(missing_ok=True)
    multiprocessing.start_processes(
        _process_main, (size, f"file://{rendezvous_file.resolve()}", task, args), nprocs=size, start_method="spawn"
    )
    rendezvous_file.unlink(missing_ok=True)
