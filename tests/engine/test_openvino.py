"""OpenVINO as an engine: conversion, similarity to torch, the choice, and what falls back."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from canvas import Studio
from canvas.benchmark.similarity import psnr
from canvas.catalog import ASSETS, MODELS, ModelSpec
from canvas.engine import system_info
from canvas.engine.device import Device
from canvas.engine.generate import generate
from canvas.engine.openvino import conversion, runtime
from canvas.engine.openvino.engine import CHOICES_FILE, ConvertedSource, OpenVinoEngine, engine_name, make_engine
from canvas.engine.optimizations.deepcache import CACHE_BRANCH_DEPTH, UNetForward
from canvas.engine.pipeline_cache import PipelineCache
from canvas.errors import GenerationCancelled, InvalidInput
from canvas.models.download import LocalModel
from canvas.request import GeneratedImage, GenerationRequest
from canvas.settings import Settings
from tests.conftest import slow_params
from tests.models.test_loras import make_lora

CPU = Device("cpu", "float32", "test")
STARTER = MODELS["starter"]
LOCAL = LocalModel(Path(STARTER.name), STARTER.name)


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("openvino")


@pytest.fixture(scope="module")
def on_torch() -> Any:
    return PipelineCache(CPU).get(STARTER, LOCAL)


@pytest.fixture(scope="module")
def on_openvino(cache_dir: Path) -> Any:
    return make_cache(cache_dir).get(STARTER, LOCAL)


def make_cache(cache_dir: Path, *, forced: bool = True) -> PipelineCache:
    return PipelineCache(CPU, openvino=OpenVinoEngine(CPU, cache_dir, forced=forced))


def make_request(**options: Any) -> GenerationRequest:
    return GenerationRequest("a fox in the snow", **{"seed": 7, **options}).with_defaults(STARTER)


def render(pipeline: Any, request: GenerationRequest, **options: Any) -> GeneratedImage:
    options = {"on_step": lambda _: None, "cancelled": threading.Event(), **options}
    [result] = generate(pipeline, request, spec=STARTER, device=CPU, **options)
    return result


def relative_error(output: torch.Tensor, expected: torch.Tensor) -> float:
    return float((output - expected).norm() / expected.norm())


def test_the_default_size_has_a_rest_and_several_pixels_at_each_level(on_torch: Any) -> None:
    config = on_torch.unet.config
    height, width = conversion.example_inputs(config)[0].shape[2:]
    for _ in config["block_out_channels"][1:]:
        assert height % 2 and width % 2 and min(height, width) > 2
        height, width = (height + 1) // 2, (width + 1) // 2


@pytest.mark.slow
@pytest.mark.parametrize(("size", "batch"), [((16, 16), 1), ((19, 22), 2), ((32, 24), 2)])
def test_both_passes_of_the_unet_give_the_results_of_torch(
    on_torch: Any, on_openvino: Any, size: tuple[int, int], batch: int
) -> None:
    inputs = conversion.example_inputs(on_torch.unet.config, size)
    sample, timestep, embeds = (torch.cat([each] * batch) if each.ndim > 1 else each for each in inputs)
    passes = UNetForward(on_torch.unet, CACHE_BRANCH_DEPTH)
    with torch.no_grad():
        expected = passes.full_forward(sample, timestep, embeds)
        shallow = passes.shallow_forward(sample, timestep, embeds, expected[1])[0]
    outputs = on_openvino.unet.full_forward(sample, timestep, embeds)
    assert relative_error(outputs[0], expected[0]) < 0.01
    assert relative_error(outputs[1], expected[1]) < 0.01
    assert relative_error(on_openvino.unet.shallow_forward(sample, timestep, embeds, expected[1])[0], shallow) < 0.01
    assert relative_error(on_openvino.unet(sample, 500, embeds).sample, expected[0]) < 0.01


@pytest.mark.slow
def test_large_models_compute_a_batch_one_by_one(on_openvino: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sample, timestep, embeds = conversion.example_inputs(on_openvino.unet.config, (16, 24))
    batch = torch.cat([sample, -sample]), timestep, torch.cat([embeds, embeds / 2])
    together = on_openvino.unet.full_forward(*batch)
    monkeypatch.setattr(runtime, "MAX_BYTES", 0)
    apart = on_openvino.unet.full_forward(*batch)
    assert relative_error(apart[0], together[0]) < 1e-3
    assert len(on_openvino.unet.full._requests) == 1  # one size of a large model is kept


@pytest.mark.parametrize("preset", ["quality", *slow_params("balanced", "turbo")])
def test_images_are_nearly_those_of_torch(on_torch: Any, on_openvino: Any, preset: str) -> None:
    request = make_request(preset=preset, num_inference_steps=6)
    expected, result = render(on_torch, request), render(on_openvino, request)
    assert (expected.engine, result.engine) == ("torch", "openvino")
    assert expected.image is not None
    assert result.image is not None
    assert psnr(expected.image, result.image) >= 40
    again = render(on_openvino, request).image
    assert again is not None
    assert again.tobytes() == result.image.tobytes()


def test_the_weights_of_torch_are_released(on_openvino: Any) -> None:
    assert list(on_openvino.unet.parameters()) == []
    assert list(on_openvino.vae.decoder.parameters()) == []
    assert engine_name(on_openvino) == "openvino"


@pytest.mark.slow
def test_the_second_start_converts_nothing(on_openvino: Any, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "convert_unet", None)
    monkeypatch.setattr(conversion, "convert_decoder", None)
    pipeline = make_cache(cache_dir).get(STARTER, LOCAL)
    request = make_request()
    first, second = render(on_openvino, request).image, render(pipeline, request).image
    assert first is not None
    assert second is not None
    assert first.tobytes() == second.tobytes()
    assert list((cache_dir / "openvino").glob("*/compiled/*.blob"))


@pytest.mark.slow
def test_truncated_graphs_are_converted_again(on_openvino: Any, cache_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(cache_dir / "openvino", tmp_path / "openvino")
    [weights] = tmp_path.glob("openvino/*/unet.bin")
    size = weights.stat().st_size
    weights.write_bytes(weights.read_bytes()[:1000])
    pipeline = make_cache(tmp_path).get(STARTER, LOCAL)
    assert weights.stat().st_size == size
    assert engine_name(pipeline) == "openvino"


@pytest.mark.long
def test_graphs_of_other_versions_are_deleted(cache_dir: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(LOCAL.path, model)
    local = LocalModel(model, str(model))
    make_cache(tmp_path).get(STARTER, local)
    before = {path.name for path in tmp_path.glob("openvino/*/")}
    (model / "unet" / "notes.txt").write_text("a changed model")
    make_cache(tmp_path).get(STARTER, local)
    after = {path.name for path in tmp_path.glob("openvino/*/")}
    assert len(after) == len(before) == 2
    assert not after & before


@pytest.mark.slow
def test_the_measured_choice_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = OpenVinoEngine(CPU, tmp_path)
    pipeline = PipelineCache(CPU, openvino=engine).get(STARTER, LOCAL)
    choices = json.loads((tmp_path / CHOICES_FILE).read_text())
    [key] = [name for name in choices if "-unet-" in name]
    faster = choices[key]["torch"] >= 1.1 * choices[key]["openvino"]
    assert engine_name(pipeline) == ("openvino" if faster else "torch")

    assert choices[key]["int8"] is False, "too small"

    (tmp_path / CHOICES_FILE).write_text(json.dumps({key: {"torch": 1.0, "openvino": 0.95}}))
    monkeypatch.setattr(conversion, "convert_unet", None)
    assert engine.prefers_torch(LOCAL, lora="")
    assert engine_name(PipelineCache(CPU, openvino=engine).get(STARTER, LOCAL)) == "torch"

    with_int8 = {"torch": 1.0, "openvino": 1.05, "int8": True}
    (tmp_path / CHOICES_FILE).write_text(json.dumps({key: with_int8}))
    monkeypatch.setattr("canvas.engine.openvino.int8.is_installed", lambda: True)
    assert not engine.prefers_torch(LOCAL, lora=""), "Turbo and Balanced gain more than Quality loses"
    (tmp_path / CHOICES_FILE).write_text(json.dumps({key: with_int8 | {"openvino": 1.06}}))
    assert engine.prefers_torch(LOCAL, lora="")
    (tmp_path / CHOICES_FILE).write_text(json.dumps({key: with_int8}))
    monkeypatch.setattr("canvas.engine.openvino.int8.is_installed", lambda: False)
    assert engine.prefers_torch(LOCAL, lora=""), "without nncf there is no int8"

    (tmp_path / CHOICES_FILE).write_text("not JSON")
    assert not engine.prefers_torch(LOCAL, lora="")


@pytest.mark.long
def test_a_slower_openvino_leaves_no_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("canvas.engine.openvino.engine.MIN_SPEEDUP", 1e9)
    assert engine_name(make_cache(tmp_path, forced=False).get(STARTER, LOCAL)) == "torch"
    assert not list(tmp_path.glob("openvino/*/unet.bin"))


@pytest.mark.slow
def test_a_conversion_that_does_not_fit_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "conversion_bytes", lambda _: system_info.total_memory() * 2)
    pipeline = make_cache(tmp_path).get(STARTER, LOCAL)
    [note] = render(pipeline, make_request()).notes
    assert note.startswith("computed with torch instead of OpenVINO: the conversion needs ")


def test_generation_stops_within_a_step(on_openvino: Any) -> None:
    cancelled = threading.Event()
    steps = []

    def on_step(update: Any) -> None:
        steps.append(update.step)
        cancelled.set()

    with pytest.raises(GenerationCancelled):
        render(on_openvino, make_request(), on_step=on_step, cancelled=cancelled)
    assert steps == [1]


def test_unknown_inputs_of_the_unet_are_refused(on_openvino: Any) -> None:
    inputs = conversion.example_inputs(on_openvino.unet.config, (16, 16))
    with pytest.raises(ValueError, match="timestep_cond"):
        on_openvino.unet(*inputs, timestep_cond=torch.ones(1, 8))


@pytest.fixture
def studio(settings: Settings) -> Iterator[Studio]:
    with Studio(replace_settings(settings, engine="openvino")) as studio:
        yield studio


def replace_settings(settings: Settings, **values: Any) -> Settings:
    return Settings(**{**settings.model_dump(), **values})


@pytest.mark.slow
def test_a_lora_runs_on_torch_and_is_noted(studio: Studio, settings: Settings, on_torch: Any) -> None:
    settings.loras_dir.mkdir(parents=True)
    make_lora(settings.loras_dir / "snow.safetensors", on_torch.unet, "kohya", 0)
    request = GenerationRequest("a fox in the snow", seed=7, num_inference_steps=1)
    [plain] = studio.generate(request)
    [styled] = studio.generate(replace(request, loras=(("snow", 1.0),)))
    assert (plain.engine, styled.engine) == ("openvino", "torch")
    assert styled.notes == ("computed with torch instead of OpenVINO, because of the LoRA, embedding or guiding image",)
    [again] = studio.generate(request)
    assert again.engine == "openvino"


def test_the_engine_setting(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings.from_environment({"CANVAS_ENGINE": "openvino"}).engine == "openvino"
    with pytest.raises(InvalidInput, match="CANVAS_ENGINE"):
        Settings.from_environment({"CANVAS_ENGINE": "tensorrt"})
    assert make_engine(CPU, settings.cache_dir, "torch") is None
    assert make_engine(Device("cuda", "float16", ""), settings.cache_dir, "openvino") is None
    monkeypatch.setattr(runtime, "is_installed", lambda: False)
    assert make_engine(CPU, settings.cache_dir, None) is None
    with pytest.raises(InvalidInput, match="not installed"):
        make_engine(CPU, settings.cache_dir, "openvino")


def test_graphs_of_the_hub_are_kept_beside_the_model(tmp_path: Path) -> None:
    local = LocalModel(tmp_path / "models--a--b" / "snapshots" / "1234", "a/b", "1234")
    source = ConvertedSource(CPU, tmp_path / "cache", local, "unet")
    assert source.folder.parent == tmp_path / "models--a--b" / "converted"
    assert source.folder.name.startswith("1234-unet-openvino-")


def test_openvino_sends_no_telemetry() -> None:
    code = (
        "from canvas.engine.openvino.runtime import import_openvino; import_openvino(); "
        "from openvino.tools.ovc import telemetry_utils; print(telemetry_utils.tm.__name__); "
        "import sys; sys.exit(bool(sys.modules['openvino_telemetry']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ASSETS.parent, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "openvino.tools.ovc.telemetry_stub"


def test_unets_with_other_inputs_are_not_supported(on_torch: Any, tiny_spec: ModelSpec) -> None:
    assert conversion.is_supported(on_torch)
    assert not conversion.is_supported(object())
