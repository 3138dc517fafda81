"""One step of a training, again and again: operation by operation, or as one recorded CUDA graph.

A small model's step is hundreds of short operations, which a GPU ends sooner than Python names
the next. Recorded once as a graph, a step is named in one call.
"""

import logging
from collections import deque
from collections.abc import Callable
from typing import Protocol

import torch
from torch import nn

from canvas.training.parallel import Team

logger = logging.getLogger(__name__)
WARM_UP = 4  # steps before one is recorded, for the libraries to choose their ways
AHEAD = 4  # steps that may be named before they are done, or the clock would be wrong
TOLERANCE = 0.02  # by which the recorded loss may differ from the plain one
# A batch to a loss, and after it numbers to report.
Losses = Callable[..., tuple[torch.Tensor, ...]]


class Steps(Protocol):
    """Trains on a batch at a learning rate; gives what the losses gave."""

    def __call__(self, rate: float, *batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Batches are of the same shapes each time."""


class PlainSteps:
    """Operation by operation, on any device and in any team."""

    def __init__(self, team: Team, optimizer: torch.optim.Optimizer, losses: Losses) -> None:
        self.team = team
        self.optimizer = optimizer
        self.losses = losses

    def __call__(self, rate: float, *batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Forward, backward, and a step along the team's mean gradients."""
        values = self.losses(*batch)
        self.team.descend(self.optimizer, values[0], rate)
        return values


class GraphedSteps:
    """The same as one CUDA graph, recorded at the first batch and held against plain steps.

    Falls back to plain steps, with a line in the log, where recording fails or computes
    something else. For a team of one.
    """

    def __init__(self, plain: PlainSteps) -> None:
        self.plain = plain
        self._rates: list[torch.Tensor] = []
        self._batch: tuple[torch.Tensor, ...] = ()
        self._values: tuple[torch.Tensor, ...] = ()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._failed = False
        self._ends: deque[torch.cuda.Event] = deque()

    def __call__(self, rate: float, *batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What the losses gave; overwritten by the next step."""
        if self._failed:
            return self.plain(rate, *batch)
        if self._graph is None:
            return self._first(rate, *batch)
        for kept, given in zip(self._batch, batch, strict=True):
            kept.copy_(given)
        for held in self._rates:
            held.fill_(rate)
        self._graph.replay()
        self._wait()
        return self._values

    def _wait(self) -> None:
        end = torch.cuda.Event()
        end.record()
        self._ends.append(end)
        if len(self._ends) > AHEAD:
            self._ends.popleft().synchronize()

    def _first(self, rate: float, *batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        try:
            self._batch = tuple(part.clone() for part in batch)
            graph = self._record(rate)
            self._check(graph)
        except Exception as error:  # noqa: BLE001 - whatever it was, plain steps go on
            logger.warning("no CUDA graph, plain steps: %s: %s", type(error).__name__, error)
            return self._give_up(rate, *batch)
        self._graph = graph
        logger.info("the step is recorded as a CUDA graph")
        return self._values

    def _give_up(self, rate: float, *batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self._failed = True
        # A recording that breaks off leaves its own stream behind as the current one.
        torch.cuda.set_stream(torch.cuda.default_stream())
        self._batch = self._values = ()
        for group in self.plain.optimizer.param_groups:
            group["lr"], group["capturable"] = rate, False
        torch.cuda.synchronize()
        return self.plain(rate, *batch)

    def _record(self, rate: float) -> torch.cuda.CUDAGraph:
        """Warm up on a stream of its own with real steps, then record one."""
        optimizer = self.plain.optimizer
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(rate, device=self._batch[0].device)
            group["capturable"] = True
        self._rates = [group["lr"] for group in optimizer.param_groups]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self._step()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._values = self._step()
        return graph

    def _step(self) -> tuple[torch.Tensor, ...]:
        """One plain step whose learning rate lies on the device."""
        optimizer = self.plain.optimizer
        optimizer.zero_grad(set_to_none=True)
        values = self.plain.losses(*self._batch)
        values[0].backward()
        nn.utils.clip_grad_norm_(parameters_of(optimizer), 1.0)
        optimizer.step()
        return tuple(value.detach() for value in values)

    def _check(self, graph: torch.cuda.CUDAGraph) -> None:
        """A replay gives the plain loss and moves finite weights, or ArithmeticError."""
        with torch.no_grad():
            plain = float(self.plain.losses(*self._batch)[0])
        parameters = parameters_of(self.plain.optimizer)
        before = [parameter.detach().clone() for parameter in parameters]
        graph.replay()
        torch.cuda.synchronize()
        loss = float(self._values[0])
        if not abs(loss - plain) <= TOLERANCE * abs(plain):
            raise ArithmeticError(f"loss {loss} as a graph, {plain} plainly")
        if not all(bool(parameter.isfinite().all()) for parameter in parameters):
            self._restore(before)
            raise ArithmeticError("weights are no numbers after a step")
        if all(torch.equal(old, new) for old, new in zip(before, parameters, strict=True)):
            raise ArithmeticError("a step changes no weight")

    def _restore(self, weights: list[torch.Tensor]) -> None:
        with torch.no_grad():
            for parameter, old in zip(parameters_of(self.plain.optimizer), weights, strict=True):
                parameter.copy_(old)
        self.plain.optimizer.state.clear()


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """All that the optimizer moves."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def open_steps(team: Team, optimizer: torch.optim.Optimizer, losses: Losses, graphs: bool) -> Steps:
    """Steps as one graph where that is wanted and there is a GPU, else plain ones."""
    plain = PlainSteps(team, optimizer, losses)
    on_gpu = all(parameter.is_cuda for parameter in parameters_of(optimizer))
    return GraphedSteps(plain) if graphs and on_gpu and team.size == 1 else plain
