"""Peak memory of generating an image, in a new process: `python -m canvas.benchmark.memory --help`."""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from canvas.benchmark.model_under_test import PROMPT, load_benchmark_model
from canvas.benchmark.synthetic_models import write_klein, write_xl
from canvas.catalog import MODELS, ModelSpec
from canvas.engine import memory_plan
from canvas.engine.device import Device
from canvas.engine.generate import generate
from canvas.engine.pipeline_cache import PipelineCache
from canvas.models.download import LocalModel
from canvas.request import GenerationRequest

SAMPLE_SECONDS = 0.02
STEPS_ON_GPU = 3  # the second captures CUDA graphs, which take memory of their own
REVISION = "0" * 40
WRITERS: dict[str, Callable[[Path], Path]] = {"sdxl": write_xl, "flux-klein": write_klein}


def start_process(target: Callable[..., None], *args: Any) -> tuple[Any, Any]:
    """Start a new process that calls `target(sender, *args)`; returns it and the receiving end."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(sender, *args))
    process.start()
    sender.close()
    return process, receiver


def peak_memory(spec: ModelSpec | None, device: Device, side: int, variant: str) -> int | None:
    """Peak bytes of a new process that loads the model and generates an image.

    On a GPU its own memory counts, otherwise that of the process. `variant` is baseline,
    sliced or optimized. None if it is unknown.
    """
    child, receiver = start_process(_send_peak, spec, device, side, variant)
    return watch_process(child, receiver, on_gpu=device.name == "cuda")


def watch_process(child: Any, receiver: Any, *, on_gpu: bool = False) -> int | None:
    """Peak bytes of a process that sends its own peak at the end; None if it was killed.

    On Linux only memory that the system cannot drop counts, without mapped files; with `on_gpu`
    the value that the process sends.
    """
    peak = 0
    while not receiver.poll(SAMPLE_SECONDS):
        peak = max(peak, anonymous_memory(process_memory(child.pid)))
    try:
        own: int | None = receiver.recv()
    except EOFError:  # not enough memory
        own = None
    child.join()
    return peak if own and peak and not on_gpu else own


def process_memory(pid: int | str) -> dict[str, int]:
    """Bytes by name: RssAnon, RssShmem, VmRSS, VmHWM; none if it is not Linux, or the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith(("Rss", "Vm"))}


def anonymous_memory(status: dict[str, int]) -> int:
    """Bytes that the system cannot drop."""
    return status.get("RssAnon", 0) + status.get("RssShmem", 0)


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
    if peak := process_memory("self").get("VmHWM"):  # getrusage returns the peak of the parent if that is higher
        return peak
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _generate(sender: Any, spec: ModelSpec, local: LocalModel, side: int, steps: int, memory: int) -> None:
    device = Device("cpu", "bfloat16", "for the benchmark")
    weights = memory_plan.local_weights(local, device)
    plan = memory_plan.plan_memory(weights, device, memory, memory)
    cache = PipelineCache(device, quantization=plan.quantization, offload=plan.offload)
    started = time.perf_counter()
    pipeline = cache.get(spec, local)
    loaded = time.perf_counter()
    request = GenerationRequest(PROMPT, seed=1, width=side, height=side, num_inference_steps=steps).with_defaults(spec)
    images = generate(pipeline, request, spec=spec, device=device, on_step=lambda _: None, cancelled=threading.Event())
    notes = [", ".join(image.notes) for image in images]
    sender.send((loaded - started, time.perf_counter() - loaded, notes[0]))


def run(model_key: str, root: Path, *, side: int, steps: int, memory: int) -> None:
    """Write the model, measure two starts and print the peaks."""
    spec = MODELS[model_key]
    repository = root / f"models--{spec.name.replace('/', '--')}"
    folder = repository / "snapshots" / REVISION
    if not folder.exists():
        part = WRITERS[model_key](repository / "part")
        folder.parent.mkdir(parents=True, exist_ok=True)
        part.rename(folder)
    local = LocalModel(folder, spec.name, REVISION)
    for start in ("first", "second"):
        child, receiver = start_process(_generate, spec, local, side, steps, memory)
        anonymous = resident = 0
        while not receiver.poll(SAMPLE_SECONDS):
            status = process_memory(child.pid)
            anonymous, resident = max(anonymous, anonymous_memory(status)), max(resident, status.get("VmRSS", 0))
        load_seconds, image_seconds, notes = receiver.recv()  # EOFError: it failed, with its traceback on stderr
        child.join()
        copies = sum(path.stat().st_size for path in repository.glob("quantized/**/*") if path.is_file())
        print(  # noqa: T201 - the output of the command
            f"{model_key}, {side} x {side}, {steps} steps, {start} start: {anonymous / 1e9:.2f} GB beyond the "
            f"file cache, {resident / 1e9:.2f} GB with it; loaded in {load_seconds:.0f} s, image in "
            f"{image_seconds:.0f} s; int8 copies on disk {copies / 1e9:.2f} GB; {notes or 'no changes'}",
            flush=True,
        )


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(prog="python -m canvas.benchmark.memory", description=__doc__)
    parser.add_argument("model", choices=sorted(WRITERS))
    parser.add_argument("--folder", type=Path, help="keep the weights there (default: a temporary folder)")
    parser.add_argument("--side", type=int, default=256, help="pixels of a side")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--memory", type=float, default=10.0, help="GB of the machine to plan for")
    arguments = parser.parse_args()
    root = arguments.folder or Path(tempfile.mkdtemp(prefix="canvas-memory-"))
    options = {"side": arguments.side, "steps": arguments.steps, "memory": int(arguments.memory * 1e9)}
    try:
        run(arguments.model, root, **options)
    finally:
        if arguments.folder is None:
            shutil.rmtree(root)


if __name__ == "__main__":
    main()
