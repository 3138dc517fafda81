"""Peak memory of large models with random weights: `python -m canvas.benchmark.memory --help`."""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from canvas.benchmark.peak_memory import SAMPLE_SECONDS, process_memory
from canvas.benchmark.synthetic_models import write_klein, write_xl
from canvas.catalog import MODELS, ModelSpec
from canvas.models.download import LocalModel

REVISION = "0" * 40
PROMPT = "a fox in the snow"
WRITERS: dict[str, Callable[[Path], Path]] = {"sdxl": write_xl, "flux-klein": write_klein}


@dataclass(frozen=True)
class Measurement:
    """Peaks in bytes of a process that loads a model and generates an image, and its seconds.

    `anonymous`: memory that the system cannot drop. `resident`: with the mapped files, which
    belong to the file cache.
    """

    anonymous: int
    resident: int
    load_seconds: float
    image_seconds: float
    notes: str


def measure(spec: ModelSpec, local: LocalModel, *, side: int, steps: int, memory: int) -> Measurement:
    """Generate an image in a new process, on a machine with `memory` bytes."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_generate, args=(sender, spec, local, side, steps, memory))
    child.start()
    sender.close()
    anonymous = resident = 0
    result: tuple[float, float, str] | None = None
    while result is None:
        now = process_memory(child.pid)
        anonymous, resident = max(anonymous, now[0]), max(resident, now[1])
        if receiver.poll(SAMPLE_SECONDS):
            result = receiver.recv()  # EOFError: the process failed, with its traceback on stderr
    child.join()
    return Measurement(anonymous, resident, *result)


def _generate(sender: Any, spec: ModelSpec, local: LocalModel, side: int, steps: int, memory: int) -> None:
    from canvas.engine import memory_plan
    from canvas.engine.device import Device
    from canvas.engine.generate import generate
    from canvas.engine.pipeline_cache import PipelineCache
    from canvas.request import GenerationRequest

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
        result = measure(spec, local, side=side, steps=steps, memory=memory)
        copies = sum(path.stat().st_size for path in repository.glob("quantized/**/*") if path.is_file())
        print(  # noqa: T201 - the output of the command
            f"{model_key}, {side} x {side}, {steps} steps, {start} start: {result.anonymous / 1e9:.2f} GB beyond the "
            f"file cache, {result.resident / 1e9:.2f} GB with it; loaded in {result.load_seconds:.0f} s, image in "
            f"{result.image_seconds:.0f} s; int8 copies on disk {copies / 1e9:.2f} GB; {result.notes or 'no changes'}",
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
