"""How much memory a picture takes at its peak, each way in a fresh process."""

from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canvas.benchmark.model_under_test import PROMPT, load_subject
from canvas.engine.device import Device
from canvas.request import GenerationRequest

if TYPE_CHECKING:
    from canvas.catalog import ModelSpec

STEPS_ON_GPU = 3  # the second records its kernels, which takes memory of its own


def peak_memory(spec: ModelSpec | None, device: Device, side: int, way: str) -> int | None:
    """Bytes at the peak of a fresh process that loads the model and makes a picture.

    On a GPU its own memory counts, elsewhere that of the process. `way` is plain, sliced or
    ours. None where the system does not tell.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_tell_peak, args=(sender, spec, device, side, way))
    child.start()
    sender.close()
    try:
        found: int | None = receiver.recv()
    except EOFError:  # the child was killed: too large for this machine
        found = None
    child.join()
    return found


def _tell_peak(sender: Any, spec: ModelSpec | None, device: Device, side: int, way: str) -> None:
    ours = way == "ours"
    steps = STEPS_ON_GPU if device.name == "cuda" else 1
    subject = load_subject(spec, device, plain=not ours, ours=ours)
    if ours:
        request = GenerationRequest(
            PROMPT, seed=1, width=side, height=side, num_inference_steps=steps
        )
        subject.make_ours(request.with_defaults(subject.spec))
    else:
        subject.make_plain(side, steps, slicing=way == "sliced")
    sender.send(_own_peak())


def _own_peak() -> int | None:
    import torch

    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_reserved()
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would tell the peak of the parent, if that was higher
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
