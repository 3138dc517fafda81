"""Which of torch and OpenVINO is chosen, what is kept on the disk, and what falls back; without a conversion."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from canvas.catalog import MODELS
from canvas.engine import system_info
from canvas.engine.device import Device
from canvas.engine.openvino import conversion, engine, int8
from canvas.engine.openvino.engine import (
    CHOICES_FILE,
    MIN_FREE_BYTES,
    ConvertedSource,
    OpenVinoEngine,
    add_note,
    best_seconds,
    engine_note,
    make_engine,
    run_module,
    use_preset,
)
from canvas.models.download import LocalModel

CPU = Device("cpu", "float32", "test")
SPEC = replace(MODELS["starter"], resolution=64)


class Converted(torch.nn.Module):
    """Stands for a converted UNet or decoder."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.engine = "openvino"
        self.recorder: Any = None


class Conversions:
    """Takes the place of conversions and measurements."""

    def __init__(self) -> None:
        self.converted: list[str] = []
        self.seconds = {"torch": 3.0, "openvino": 1.0}
        self.sizes: list[tuple[int, ...]] = []
        self.error: Exception | None = None

    def convert(self, _: Any, folder: Path) -> None:
        if self.error is not None:
            raise self.error
        self.converted.append(folder.name)
        with conversion.new_folder(folder) as part:
            (part / conversion.UNET).with_suffix(".bin").write_bytes(b"weights")

    def run_module(self, module: Any, inputs: tuple[Any, ...]) -> str:
        self.sizes.append(tuple(inputs[0].shape))
        return "openvino" if isinstance(module, Converted) else "torch"


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> Conversions:
    found = Conversions()
    monkeypatch.setattr(conversion, "is_supported", lambda pipeline: pipeline.unet is not None)
    monkeypatch.setattr(conversion, "convert_unet", found.convert)
    monkeypatch.setattr(conversion, "convert_decoder", found.convert)
    monkeypatch.setattr(ConvertedSource, "load", lambda source: Converted(source.folder))
    monkeypatch.setattr(engine, "run_module", found.run_module)
    monkeypatch.setattr(engine, "best_seconds", lambda run: found.seconds[run()])
    monkeypatch.setattr(int8, "is_large", lambda _: False)
    return found


class Pipeline:
    """What the engine sees of a pipeline."""

    vae_scale_factor = 8

    def __init__(self) -> None:
        self.unet: Any = torch.nn.Linear(1, 1)
        config = {"block_out_channels": (8, 8), "in_channels": 4, "cross_attention_dim": 8}
        self.unet.config = {**config, "addition_embed_type": None}
        self.vae = SimpleNamespace(decoder=torch.nn.Linear(1, 1), config=SimpleNamespace(latent_channels=4))

    def register_modules(self, **modules: Any) -> None:
        vars(self).update(modules)

    @property
    def engines(self) -> list[str]:
        return [getattr(each, "engine", "torch") for each in (self.unet, self.vae.decoder)]


@pytest.fixture
def local(tmp_path: Path) -> LocalModel:
    model = tmp_path / "my.model"
    model.mkdir()
    return LocalModel(model, "my model")


def adopt(cache_dir: Path, local: LocalModel, *, forced: bool = False) -> Pipeline:
    pipeline = Pipeline()
    OpenVinoEngine(CPU, cache_dir, forced=forced).adopt(pipeline, SPEC, local)
    return pipeline


