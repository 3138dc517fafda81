"""Passes of a model on a GPU, recorded once and then replayed as CUDA graphs.

A pass of a Stable Diffusion UNet is over a thousand small pieces of work, and Python takes longer
to hand them to a fast GPU than that takes to do them. A recording is handed over as one.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from canvas.engine.system_info import is_out_of_memory

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

# Of one model: batches of one and two, kinds of passes, a few sizes.
MAX_GRAPHS = 12


class CudaGraphCallable:
    """A function of tensors that is run the first time, recorded the second, then replayed.

    For each shape and dtype of its arguments there is a recording. What it returns is the
    caller's: nothing writes over it later. The function may not read a number off the device,
    and all that it uses beside its arguments must stay where it is in memory. Where it cannot
    be recorded it is run every time, which the log tells.
    """

    def __init__(self, function: Callable[..., tuple[torch.Tensor, ...]]) -> None:
        self._function = function
        self._recordings: OrderedDict[str, _Capture | None] = OrderedDict()
        self._pool: Any = None
        self._recordable = True

    def __call__(self, *args: Any, **options: Any) -> tuple[torch.Tensor, ...]:
        """What the function returns for these arguments, nested in tuples and dicts or not."""
        from torch.utils._pytree import tree_flatten

        if not self._recordable:
            return self._function(*args, **options)
        leaves, structure = tree_flatten((args, options))
        kind = f"{structure} {[_signature(leaf) for leaf in leaves]}"
        if kind not in self._recordings:
            self._remember(kind, None)
            return self._function(*args, **options)
        recording = self._recordings[kind]
        if recording is None:
            try:
                recording = self._record(args, options)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                logger.warning("This GPU gets its work piece by piece: %s", error)
                self._recordable = False
                return self._function(*args, **options)
            self._remember(kind, recording)
        return recording.replay(leaves)

    def _remember(self, kind: str, recording: _Capture | None) -> None:
        self._recordings[kind] = recording
        while len(self._recordings) > MAX_GRAPHS:
            self._recordings.popitem(last=False)

    def _record(self, args: tuple[Any, ...], options: dict[str, Any]) -> _Capture:
        import torch

        # All share the memory of what is between: each is done before the next is replayed.
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        return _Capture(self._function, args, options, self._pool)


class _Capture:
    """One graph with the tensors that it reads and those that it writes."""

    def __init__(self, function: Callable[..., Any], args: Any, options: Any, pool: Any) -> None:
        import torch
        from torch.utils._pytree import tree_flatten, tree_map

        args, options = tree_map(_static_input, (args, options))
        self._inputs, _ = tree_flatten((args, options))
        self._graph = torch.cuda.CUDAGraph()
        # Only this thread is watched: others may use the GPU meanwhile.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._outputs = function(*args, **options)

    def replay(self, leaves: list[Any]) -> tuple[torch.Tensor, ...]:
        import torch

        for own, given in zip(self._inputs, leaves, strict=True):
            if isinstance(own, torch.Tensor):
                own.copy_(given)
        self._graph.replay()
        return tuple(output.clone() for output in self._outputs)


def _signature(leaf: Any) -> Any:
    """What a recording holds good for: a number is part of it, a tensor's values are not."""
    return getattr(leaf, "shape", leaf), getattr(leaf, "dtype", None)


def _static_input(leaf: Any) -> Any:
    return leaf.clone() if hasattr(leaf, "clone") else leaf
