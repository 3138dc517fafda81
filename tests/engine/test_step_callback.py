from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from canvas import GenerationRequest
from canvas.engine import step_callback
from canvas.engine.step_callback import DECODE_COST_IN_STEPS, StepCallback
from canvas.errors import GenerationCancelled
from canvas.request import ProgressUpdate

STEPS = {"latents": torch.zeros(1, 4, 8, 8)}
PIPELINE: Any = SimpleNamespace(num_timesteps=4)
HOOKS: Any = None  # of previews


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(step_callback, "PREVIEW_DELAY", 1e9)
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    return clock


def test_the_remaining_time_counts_steps_and_decoding_of_all_images(clock: SimpleNamespace) -> None:
    updates: list[ProgressUpdate] = []
    callback = StepCallback(GenerationRequest("a fox", num_images=3), HOOKS, updates.append, threading.Event())
    for image in range(3):
        callback.start_image(image)
        for step in range(4):
            clock.now += 2.0
            callback(PIPELINE, step, None, STEPS)
        clock.now += 5.0
        callback.finish_image()
    guess = DECODE_COST_IN_STEPS * 2
    first = [None, *(2.0 * steps + 3 * guess for steps in (10, 9, 8))]
    second, third = (
        [None, *(2.0 * steps + count * 5 for steps in left)] for left, count in (((6, 5, 4), 2), ((2, 1, 0), 1))
    )
    assert [update.seconds_left for update in updates] == pytest.approx([*first, *second, *third])
    assert [(update.image_index, update.step) for update in updates[3:6]] == [(0, 4), (1, 1), (1, 2)]
    assert {(update.num_steps, update.num_images) for update in updates} == {(4, 3)}


def test_cancelling_ends_at_the_next_step_and_before_the_next_image(clock: SimpleNamespace) -> None:
    cancelled = threading.Event()
    callback = StepCallback(GenerationRequest("a fox"), HOOKS, lambda _: None, cancelled)
    callback.start_image(0)
    callback(PIPELINE, 0, None, STEPS)
    cancelled.set()
    with pytest.raises(GenerationCancelled):
        callback(PIPELINE, 1, None, STEPS)
    with pytest.raises(GenerationCancelled):
        callback.start_image(1)
