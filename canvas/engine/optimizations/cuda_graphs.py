"""Captures forward passes on a GPU as CUDA graphs and replays them.

A forward pass of a Stable Diffusion UNet launches over a thousand kernels, which takes Python
longer than a fast GPU needs to run them. A graph is launched as one.
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

# Per callable: batches of one and two, kinds of forward passes, a few sizes.
MAX_GRAPHS = 12


class CudaGraphCallable:
    """Runs a function of tensors the first time, captures it the second time, then replays it.

    There is one graph for each set of shapes and dtypes of the arguments. Results are not
    overwritten by later calls. The function must not read a value from the device, and the
    tensors that it uses besides its arguments must stay at their address. If it cannot be
    captured, a warning is logged and every call runs it.
    """

    def __init__(self, function: Callable[..., tuple[torch.Tensor, ...]]) -> None:
        self._function = function
        self._captures: OrderedDict[str, _Capture | None] = OrderedDict()
        self._pool: Any = None
        self._capturable = True

    def __call__(self, *args: Any, **options: Any) -> tuple[torch.Tensor, ...]:
        """The function's result; the arguments may be nested in tuples and dicts."""
        import torch
        from torch.utils._pytree import tree_flatten

        if not self._capturable:
            return self._function(*args, **options)
        leaves, structure = tree_flatten((args, options))
        key = f"{structure} {[_signature(leaf) for leaf in leaves]}"
        if key not in self._captures:
            self._save(key, None)
            return self._function(*args, **options)
        capture = self._captures[key]
        if capture is None:
            try:
                # Graphs share the memory of intermediate tensors, because they never run concurrently.
                self._pool = self._pool or torch.cuda.graph_pool_handle()
                capture = _Capture(self._function, args, options, self._pool)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                logger.warning("CUDA graphs are not used: %s", error)
                self._capturable = False
                return self._function(*args, **options)
            self._save(key, capture)
        return capture.replay(leaves)

    def _save(self, key: str, capture: _Capture | None) -> None:
        self._captures[key] = capture
        while len(self._captures) > MAX_GRAPHS:
            self._captures.popitem(last=False)


class _Capture:
    """A CUDA graph with its input and output tensors."""

    def __init__(self, function: Callable[..., Any], args: Any, options: Any, pool: Any) -> None:
        import torch
        from torch.utils._pytree import tree_flatten, tree_map

        args, options = tree_map(_static_input, (args, options))
        self._inputs, _ = tree_flatten((args, options))
        self._graph = torch.cuda.CUDAGraph()
        # thread_local: other threads may use the GPU during the capture.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._outputs = function(*args, **options)

    def replay(self, leaves: list[Any]) -> tuple[torch.Tensor, ...]:
        import torch

        for static_input, leaf in zip(self._inputs, leaves, strict=True):
            if isinstance(static_input, torch.Tensor):
                static_input.copy_(leaf)
        self._graph.replay()
        return tuple(output.clone() for output in self._outputs)


def _signature(leaf: Any) -> Any:
    """What a graph is specific to: a number's value, but only the shape and dtype of a tensor."""
    return getattr(leaf, "shape", leaf), getattr(leaf, "dtype", None)


def _static_input(leaf: Any) -> Any:
    return leaf.clone() if hasattr(leaf, "clone") else leaf
