"""Between the steps the host reads no number off the device, which would wait for it."""

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
# What `.item()`, `float()`, `bool()` and searches do: on a GPU the host waits for their answer.
READS = ("aten._local_scalar_dense.default", "aten.nonzero.default", "aten.equal.default")


class Reads(TorchDispatchMode):
    """Counts what the host reads while it is on, by the step that is being made."""

    def __init__(self) -> None:
        super().__init__()
        self.step = 0
        self.by_step: Counter[int] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.by_step[self.step] += str(func) in READS
        return func(*args, **(kwargs or {}))


def reads_of_steps(
    pipeline: Any, spec: ModelSpec, steps: int, preset: str = "quality"
) -> list[int]:
    request = GenerationRequest(
        "a fox",
        seed=1,
        num_inference_steps=steps,
        scheduler="DPM++ 2M",
        preset=preset,
    ).with_defaults(spec)
    with Reads() as reads:
        pictures = generate(
            pipeline,
            request,
            spec=spec,
            device=CPU,
            on_step=lambda step: setattr(reads, "step", step.step),
            cancelled=threading.Event(),
        )
        assert len(list(pictures)) == 1
    return [reads.by_step[step] for step in range(steps + 1)]


@pytest.fixture(scope="module")
def starter() -> Any:
    spec = MODELS["starter"]
    return PipelineCache(CPU).get(spec, LocalModel(Path(spec.name), ""))


@pytest.mark.parametrize("preset", ["quality", "balanced"])
def test_steps_read_nothing(starter: Any, monkeypatch: pytest.MonkeyPatch, preset: str) -> None:
    """Step 0 holds the beginning, the last the decoding."""
    monkeypatch.setattr(step_callback, "PREVIEW_DELAY", 1e9)
    between = reads_of_steps(starter, MODELS["starter"], 8, preset)[1:-1]
    assert sum(between) == 0, between


def test_a_read_would_be_seen(starter: Any) -> None:
    with Reads() as reads:
        float(torch.ones(1))
    assert reads.by_step[0] == 1
