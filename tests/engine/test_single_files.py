"""Single-file checkpoints with the full key names: loaded without a network, as a folder would be."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from canvas.catalog import parse_model
from canvas.engine import loader
from canvas.engine.device import Device
from canvas.engine.generate import generate
from canvas.errors import ModelUnsupported
from canvas.models import single_file
from canvas.models.download import LocalModel
from canvas.request import GenerationRequest
from tests.tiny_single_files import ENCODERS, make_single_file

CPU = Device("cpu", "float32", "")


def draw(path: Path, task: str, pipeline: Any = None) -> Any:
    spec = make_spec(path)
    pipeline = pipeline or loader.load_pipeline(spec, LocalModel(path, str(path)), CPU)
    fields = {"image": "x.png", "mask_image": "y.png", "mask_blur": 0} if task == "inpaint" else {}
    request = GenerationRequest("a red fox", seed=3, model_key=spec.key, task=task, **fields).with_defaults(spec)
    if task == "inpaint":
        import diffusers

        pipeline = diffusers.StableDiffusionInpaintPipeline(**pipeline.components, requires_safety_checker=False)
    images = {
        "image": Image.radial_gradient("L").resize((64, 64)).convert("RGB"),
        "mask_image": Image.new("L", (64, 64), 255),
    }
    [image] = generate(
        pipeline, request, spec=spec, device=CPU, on_step=lambda _: None, cancelled=threading.Event(), images=images
    )
    assert image.image is not None
    return pipeline, np.asarray(image.image)


def make_spec(path: Path) -> Any:
    entry = {"name": str(path), "size": "1 MB", "speed": "Fast", "quality": "None", "type": "auto"}
    return parse_model("single", {**entry, "resolution": 64, "num_inference_steps": 2})


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a request to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.slow
@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("family", sorted(ENCODERS))
def test_a_single_file_draws_what_its_folder_draws(family: str, tmp_path: Path) -> None:
    path = make_single_file(family, tmp_path / f"{family}.safetensors")
    task = "inpaint" if family == "sd15_inpaint" else "text_to_image"
    pipeline, pixels = draw(path, task)
    pipeline.save_pretrained(tmp_path / "folder")
    # As on the Hub, without the default values: another scheduler takes its own for them.
    scheduler = single_file.read_configs(path)["scheduler"]
    (tmp_path / "folder" / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    _, expected = draw(tmp_path / "folder", task)
    assert pixels.std() > 0
    assert (pixels == expected).all()
    assert pipeline.scheduler.config.prediction_type == ("v_prediction" if family == "sd21" else "epsilon")
    assert pipeline.tokenizer("a fox").input_ids == [49406, 320, 3240, 49407]


@pytest.mark.parametrize("name", ["sd_turbo.safetensors", "v2-1_512-ema-pruned.safetensors"])
def test_the_noise_models_among_the_2_1_files(name: str, tmp_path: Path) -> None:
    path = make_single_file("sd21", tmp_path / name)
    assert single_file.read_configs(path)["scheduler"]["prediction_type"] == "epsilon"


def test_a_file_of_other_weights_is_refused_in_words(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    path = tmp_path / "flux.safetensors"
    save_file({"double_blocks.0.img_attn.norm.key_norm.scale": torch.ones(4)}, path)
    with pytest.raises(ModelUnsupported, match="no complete checkpoint"):
        loader.load_pipeline(make_spec(path), LocalModel(path, str(path)), CPU)
