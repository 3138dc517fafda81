"""Device settings, and one training step: eager, or recorded as a CUDA graph.

The step of a small model is hundreds of short kernels, which a GPU runs faster than Python can
launch them. Replaying a recorded graph launches all of them in one call.
"""

import logging
from collections import deque
from collections.abc import Callable
from typing import Protocol

import torch
from torch import nn

from canvas.training.distributed import ProcessGroup

logger = logging.getLogger(__name__)
WARMUP_STEPS = 4  # before recording, for libraries to choose and set up their kernels
MAX_QUEUED_STEPS = 4  # launched but not finished; more would make the time budget inaccurate
LOSS_TOLERANCE = 0.02  # relative difference allowed between the recorded and the eager loss
# Maps a batch to the loss, followed by numbers to report.
LossFunction = Callable[..., tuple[torch.Tensor, ...]]


def pick_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 autocast without the weight cache, which a CUDA graph would not update."""
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


def memory_format(device: torch.device) -> torch.memory_format:
    """Channels last on a GPU; on a CPU it crashes with narrow convolutions in training."""
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def optimizer_parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """The parameters of all groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


class TrainStep(Protocol):
    """Trains on one batch and returns the values of the loss function."""

    def __call__(self, learning_rate: float, *batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Every batch must have the same shapes."""


class EagerTrainStep:
    """Runs on any device and in any process group."""

    def __init__(
        self, process_group: ProcessGroup, optimizer: torch.optim.Optimizer, loss_function: LossFunction
    ) -> None:
        self.process_group = process_group
        self.optimizer = optimizer
        self.loss_function = loss_function

    def __call__(self, learning_rate: float, *batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Forward, backward and optimizer step."""
        values = self.loss_function(*batch)
        self.process_group.backward_and_step(self.optimizer, values[0], learning_rate)
        return values


class CudaGraphTrainStep:
    """Records a CUDA graph with the first batch and compares it with an eager step.

    Falls back to eager steps, with a warning, if recording fails or the results differ. For a
    single process.
    """

    def __init__(self, eager: EagerTrainStep) -> None:
        self.eager = eager
        self._learning_rates: list[torch.Tensor] = []
        self._batch: tuple[torch.Tensor, ...] = ()
        self._values: tuple[torch.Tensor, ...] = ()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._failed = False
        self._events: deque[torch.cuda.Event] = deque()

    def __call__(self, learning_rate: float, *batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The values of the loss function; overwritten by the next step."""
        if self._failed:
            return self.eager(learning_rate, *batch)
        if self._graph is None:
            return self._first_step(learning_rate, *batch)
        for static, tensor in zip(self._batch, batch, strict=True):
            static.copy_(tensor)
        for static in self._learning_rates:
            static.fill_(learning_rate)
        self._graph.replay()
        self._limit_queue()
        return self._values

    def _limit_queue(self) -> None:
        event = torch.cuda.Event()
        event.record()
        self._events.append(event)
        if len(self._events) > MAX_QUEUED_STEPS:
            self._events.popleft().synchronize()

    def _first_step(self, learning_rate: float, *batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        try:
            self._batch = tuple(part.clone() for part in batch)
            graph = self._record(learning_rate)
            self._verify(graph)
        except Exception as error:  # noqa: BLE001 - any failure falls back to eager steps
            logger.warning("CUDA graph failed, using eager steps: %s: %s", type(error).__name__, error)
            return self._fall_back(learning_rate, *batch)
        self._graph = graph
        logger.info("recorded the training step as a CUDA graph")
        return self._values

    def _fall_back(self, learning_rate: float, *batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self._failed = True
        # An aborted recording leaves its own stream as the current one.
        torch.cuda.set_stream(torch.cuda.default_stream())
        self._batch = self._values = ()
        for group in self.eager.optimizer.param_groups:
            group["lr"], group["capturable"] = learning_rate, False
        torch.cuda.synchronize()
        return self.eager(learning_rate, *batch)

    def _record(self, learning_rate: float) -> torch.cuda.CUDAGraph:
        """Run warm-up steps on a side stream, then record one step."""
        optimizer = self.eager.optimizer
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(learning_rate, device=self._batch[0].device)
            group["capturable"] = True
        self._learning_rates = [group["lr"] for group in optimizer.param_groups]
        side_stream = torch.cuda.Stream()
        side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side_stream):
            for _ in range(WARMUP_STEPS):
                self._step()
        torch.cuda.current_stream().wait_stream(side_stream)
        torch.cuda.synchronize()
        optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._values = self._step()
        return graph

    def _step(self) -> tuple[torch.Tensor, ...]:
        """One step with the learning rate as a tensor on the device."""
        optimizer = self.eager.optimizer
        optimizer.zero_grad(set_to_none=True)
        values = self.eager.loss_function(*self._batch)
        values[0].backward()
        nn.utils.clip_grad_norm_(optimizer_parameters(optimizer), 1.0)
        optimizer.step()
        return tuple(value.detach() for value in values)

    def _verify(self, graph: torch.cuda.CUDAGraph) -> None:
        """Raises ArithmeticError unless a replay gives the eager loss and changes the weights."""
        with torch.no_grad():
            eager_loss = float(self.eager.loss_function(*self._batch)[0])
        parameters = optimizer_parameters(self.eager.optimizer)
        before = [parameter.detach().clone() for parameter in parameters]
        graph.replay()
        torch.cuda.synchronize()
        loss = float(self._values[0])
        if not abs(loss - eager_loss) <= LOSS_TOLERANCE * abs(eager_loss):
            raise ArithmeticError(f"the graph's loss is {loss}, the eager loss {eager_loss}")
        if not all(bool(parameter.isfinite().all()) for parameter in parameters):
            self._restore(before)
            raise ArithmeticError("weights are not finite after a step")
        if all(torch.equal(old, new) for old, new in zip(before, parameters, strict=True)):
            raise ArithmeticError("a step changes no weight")

    def _restore(self, weights: list[torch.Tensor]) -> None:
        parameters = optimizer_parameters(self.eager.optimizer)
        with torch.no_grad():
            for parameter, old in zip(parameters, weights, strict=True):
                parameter.copy_(old)
        self.eager.optimizer.state.clear()


def make_train_step(
    process_group: ProcessGroup, optimizer: torch.optim.Optimizer, loss_function: LossFunction, cuda_graphs: bool
) -> TrainStep:
    """A CUDA graph step if requested and possible, else an eager one."""
    eager = EagerTrainStep(process_group, optimizer, loss_function)
    on_gpu = all(parameter.is_cuda for parameter in optimizer_parameters(optimizer))
    if cuda_graphs and on_gpu and process_group.size == 1:
        return CudaGraphTrainStep(eager)
    return eager
