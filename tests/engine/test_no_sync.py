"""Denoising steps never read a value from the device, which would synchronize with it."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from canvas.catalog import MODELS, ModelSpec
from canvas.engine import step_callback
from canvas.engine.device import Device
from canvas.engine.generate import generate
from canvas.engine.pipeline_cache import PipelineCache
from canvas.models.download import LocalModel
from canvas.request import GenerationRequest

CPU = Device("cpu", "bfloat16", "")
# The operators of `.item()`, `float()`, `bool()` and searches; on a GPU they synchronize.
READS = ("aten._local_scalar_dense.default", "aten.nonzero.default", "aten.equal.default")


class ReadCounter(TorchDispatchMode):
    """Counts values read from the device by denoising step."""

    def __init__(self) -> None:
        super().__init__()
        self.step = 0
        self.by_step: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        self.by_step[self.step] += str(func) in READS
        return func(*args, **(kwargs or {}))


def reads_per_step(pipeline: Any, spec: ModelSpec, steps: int, preset: str = "quality") -> list[int]:
    request = GenerationRequest(
        "a fox", seed=1, num_inference_steps=steps, scheduler="DPM++ 2M", preset=preset
    ).with_defaults(spec)
    with ReadCounter() as reads:
        images = generate(
            pipeline,
            request,
            spec=spec,
            device=CPU,
            on_step=lambda step: setattr(reads, "step", step.step),
            cancelled=threading.Event(),
        )
        assert len(list(images)) == 1
    return [reads.by_step[step] for step in range(steps + 1)]


@pytest.fixture(scope="module")
def starter() -> Any:
    spec = MODELS["starter"]
    return PipelineCache(CPU).get(spec, LocalModel(Path(spec.name), ""))


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["quality", "balanced"])
def test_steps_read_no_value(starter: Any, monkeypatch: pytest.MonkeyPatch, preset: str) -> None:
    """Except the first, with the preparation, and the last, with the decoding."""
    monkeypatch.setattr(step_callback, "PREVIEW_DELAY", 1e9)
    between = reads_per_step(starter, MODELS["starter"], 8, preset)[1:-1]
    assert sum(between) == 0, between


def test_counter_detects_a_read(starter: Any) -> None:
    with ReadCounter() as reads:
        float(torch.ones(1))
    assert reads.by_step[0] == 1