@pytest.mark.parametrize(
    ("seconds", "large", "chosen"),
    [
        ((1.1, 1.0), False, "openvino"),
        ((1.09, 1.0), False, "torch"),
        ((2.1, 2.0), False, "torch"),
        ((0.95, 1.0), True, "openvino"),  # its int8 helps Turbo and Balanced
        ((0.94, 1.0), True, "torch"),
    ],
)
def test_the_faster_engine_is_chosen_and_remembered(
    conversions: Conversions,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    local: LocalModel,
    seconds: tuple[float, float],
    large: bool,
    chosen: str,
) -> None:
    conversions.seconds = dict(zip(("torch", "openvino"), seconds, strict=True))
    monkeypatch.setattr(int8, "is_large", lambda _: large)
    monkeypatch.setattr(int8, "is_installed", lambda: True)
    cache_dir = tmp_path / "data" / "cache"
    for _ in range(2):  # the second start remembers
        pipeline = adopt(cache_dir, local)
        assert pipeline.engines[0] == chosen
        assert engine_note(pipeline) == ""
        found = OpenVinoEngine(CPU, cache_dir)
        assert found.prefers_torch(local, lora="") is (chosen == "torch")
        assert not found.prefers_torch(local, lora="1234"), "another UNet, which nobody measured"
        assert (found.find_unet(local, lora="") is not None) is (chosen == "openvino")
        assert found.find_unet(local, lora="1234") is None
        conversions.seconds = {}
    assert sum("-unet-" in name for name in conversions.converted) == 1
    assert bool(list(cache_dir.glob("openvino/*-unet-*/"))) is (chosen == "openvino")
    assert conversions.sizes[:2] == [(1, 4, 8, 8)] * 2
    # Without nncf there is no int8 that could help
    monkeypatch.setattr(int8, "is_installed", lambda: False)
    assert OpenVinoEngine(CPU, cache_dir).prefers_torch(local, lora="") is (seconds != (1.1, 1.0))


