"""int8: recorded inputs, the process that quantizes, and what uses the result."""

from __future__ import annotations

import itertools
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from canvas.catalog import MODELS
from canvas.engine import system_info
from canvas.engine.device import Device
from canvas.engine.generate import generate
from canvas.engine.openvino import int8, runtime
from canvas.engine.openvino.conversion import UNET
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
    [
        ({}, True, True),
        ({"error": 0.1}, True, True),
        ({"error": 0.2}, True, False),
        ({"error": 0.25}, True, False),
        ({"error": 0.3}, False, False),
        ({"seconds": 1.9}, False, False),
        ({"seconds": 1.0, "seconds_16": 1.1}, True, True),
    ],
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
    # The last two, which measure, are from the middle of the denoising
    assert timesteps == [0, 5, 11, 16, 22, 38, 44, 49, 27, 33]
    assert {each.shape for each in samples} == {(1, 3)}
    assert {int(np.sign(each.flat[0])) for each in samples} == {-1, 0, 1}  # both branches of guidance


def test_inputs_of_too_few_passes_or_of_other_sizes_are_not_saved(tmp_path: Path) -> None:
    recorder = int8.InputRecorder()
    for number in range(int8.NUM_INPUTS):
        assert not recorder.save(tmp_path / "inputs.npz")
        recorder.add([np.full((1, 3), number), np.array([float(number)])])
        recorder.add([np.full((1, 4), number), np.array([float(number)])])
    assert not (tmp_path / "inputs.npz").exists()
    assert recorder.save(tmp_path / "inputs.npz")
    with np.load(tmp_path / "inputs.npz") as saved:
        assert [saved[f"{index:03}_0"].shape for index in range(int8.NUM_INPUTS)] == [(1, 3)] * int8.NUM_INPUTS


def make_weights(folder: Path, size: int, name: str = UNET) -> None:
    with (folder / name).with_suffix(".bin").open("wb") as file:
        file.truncate(size)


@pytest.mark.parametrize(
    ("size", "free", "installed", "worthwhile"),
    [
        (int8.MIN_BYTES, 8 * int8.MIN_BYTES + 1, True, True),
        (int8.MIN_BYTES, 8 * int8.MIN_BYTES, True, False),
        (int8.MIN_BYTES - 1, 8 * int8.MIN_BYTES, True, False),
        (int8.MIN_BYTES, 8 * int8.MIN_BYTES + 1, False, False),
    ],
    ids=["fits", "little memory", "small", "without nncf"],
)
def test_a_large_unet_is_quantized_once_where_there_is_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, free: int, installed: bool, worthwhile: bool
) -> None:
    make_weights(tmp_path, size)
    monkeypatch.setattr(system_info, "free_memory", lambda: free)
    monkeypatch.setattr(int8, "find_spec", lambda _: object() if installed else None)
    assert int8.is_worthwhile(tmp_path) is worthwhile
    (tmp_path / int8.REPORT).write_text("{}")
    assert not int8.is_worthwhile(tmp_path), "it was quantized before"


@pytest.mark.parametrize(
    "damaged", ["not JSON", "[]", json.dumps(REPORT), json.dumps({"bytes": 5}), json.dumps({**REPORT, "bytes": 4})]
)
def test_a_report_counts_only_with_its_whole_graph(tmp_path: Path, damaged: str) -> None:
    (tmp_path / int8.REPORT).write_text(json.dumps({**REPORT, "bytes": 5}))
    assert int8.read_report(tmp_path) == {}
    make_weights(tmp_path, 5, int8.INT8_UNET)
    assert int8.read_report(tmp_path) == REPORT
    (tmp_path / int8.REPORT).write_text(damaged)
    assert int8.read_report(tmp_path) == {}


def test_the_process_has_the_lowest_priority_until_it_is_stopped(tmp_path: Path) -> None:
    before = {each.pid for each in psutil.Process().children()}
    process = int8.Int8Process(tmp_path, CPU)
    try:
        [child] = [each for each in psutil.Process().children() if each.pid not in before]
        assert process.is_running
        if sys.platform == "linux":
            assert child.nice() == 19
        process.suspend()
        assert process.is_running
    finally:
        process.stop()
    assert not process.is_running
    process.suspend()  # does nothing
    process.resume()


def test_the_report_measures_passes_that_did_not_calibrate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for nncf adds 1 to the prediction."""
    openvino = runtime.import_openvino()
    from openvino import opset13

    def add(value: float) -> Any:
        inputs = [opset13.parameter(shape) for shape in ([-1, 1, -1, -1], [1])]
        outputs = [opset13.add(opset13.multiply(*inputs), opset13.constant(np.float32(value)))]
        return openvino.Model(outputs, inputs)

    calibrated: list[Any] = []

    def quantize(_: Any, dataset: list[Any], **options: Any) -> Any:
        calibrated.extend(dataset)
        assert options["subset_size"] == len(dataset)
        return add(1)

    nncf = SimpleNamespace(set_log_level=id, quantize=quantize, Dataset=list, ModelType=SimpleNamespace(TRANSFORMER=""))
    nncf.AdvancedSmoothQuantParameters = nncf.AdvancedQuantizationParameters = dict
    monkeypatch.setitem(sys.modules, "nncf", nncf)
    durations = iter([1.0, 2.0, 3.0, 4.0, 5.0] * 2)  # of which the first is the warm-up
    clock = itertools.accumulate(itertools.chain.from_iterable((100.0, next(durations)) for _ in range(10)))
    monkeypatch.setattr(int8, "time", SimpleNamespace(perf_counter=lambda: next(clock)))

    openvino.save_model(add(0), str(tmp_path / UNET))
    samples = [np.full((1, 1, 36, 20), 2.0**number, np.float32) for number in range(12)]
    samples[0] += np.arange(36, dtype=np.float32)[:, None]
    arrays = {f"{index:03}_0": sample for index, sample in enumerate(samples)}
    arrays |= {f"{index:03}_1": np.ones(1, np.float32) for index in range(12)}
    np.savez(tmp_path / int8.INPUTS, **arrays)
    report = int8.quantize(tmp_path, "float32")

    assert [each[0].shape for each in calibrated] == [(1, 1, 32, 20)] * 10
    assert calibrated[0][0][0, 0, [0, -1], 0].tolist() == [1.0 + 2, 1.0 + 33], "the middle"
    assert [float(each[0].max()) for each in calibrated[1:]] == [2.0**number for number in range(1, 10)]
    assert report == {"error": pytest.approx((2 / (4**10 + 4**11)) ** 0.5), "seconds": 2.0, "seconds_16": 2.0}
    assert int8.read_report(tmp_path) == report
    assert {path.name for path in tmp_path.iterdir()} == {
        UNET, "unet.bin", int8.INT8_UNET, "unet_int8.bin", int8.REPORT,
    }  # fmt: skip
