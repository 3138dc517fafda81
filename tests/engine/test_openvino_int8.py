"""int8: recorded inputs, the process that quantizes, and what uses the result."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from canvas.catalog import MODELS
from canvas.engine.device import Device
from canvas.engine.generate import generate
from canvas.engine.openvino import int8
from canvas.engine.openvino.engine import OpenVinoEngine
from canvas.engine.pipeline_cache import PipelineCache
from canvas.models.download import LocalModel
from canvas.request import GeneratedImage, GenerationRequest

CPU = Device("cpu", "float32", "test")
STARTER = MODELS["starter"]
REPORT = {"error": 0.05, "seconds": 1.0, "seconds_16": 2.0}


def render(pipeline: Any, preset: str, **options: Any) -> GeneratedImage:
    request = GenerationRequest("a fox in the snow", seed=7, preset=preset, **options).with_defaults(STARTER)
    [image] = generate(pipeline, request, spec=STARTER, device=CPU, on_step=lambda _: None, cancelled=threading.Event())
    return image


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenVinoEngine]:
    monkeypatch.setattr(int8, "MIN_BYTES", 0)
    monkeypatch.setattr(int8.Int8Process, "_set_priority", lambda *_: None)  # the test waits for it
    engine = OpenVinoEngine(CPU, tmp_path, forced=True)
    yield engine
    engine.close()


@pytest.fixture
def pipeline(engine: OpenVinoEngine) -> Any:
    return PipelineCache(CPU, openvino=engine).get(STARTER, LocalModel(Path(STARTER.name), STARTER.name))


@pytest.mark.slow
def test_the_first_image_starts_the_quantization_and_turbo_uses_it(pipeline: Any, engine: OpenVinoEngine) -> None:
    with engine.generating(pipeline):
        before = render(pipeline, "turbo", num_inference_steps=20)
    process = engine._int8_process
    assert process is not None
    with engine.generating(pipeline):  # pauses it
        render(pipeline, "quality")
        time.sleep(0.2)
        assert process.is_running
    assert process.wait(240) == 0
    folder = pipeline.unet.folder
    report = int8.read_report(folder)
    assert 0 < report["error"] < 0.25
    assert not (folder / int8.INPUTS).exists()
    assert not int8.is_worthwhile(folder)

    report |= {"seconds": 1.0, "seconds_16": 2.0, "bytes": (folder / int8.INT8_UNET).with_suffix(".bin").stat().st_size}
    (folder / int8.REPORT).write_text(json.dumps(report))  # whatever the speed of this machine
    after, quality = render(pipeline, "turbo", num_inference_steps=20), render(pipeline, "quality")
    assert (before.engine, after.engine, quality.engine) == ("openvino", "openvino int8", "openvino")
    assert before.image is not None
    assert after.image is not None
    assert before.image.tobytes() != after.image.tobytes()
    assert np.abs(np.asarray(before.image, int) - np.asarray(after.image, int)).mean() < 12


@pytest.mark.long
def test_closing_stops_the_quantization(pipeline: Any, engine: OpenVinoEngine) -> None:
    with engine.generating(pipeline):
        render(pipeline, "quality", num_inference_steps=10)
    process = engine._int8_process
    assert process is not None
    engine.close()
    assert not process.is_running
    assert int8.read_report(pipeline.unet.folder) == {}


@pytest.mark.slow
def test_images_of_few_steps_provide_the_inputs_together(pipeline: Any, engine: OpenVinoEngine) -> None:
    for number in range(4):
        assert engine._int8_process is None, number
        with engine.generating(pipeline):
            render(pipeline, "quality", num_inference_steps=3)
    assert engine._int8_process is not None


@pytest.mark.parametrize(
    ("changes", "turbo", "balanced"),
    [({}, True, True), ({"error": 0.2}, True, False), ({"error": 0.3}, False, False), ({"seconds": 1.9}, False, False)],
)
def test_presets_use_int8_within_their_bounds(changes: dict[str, float], turbo: bool, balanced: bool) -> None:
    report = {**REPORT, **changes}
    assert int8.is_used(report, "turbo") is turbo
    assert int8.is_used(report, "balanced") is balanced
    assert not int8.is_used(report, "quality")
    assert not int8.is_used({}, "turbo")


def test_recorded_inputs_are_spread_over_the_passes(tmp_path: Path) -> None:
    recorder = int8.InputRecorder(max_passes=50)
    for number in range(60):
        batch = np.stack([np.full(3, number), np.full(3, -number)])
        recorder.add([batch, np.array([float(number)])])
    assert recorder.save(tmp_path / "inputs.npz")
    with np.load(tmp_path / "inputs.npz") as saved:
        timesteps = [float(saved[f"{index:03}_1"][0]) for index in range(int8.NUM_INPUTS)]
        samples = [saved[f"{index:03}_0"] for index in range(int8.NUM_INPUTS)]
    assert sorted(timesteps) == [0, 5, 11, 16, 22, 27, 33, 38, 44, 49]
    assert 20 <= timesteps[-1] <= 33  # measured in the middle of the denoising
    assert {each.shape for each in samples} == {(1, 3)}
    assert {int(np.sign(each.flat[0])) for each in samples} == {-1, 0, 1}  # both branches of guidance
