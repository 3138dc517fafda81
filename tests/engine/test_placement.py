"""Where a pipeline is placed: on the device or moved there in parts, and what is noted."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from canvas.engine import encode_first, quantization
from canvas.engine.device import Device
from canvas.engine.loader import DENOISER, ENCODER, place, plan_note, planned_components
from canvas.engine.memory_plan import MemoryPlan
from canvas.models.download import LocalModel

CPU = Device("cpu", "float32", "test")
LOCAL = LocalModel(Path("model"), "a/model")


class Vae(torch.nn.Identity):
    tiled = False

    def enable_tiling(self) -> None:
        self.tiled = True


class AutoencoderTiny(Vae):
    """Its tiles fit only some models."""


class Pipeline:
    """Notes how it is placed."""

    def __init__(self, vae: Any = None) -> None:
        self.calls: list[str] = []
        self.vae = vae

    def enable_model_cpu_offload(self, device: str) -> None:
        self.calls.append(f"model {device}")

    def enable_group_offload(self, onload_device: Any, offload_device: Any, **_: Any) -> None:
        self.calls.append(f"group {onload_device} {offload_device}")

    def to(self, device: str) -> Pipeline:
        self.calls.append(f"to {device}")
        return self


@pytest.mark.parametrize(
    ("offload", "call"),
    [("none", "to cuda"), ("model", "model cuda"), ("group", "group cuda cpu"), ("encode-first", "to cuda")],
)
def test_a_pipeline_is_placed_as_planned(offload: str, call: str) -> None:
    pipeline = place(Pipeline(Vae()), LOCAL, Device("cuda", "float16", "test"), MemoryPlan(offload=offload))
    assert pipeline.calls == [call]
    assert (encode_first.attached(pipeline) is not None) is (offload == "encode-first")
    assert plan_note(pipeline) == ("" if offload == "none" else f"offload: {offload}")


@pytest.mark.parametrize(("tiling", "vae"), [(True, Vae()), (False, Vae()), (True, AutoencoderTiny())])
def test_large_images_are_decoded_in_tiles_where_the_vae_can(tiling: bool, vae: Vae) -> None:
    pipeline = place(Pipeline(vae), LOCAL, CPU, MemoryPlan(tiling=tiling))
    assert vae.tiled is (tiling and type(vae) is Vae)
    assert plan_note(pipeline) == ("decoded in tiles" if tiling else "")


@pytest.mark.parametrize("vae", [None, torch.nn.Identity()])
def test_a_pipeline_without_tiles_is_placed_too(vae: Any) -> None:
    pipeline = place(Pipeline(vae), LOCAL, CPU, MemoryPlan(offload="none", tiling=True))
    assert pipeline.calls == ["to cpu"]
    assert plan_note(pipeline) == ("" if vae is None else "decoded in tiles")
    assert plan_note(SimpleNamespace()) == ""


@pytest.mark.parametrize(
    ("offload", "expected"),
    [
        ("none", {DENOISER: "transformer in int8", "vae": "vae of a file", ENCODER: "text_encoder in int8"}),
        ("encode-first", {DENOISER: None, "vae": "vae of a file", ENCODER: None}),
    ],
)
def test_components_of_other_files_and_in_int8_are_loaded_apart(
    monkeypatch: pytest.MonkeyPatch, offload: str, expected: dict[str, Any]
) -> None:
    monkeypatch.setattr(quantization, "load_component", lambda _, name, device: f"{name} of a file")
    monkeypatch.setattr(quantization, "load_quantized", lambda _, name, scheme, device: f"{name} in {scheme}")
    local: Any = SimpleNamespace(components=[(DENOISER, Path("a.gguf")), ("vae", Path("vae.safetensors"))])
    plan = MemoryPlan("int8", offload, quantized=(ENCODER, DENOISER))
    assert planned_components(local, CPU, plan) == expected