def test_only_a_unet_can_use_int8(conversions: Conversions, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(int8, "is_large", lambda _: True)
    local = LocalModel(tmp_path / "model.safetensors", "model")
    local.path.write_bytes(b"weights")
    assert adopt(tmp_path, local).engines == ["openvino", "openvino"]
    choices = json.loads((tmp_path / CHOICES_FILE).read_text())
    assert {"-unet-" in key: measured["int8"] for key, measured in choices.items()} == {True: True, False: False}


def test_the_decoder_is_chosen_apart_from_the_unet(conversions: Conversions, tmp_path: Path, local: LocalModel) -> None:
    assert adopt(tmp_path, local).engines == ["openvino", "openvino"]
    assert conversions.sizes == [(1, 4, 8, 8)] * 4
    choices = json.loads((tmp_path / CHOICES_FILE).read_text())
    [decoder] = [key for key in choices if "-vae_decoder-" in key]
    (tmp_path / CHOICES_FILE).write_text(json.dumps({**choices, decoder: {"torch": 1.0, "openvino": 2.0}}))
    assert adopt(tmp_path, local).engines == ["openvino", "torch"]


def test_without_openvinos_unet_the_decoder_is_not_converted(
    conversions: Conversions, tmp_path: Path, local: LocalModel
) -> None:
    conversions.seconds = {"torch": 1.0, "openvino": 1.0}
    pipeline = adopt(tmp_path, local)
    assert pipeline.engines == ["torch", "torch"]
    OpenVinoEngine(CPU, tmp_path).adopt_decoder(pipeline, SPEC, local)
    assert [name for name in conversions.converted if "vae_decoder" in name] == []


def test_a_unet_of_openvino_is_kept_and_gets_its_decoder(
    conversions: Conversions, tmp_path: Path, local: LocalModel
) -> None:
    pipeline = Pipeline()
    pipeline.unet = unet = Converted(tmp_path)
    OpenVinoEngine(CPU, tmp_path).adopt(pipeline, SPEC, local)
    assert pipeline.unet is unet
    assert pipeline.engines == ["openvino", "openvino"]


@pytest.mark.parametrize(
    "damaged", ["not JSON", "[]", '{"KEY": 1}', '{"KEY": {"torch": 3.0}}', '{"KEY": {"torch": "3", "openvino": 1.0}}']
)
def test_a_damaged_measurement_is_made_again(
    conversions: Conversions, tmp_path: Path, local: LocalModel, damaged: str
) -> None:
    adopt(tmp_path, local)
    [key] = [key for key in json.loads((tmp_path / CHOICES_FILE).read_text()) if "-unet-" in key]
    (tmp_path / CHOICES_FILE).write_text(damaged.replace("KEY", key))
    found = OpenVinoEngine(CPU, tmp_path)
    assert not found.prefers_torch(local, lora="")
    assert found.find_unet(local, lora="") is None
    assert adopt(tmp_path, local).engines == ["openvino", "openvino"]
    assert found.find_unet(local, lora="") is not None


def test_forced_openvino_is_not_measured(conversions: Conversions, tmp_path: Path, local: LocalModel) -> None:
    conversions.seconds = {"torch": 1.0, "openvino": 2.0}
    adopt(tmp_path, local)
    conversions.seconds = {}
    measured, forced = (make_engine(CPU, tmp_path, choice) for choice in (None, "openvino"))
    assert measured is not None
    assert forced is not None
    assert measured.prefers_torch(local, lora="")
    assert not forced.prefers_torch(local, lora="")
    assert forced.find_unet(local, lora="") is None
    assert adopt(tmp_path, local, forced=True).engines == ["openvino", "openvino"]
    assert forced.find_unet(local, lora="") is not None


@pytest.mark.parametrize(
    ("error", "reason"),
    [(MemoryError("  too large\nby far"), "too large"), (OSError(), "OSError"), (ValueError("x" * 300), "x" * 200)],
)
def test_an_error_of_the_conversion_is_noted_if_openvino_is_forced(
    conversions: Conversions, tmp_path: Path, local: LocalModel, error: Exception, reason: str
) -> None:
    conversions.error = error
    pipeline = adopt(tmp_path, local)
    assert pipeline.engines == ["torch", "torch"]
    assert engine_note(pipeline) == ""
    pipeline = adopt(tmp_path, local, forced=True)
    assert pipeline.engines == ["torch", "torch"]
    assert engine_note(pipeline) == f"computed with torch instead of OpenVINO: {reason}"


def test_a_pipeline_without_a_unet_stays_on_torch(conversions: Conversions, tmp_path: Path, local: LocalModel) -> None:
    pipeline = Pipeline()
    pipeline.unet = None
    OpenVinoEngine(CPU, tmp_path, forced=True).adopt(pipeline, SPEC, local)
    assert conversions.converted == []
    assert engine_note(pipeline) == ""
    add_note(pipeline, "a note")
    use_preset(pipeline, "turbo")
    assert engine_note(pipeline) == ""
    assert engine_note(object()) == ""


def test_another_worker_converts_the_same_model_meanwhile(
    conversions: Conversions, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, local: LocalModel
) -> None:
    @contextmanager
    def lock(path: str) -> Iterator[None]:
        conversions.convert(None, Path(path.removesuffix(".lock")))
        yield

    monkeypatch.setattr("filelock.FileLock", lock)
    assert adopt(tmp_path, local, forced=True).engines == ["openvino", "openvino"]
    assert len(conversions.converted) == 2


def test_graphs_of_earlier_versions_are_deleted_once_there_are_new_ones(
    conversions: Conversions, tmp_path: Path
) -> None:
    local = LocalModel(tmp_path / "models--a--b" / "snapshots" / "1234", "a/b", "1234")
    converted = tmp_path / "models--a--b" / "converted"
    earlier = converted / "1234-unet-openvino-2020.1-1"
    others = [converted / name for name in ("5678-unet-openvino-2020.1-1", "1234-vae_decoder-notes")]
    for folder in (earlier, *others):
        folder.mkdir(parents=True)
    assert adopt(tmp_path, local, forced=True).engines == ["openvino", "openvino"]
    assert not earlier.exists()
    assert all(folder.exists() for folder in others)
    assert len([path for path in converted.iterdir() if path.is_dir()]) == 4
    shutil.rmtree(converted)
    assert adopt(tmp_path, local, forced=True).engines == ["openvino", "openvino"]


def test_a_changed_model_is_converted_again(conversions: Conversions, tmp_path: Path, local: LocalModel) -> None:
    adopt(tmp_path, local)
    (local.path / "unet.safetensors").write_bytes(b"other weights")
    assert OpenVinoEngine(CPU, tmp_path).find_unet(local, lora="") is None
    adopt(tmp_path, local)
    assert len(conversions.converted) == 4
    assert len(list((tmp_path / "openvino").glob("*/"))) == 2


@pytest.mark.parametrize("sizes", ['{"unet.bin": 8}', '{"other.bin": 7}', "[]", "not JSON"])
def test_incomplete_graphs_are_converted_again(
    conversions: Conversions, tmp_path: Path, local: LocalModel, sizes: str
) -> None:
    adopt(tmp_path, local)
    [folder] = (tmp_path / "openvino").glob("*-unet-*/")
    complete = (folder / conversion.SIZES).read_text()
    (folder / conversion.SIZES).write_text(sizes)
    assert OpenVinoEngine(CPU, tmp_path).find_unet(local, lora="") is None
    adopt(tmp_path, local)
    assert (folder / conversion.SIZES).read_text() == complete


@pytest.mark.parametrize(
    ("memory", "disk", "error"),
    [(0, 0, None), (-1, 0, "the conversion needs 0.0 GB of memory"), (0, -1, "the disk is nearly full")],
)
def test_a_conversion_leaves_room_in_the_memory_and_on_the_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, memory: int, disk: int, error: str | None
) -> None:
    source = ConvertedSource(CPU, tmp_path, LocalModel(tmp_path / "snapshots" / "1234", "a/b", "1234"), "unet")
    module = torch.nn.Linear(3, 5, bias=False)
    free = SimpleNamespace(free=30 + MIN_FREE_BYTES + disk)
    monkeypatch.setattr(system_info, "free_memory", lambda: 60 + memory)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    if error is None:
        source.check_resources(module)
        return
    with pytest.raises((MemoryError, OSError), match=error):
        source.check_resources(module)


