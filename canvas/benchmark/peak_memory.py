"""Measures the peak memory of generating an image, in a new process."""

from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canvas.benchmark.model_under_test import PROMPT, load_benchmark_model
from canvas.engine.device import Device
from canvas.request import GenerationRequest

if TYPE_CHECKING:
    from canvas.catalog import ModelSpec

SAMPLE_SECONDS = 0.02
STEPS_ON_GPU = 3  # the second captures CUDA graphs, which take memory of their own


def peak_memory(spec: ModelSpec | None, device: Device, side: int, variant: str) -> int | None:
    """Peak bytes of a new process that loads the model and generates an image.

    On a GPU its own memory counts, otherwise that of the process. `variant` is baseline,
    sliced or optimized. None if it is unknown.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_send_peak, args=(sender, spec, device, side, variant))
    child.start()
    sender.close()
    return watch_process(child, receiver, on_gpu=device.name == "cuda")


def watch_process(child: Any, receiver: Any, *, on_gpu: bool = False) -> int | None:
    """Peak bytes of a process that sends its own peak at the end; None if it was killed.

    On Linux only memory that the system cannot drop counts, without mapped files; with `on_gpu`
    the value that the process sends.
    """
    peak = 0
    while not receiver.poll(SAMPLE_SECONDS):
        peak = max(peak, process_memory(child.pid)[0])
    try:
        own: int | None = receiver.recv()
    except EOFError:  # not enough memory
        own = None
    child.join()
    return peak if own and peak and not on_gpu else own


def process_memory(pid: int | None) -> tuple[int, int]:
    """Bytes that the system cannot drop, and all in memory; 0 if it is not Linux, or the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0, 0
    fields = dict(line.split(":", 1) for line in lines)
    anonymous, shared, resident = (
        int(fields.get(name, "0").split()[0]) * 1024 for name in ("RssAnon", "RssShmem", "VmRSS")
    )
    return anonymous + shared, resident


def _send_peak(sender: Any, spec: ModelSpec | None, device: Device, side: int, variant: str) -> None:
    optimized = variant == "optimized"
    steps = STEPS_ON_GPU if device.name == "cuda" else 1
    model = load_benchmark_model(spec, device, baseline=not optimized, optimized=optimized)
    if optimized:
        request = GenerationRequest(PROMPT, seed=1, width=side, height=side, num_inference_steps=steps)
        model.generate_optimized(request.with_defaults(model.spec))
    else:
        model.generate_baseline(side, steps, slicing=variant == "sliced")
    sender.send(_peak_of_this_process())


def _peak_of_this_process() -> int | None:
    import torch

    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_reserved()
    status = Path("/proc/self/status")
    if status.exists():  # getrusage returns the peak of the parent if that is higher
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
