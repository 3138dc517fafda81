"""Models in `.bin` files: their weights are replaced by safetensors files at the first load."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from canvas.engine import bin_weights
from canvas.engine.device import Device
from canvas.engine.loader import load_pipeline, weight_files
from canvas.errors import ModelCorrupted
from canvas.models import download
from canvas.models.download import LocalModel
from canvas.models.hub_client import Hub
from tests.conftest import make_spec
from tests.hub_server import LocalHub

REPO = "tiny/pickled"
CPU = Device("cpu", "bfloat16", "")
SPEC = make_spec(REPO)


@pytest.fixture
def own_hub(hub: LocalHub, tmp_path: Path) -> Hub:
    return Hub(hub.url, tmp_path / "hub", "none")


@pytest.fixture
def local(hub: LocalHub, own_hub: Hub, tiny_bin_folder: Path) -> LocalModel:
    """A pipeline of `.bin` files, downloaded from the local Hub."""
    hub.add(REPO, tiny_bin_folder)
    plan = download.plan_download(SPEC, hub=own_hub)
    done = download.download(SPEC, plan, lambda _: None, threading.Event(), hub=own_hub)
    hub.requests.clear()
    return done.local


def weights(pipeline: Any) -> dict[str, torch.Tensor]:
    return {
        f"{component}.{name}": tensor
        for component in ("unet", "vae", "text_encoder")
        for name, tensor in getattr(pipeline, component).state_dict().items()
    }


@pytest.mark.slow
def test_the_weights_are_replaced_by_equal_safetensors(
    hub: LocalHub, own_hub: Hub, local: LocalModel, tiny_bin_folder: Path
) -> None:
    told = download.plan_download(SPEC, hub=own_hub).total_bytes
    expected = weights(load_pipeline(make_spec(str(tiny_bin_folder)), LocalModel(tiny_bin_folder, ""), CPU))
    hub.requests.clear()
    for _ in range(2):
        pipeline = load_pipeline(SPEC, local, CPU)
        assert {file.suffix for file in weight_files(local, CPU)} == {".json", ".safetensors", ".txt"}
        assert not list(own_hub.repo_folder(REPO).rglob("*.bin"))
        assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(pipeline).items())
        assert download.find_local(SPEC, hub=own_hub) == local
    folder = own_hub.repo_folder(REPO)
    used = sum(
        path.stat().st_size
        for name in ("snapshots", "blobs")
        for path in (folder / name).rglob("*")
        if not path.is_symlink() and path.is_file()
    )
    assert used <= told
    assert hub.requests == []
    download.remove(SPEC, hub=own_hub)
    assert not folder.exists()


@pytest.mark.slow
def test_every_dtype_reads_the_same_files(local: LocalModel) -> None:
    single = load_pipeline(SPEC, local, Device("cpu", "float32", ""))
    half = load_pipeline(SPEC, local, CPU)
    assert (single.unet.dtype, half.unet.dtype) == (torch.float32, torch.bfloat16)
    assert torch.equal(half.unet.conv_in.weight, single.unet.conv_in.weight.bfloat16())


def test_shards_are_replaced_with_their_index(local: LocalModel) -> None:
    folder = local.path / "unet"
    [file] = folder.glob("*.bin")
    tensors = torch.load(file, weights_only=True)
    file.unlink()
    names = [f"diffusion_pytorch_model-{number:05}-of-00002.bin" for number in (1, 2)]
    halves: list[dict[str, torch.Tensor]] = [{}, {}]
    for number, (key, tensor) in enumerate(tensors.items()):
        halves[number % 2][key] = tensor
    for name, half in zip(names, halves, strict=True):
        torch.save(half, folder / name)
    weight_map = {key: name for name, half in zip(names, halves, strict=True) for key in half}
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "diffusion_pytorch_model.bin.index.json").write_text(json.dumps(index))
    loaded = load_pipeline(SPEC, local, Device("cpu", "float32", "")).unet.state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in tensors.items())
    assert not list(folder.glob("*.bin*"))
    assert len(list(folder.glob("*.safetensors"))) == 2


def test_a_truncated_copy_does_not_count(own_hub: Hub, local: LocalModel) -> None:
    load_pipeline(SPEC, local, CPU)
    path = local.path / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert download.find_local(SPEC, hub=own_hub) is None


def test_a_damaged_file_stays_and_is_reported(local: LocalModel) -> None:
    [file] = (local.path / "unet").glob("*.bin")
    blob = file.resolve()
    blob.write_bytes(blob.read_bytes()[:-1000])
    with pytest.raises(ModelCorrupted, match="cannot be loaded"):
        load_pipeline(SPEC, local, CPU)
    assert file.is_file()


@pytest.mark.slow
def test_copies_of_earlier_versions_are_deleted(local: LocalModel) -> None:
    converted = local.path.parent.parent / "converted"
    for name in (f"{local.path.name}-bfloat16", f"{local.path.name}-unet-openvino-1", "other-bfloat16"):
        (converted / name).mkdir(parents=True)
    load_pipeline(SPEC, local, CPU)
    assert sorted(path.name for path in converted.iterdir()) == [f"{local.path.name}-unet-openvino-1", "other-bfloat16"]


def test_folder_of_the_user_is_not_changed(tiny_bin_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bin_folder, tmp_path / "mine"))
    before = sorted(tmp_path.rglob("*"))
    load_pipeline(make_spec(str(folder)), LocalModel(folder, str(folder)), CPU)
    assert sorted(tmp_path.rglob("*")) == before


def test_nothing_is_replaced_on_a_full_disk(local: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bin_weights, "MIN_FREE_BYTES", 2**60)
    load_pipeline(SPEC, local, CPU)
    assert len(list(local.path.glob("*/*.bin"))) == 3
