"""Which IP-Adapter a model gets, and where it is on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from canvas.errors import InvalidInput
from canvas.models import ip_adapters
from canvas.models.addons import Addon
from canvas.models.capabilities import read_capabilities
from canvas.models.hub_client import Hub
from canvas.models.ip_adapters import ENCODER, REPO_ID, USUAL
from canvas.request import GenerationRequest
from tests.conftest import make_spec

STYLE = USUAL["stable_diffusion"]["style"]
NAME = f"{REPO_ID}:{STYLE.file}"
SPEC = make_spec("o/x")


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    return Hub(endpoint="http://127.0.0.1:9", cache_dir=tmp_path / "cache")


def cache(hub: Hub, *files: str) -> Path:
    folder = hub.repo_folder(REPO_ID) / "snapshots" / "abc"
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def test_the_usual_adapter_depends_on_family_and_layers() -> None:
    sd = read_capabilities({"_class_name": "StableDiffusionPipeline"}, {})
    assert ip_adapters.usual_adapter("style", "stable_diffusion", SPEC, None) == NAME
    assert ip_adapters.usual_adapter("style", "flux2_klein", SPEC, None) == ""
    assert ip_adapters.usual_adapter("style", "", SPEC, None) == "", "known after the download"
    with pytest.raises(InvalidInput, match="tiny-test takes no reference images"):
        ip_adapters.usual_adapter("style", "", SPEC, sd)
    with pytest.raises(InvalidInput, match="layers of its own"):
        ip_adapters.usual_adapter("style", "stable_diffusion", SPEC, sd)
    with pytest.raises(InvalidInput, match="layers of its own"):
        ip_adapters.usual_adapter("style", "stable_diffusion", replace(SPEC, gflops_per_step=400), None)


def test_adapters_are_files_of_the_folder_or_of_the_hub(tmp_path: Path, hub: Hub) -> None:
    folder = tmp_path / "adapters"
    with pytest.raises(InvalidInput, match=r"IP-Adapter mine.safetensors not found .*adapters \(it has: none\)"):
        ip_adapters.find("mine.safetensors", folder, hub=hub)
    (folder / "more").mkdir(parents=True)
    for name in ("mine.safetensors", "more/mine.safetensors", "mine.bin"):
        (folder / name).write_bytes(b"")
    assert ip_adapters.list_names(folder) == ["mine.safetensors", "more/mine.safetensors"]
    assert ip_adapters.find("more/mine.safetensors", folder, hub=hub) == folder / "more" / "mine.safetensors"
    for name in ("mine.bin", "more/../mine.safetensors", "more", "other.safetensors"):
        with pytest.raises(InvalidInput, match="not found"):
            ip_adapters.find(name, folder, hub=hub)
    assert ip_adapters.find(NAME, folder, hub=hub) is None
    assert ip_adapters.find(NAME, folder, hub=hub) is None
    assert cache(hub, STYLE.file) / STYLE.file == ip_adapters.find(NAME, folder, hub=hub)


def test_adapter_and_encoder_are_missing_until_they_are_cached(tmp_path: Path, hub: Hub) -> None:
    request = GenerationRequest("a fox", reference_images=({"image": "a.png", "model": NAME},))
    plain = GenerationRequest("a fox", reference_images=({"image": "a.png"},))
    assert ip_adapters.missing(plain, tmp_path, hub=hub) == []
    assert ip_adapters.missing(request, tmp_path, hub=hub) == [Addon(REPO_ID, (STYLE.file,), 0), ENCODER]
    assert ip_adapters.download_size(NAME, tmp_path, hub=hub) == STYLE.size + ENCODER.size
    cache(hub, STYLE.file)
    assert ip_adapters.missing(request, tmp_path, hub=hub) == [ENCODER]
    assert ip_adapters.download_size(NAME, tmp_path, hub=hub) == ENCODER.size
    assert ip_adapters.find_encoder(hub) is None
    folder = cache(hub, *ENCODER.files)
    assert ip_adapters.find_encoder(hub) == folder / ip_adapters.ENCODER_FOLDER
    assert ip_adapters.missing(request, tmp_path, hub=hub) == []
    assert ip_adapters.download_size(NAME, tmp_path, hub=hub) == 0
    assert ip_adapters.download_size("ann/other:x.safetensors", tmp_path, hub=hub) == 0
