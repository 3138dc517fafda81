"""Models in `.bin` files are converted to safetensors once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from canvas.engine import loader
from canvas.engine.device import Device
from canvas.engine.loader import load_pipeline, weight_files
from canvas.models import download, hub_cache
from canvas.models.download import LocalModel
from canvas.models.hub_client import Hub
from tests.conftest import make_spec

REPO = "tiny/pickled"
CPU = Device("cpu", "bfloat16", "")
SPEC = make_spec(REPO)


@pytest.fixture
def own_hub(tmp_path: Path) -> Hub:
    return Hub(cache_dir=tmp_path / "hub")


@pytest.fixture
def local(own_hub: Hub, tiny_bin_folder: Path) -> LocalModel:
    """A pipeline of `.bin` files in the layout of the Hub cache."""
    revision = "a" * 40
    folder = own_hub.repo_folder(REPO) / "snapshots" / revision
    shutil.copytree(tiny_bin_folder, folder)
    return LocalModel(folder, REPO, revision)


def weights(pipeline: Any) -> dict[str, torch.Tensor]:
    return {
        f"{component}.{name}": tensor
        for component in ("unet", "vae", "text_encoder")
        for name, tensor in getattr(pipeline, component).state_dict().items()
    }


def test_second_load_reads_equal_safetensors(local: LocalModel) -> None:
    first = load_pipeline(SPEC, local, CPU)
    files = weight_files(local, CPU)
    assert not [file for file in files if file.suffix == ".bin"]
    assert len([file for file in files if file.suffix == ".safetensors"]) == 3
    shutil.rmtree(local.path / "unet")  # not read any more
    second = load_pipeline(SPEC, local, CPU)
    assert second.unet.dtype == torch.bfloat16
    expected = weights(first)
    for name, tensor in weights(second).items():
        assert torch.equal(tensor, expected[name]), name


def test_each_dtype_has_its_own_copy(local: LocalModel) -> None:
    load_pipeline(SPEC, local, CPU)
    other = load_pipeline(SPEC, local, Device("cpu", "float32", ""))
    assert other.unet.dtype == torch.float32
    assert len(list((local.path.parent.parent / loader.CONVERTED_DIR).iterdir())) == 2


def test_damaged_copy_is_converted_again(local: LocalModel) -> None:
    expected = weights(load_pipeline(SPEC, local, CPU))
    converted = loader.find_converted(local, CPU)
    assert converted is not None
    path = converted / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert loader.find_converted(local, CPU) is None
    actual = weights(load_pipeline(SPEC, local, CPU))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in actual.items())
    assert loader.find_converted(local, CPU) == converted


def test_copy_is_counted_and_deleted_with_the_model(local: LocalModel, own_hub: Hub) -> None:
    before = hub_cache.bytes_on_disk(own_hub, [REPO])
    load_pipeline(SPEC, local, CPU)
    assert hub_cache.bytes_on_disk(own_hub, [REPO]) > before
    assert download.find_local(SPEC, hub=own_hub) == local
    download.remove(SPEC, hub=own_hub)
    assert not own_hub.repo_folder(REPO).exists()


def test_folder_of_the_user_is_not_changed(tiny_bin_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bin_folder, tmp_path / "mine"))
    before = sorted(tmp_path.rglob("*"))
    load_pipeline(make_spec(str(folder)), LocalModel(folder, str(folder)), CPU)
    assert sorted(tmp_path.rglob("*")) == before


def test_nothing_is_converted_on_a_full_disk(local: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "MIN_FREE_BYTES", 2**60)
    load_pipeline(SPEC, local, CPU)
    assert loader.find_converted(local, CPU) is None
