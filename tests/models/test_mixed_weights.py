"""Repositories whose components have their weights in different formats and precisions."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from canvas.engine import loader
from canvas.engine.device import Device
from canvas.engine.generate import generate
from canvas.models.download import LocalModel
from canvas.models.pipeline_files import WeightVariant, select_local_files
from canvas.request import GenerationRequest
from tests.conftest import make_spec

ONE_BIN = {"vae/diffusion_pytorch_model.safetensors": "vae/diffusion_pytorch_model.bin"}
MIXED = {"unet/diffusion_pytorch_model.safetensors": "unet/diffusion_pytorch_model.fp16.safetensors"}
BF16 = {
    f"{component}/{name}.safetensors": f"{component}/{name}.bf16.safetensors"
    for component, name in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    )
}


@pytest.mark.slow
@pytest.mark.parametrize("changes", [ONE_BIN, MIXED, BF16], ids=["one .bin", "mixed precision", "bf16 only"])
def test_the_pipeline_is_complete_and_loads(tiny_folder: Path, tmp_path: Path, changes: dict[str, str]) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    for old, new in changes.items():
        tensors = load_file(folder / old)
        (folder / old).unlink()
        if new.endswith(".bin"):
            torch.save(tensors, folder / new)
        else:
            dtype = torch.bfloat16 if ".bf16." in new else torch.float16
            save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, folder / new, {"format": "pt"})
    selection = select_local_files(folder)
    assert set(changes.values()) <= set(selection.files)
    spec, device = make_spec(str(folder)), Device("cpu", "float32", "")
    pipeline = loader.load_pipeline(spec, LocalModel(folder, str(folder)), device)
    request = GenerationRequest("a fox", seed=1, model_key=spec.key).with_defaults(spec)
    [image] = generate(pipeline, request, spec=spec, device=device, on_step=lambda _: None, cancelled=threading.Event())
    assert image.image is not None and np.asarray(image.image).std() > 0


def test_the_other_components_keep_their_variant(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".fp16.safetensors"))
    selection = select_local_files(folder)
    assert selection.weights == WeightVariant("safetensors", None)
    assert selection.exceptions == {"unet": WeightVariant("safetensors", "fp16")}
