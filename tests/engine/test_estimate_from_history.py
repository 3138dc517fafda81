"""Expected seconds come from what was timed, as far as it goes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from canvas import MODELS, GenerationRequest
from canvas.engine.device import Device
from canvas.engine.estimate import estimate_duration, estimate_seconds
from canvas.history.database import Database
from canvas.request import GeneratedImage

CPU = Device("cpu", "float32", "", gigaflops=100.0, layer_seconds=2e-5)
SPEC = MODELS["starter"]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "ai_images.db")
    yield opened
    opened.close()


def wish(**options: Any) -> GenerationRequest:
    return GenerationRequest("a fox", seed=1, **options).with_defaults(SPEC)


def keep(store: Database, request: GenerationRequest, seconds: float) -> None:
    made = GeneratedImage(request, "a fox", seconds, "cpu", "float32")
    store.record(replace(made, filename="a.png", filepath="a.png"))


def expected(store: Database, request: GenerationRequest, device: Device = CPU) -> float | None:
    return estimate_duration(request, SPEC, device, store)


def test_before_any_picture_the_machine_tells(store: Database) -> None:
    assert expected(store, wish()) == estimate_seconds(wish(), SPEC, CPU)
    assert expected(store, wish(), replace(CPU, gigaflops=None)) is None


def test_a_timed_mode_is_believed_for_each_picture(store: Database) -> None:
    keep(store, wish(), 3.0)
    assert expected(store, wish()) == pytest.approx(3.0)
    assert expected(store, wish(num_images=4)) == pytest.approx(12.0)


def test_other_modes_learn_from_it(store: Database) -> None:
    thought = {
        preset: estimate_seconds(wish(preset=preset), SPEC, CPU) for preset in ("quality", "turbo")
    }
    assert thought["quality"]
    assert thought["turbo"]
    keep(store, wish(), 3.0 * thought["quality"])
    assert expected(store, wish(preset="turbo")) == pytest.approx(3.0 * thought["turbo"])