class Recorder(torch.nn.Module):
    """Notes how it is called."""

    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.calls: list[Any] = []
        if dtype is not None:
            self.weight = torch.nn.Parameter(torch.ones(1, dtype=dtype))

    def forward(self, *args: torch.Tensor, **options: Any) -> tuple[str, str]:
        self.calls.append(([each.dtype for each in args], options))
        return "first", "second"


@pytest.mark.parametrize("dtype", [torch.bfloat16, None])
def test_modules_are_measured_as_pipelines_call_them(dtype: torch.dtype | None) -> None:
    module, kind = Recorder(dtype), dtype or torch.float32
    sample, timestep, embeds, pooled, times = (torch.ones(index) for index in range(1, 6))
    assert run_module(module, (sample, timestep, embeds)) == "first"
    assert run_module(module, (sample, timestep, embeds, pooled, times)) == "first"
    assert run_module(module, (sample,)) == ("first", "second")
    plain, added, decoder = module.calls
    assert plain == ([kind] * 3, {"return_dict": False})
    assert added[0] == [kind] * 3
    assert {name: len(each) for name, each in added[1]["added_cond_kwargs"].items()} == {
        "text_embeds": 4,
        "time_ids": 5,
    }
    assert added[1]["return_dict"] is False
    assert decoder == ([kind], {})


def test_the_best_run_after_the_first_one_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now, durations = [100.0], [1.0, 3.0, 5.0]

    def run() -> None:
        now[0] += durations.pop(0)

    monkeypatch.setattr(engine, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    assert best_seconds(run) == 3
    assert durations == []


class Process:
    """Stands for the process that quantizes."""

    def __init__(self, *_: Any) -> None:
        self.is_running = True
        self.calls: list[str] = []

    def suspend(self) -> None:
        self.calls.append("suspend")

    def resume(self) -> None:
        self.calls.append("resume")

    def stop(self) -> None:
        self.calls.append("stop")


def test_images_provide_the_inputs_for_the_quantization_and_pause_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started: list[Process] = []

    def start(*_: Any) -> Process:
        started.append(Process())
        return started[-1]

    worthwhile = [False]
    monkeypatch.setattr(int8, "Int8Process", start)
    monkeypatch.setattr(int8, "is_worthwhile", lambda _: worthwhile[0])
    on_torch, pipeline, found = Pipeline(), Pipeline(), OpenVinoEngine(CPU, tmp_path)
    pipeline.unet = Converted(tmp_path)

    def generate(pipeline: Any, passes: int = 6) -> None:
        with found.generating(pipeline):
            if getattr(pipeline.unet, "recorder", None) is not None:
                for _ in range(passes):
                    pipeline.unet.recorder.add([torch.ones(1, 2).numpy()])

    found.close()
    generate(pipeline)
    assert pipeline.unet.recorder is None, "not worthwhile"
    worthwhile[0] = True
    generate(on_torch)
    generate(pipeline)
    assert started == [], "too few passes"
    generate(pipeline)
    [process] = started
    assert pipeline.unet.recorder is None
    with pytest.raises(RuntimeError), found.generating(pipeline):
        assert process.calls == ["suspend"]
        raise RuntimeError
    assert process.calls == ["suspend", "resume"]
    process.is_running = False
    worthwhile[0] = False
    generate(pipeline)
    assert process.calls == ["suspend", "resume"]
    found.close()
    found.close()
    assert process.calls == ["suspend", "resume", "stop"]
