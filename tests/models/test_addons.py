"""The distilled LoRA and the tiny VAE: downloaded, fused and used for generation."""

from __future__ import annotations

import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from canvas.catalog import MODELS, ModelSpec
from canvas.engine.device import Device
from canvas.engine.generate import generate
from canvas.engine.pipeline_cache import PipelineCache
from canvas.errors import ModelCorrupted, ModelUnavailable
from canvas.models import addons
from canvas.models.addons import ADDONS, TAESD
from canvas.models.download import DownloadProgress, LocalModel
from canvas.models.hub_client import Hub
from canvas.presets import DISTILLED_LORA
from canvas.request import GenerationRequest
from tests.hub_server import LocalHub

CPU = Device("cpu", "float32", "for the test")


@pytest.fixture(scope="module")
def repositories(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA for the tiny pipeline and a tiny VAE, named as on the Hub."""
    from diffusers import AutoencoderTiny, StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    root = tmp_path_factory.mktemp("repositories")
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_folder)
    torch.manual_seed(0)
    layers = ["to_q", "to_k", "to_v", "to_out.0"]
    pipeline.unet.add_adapter(LoraConfig(r=4, init_lora_weights=False, target_modules=layers))
    lora = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipeline.unet))
    addon = ADDONS[DISTILLED_LORA]
    StableDiffusionPipeline.save_lora_weights(root / addon.repo_id, unet_lora_layers=lora, weight_name=addon.files[0])
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
    ).save_pretrained(root / ADDONS[TAESD].repo_id)
    return root


USED = (DISTILLED_LORA, TAESD)


@pytest.fixture
def cached(repositories: Path, tmp_path: Path) -> Hub:
    """A cache with both add-ons."""
    hub = Hub(cache_dir=tmp_path / "cache")
    for addon in (ADDONS[name] for name in USED):
        shutil.copytree(repositories / addon.repo_id, hub.repo_folder(addon.repo_id) / "snapshots/abc")
    return hub


@pytest.fixture
def spec(tiny_spec: ModelSpec) -> ModelSpec:
    return replace(tiny_spec, accelerations=(DISTILLED_LORA, TAESD))


def local(spec: ModelSpec) -> LocalModel:
    return LocalModel(Path(spec.name), "", "")


def weights(pipeline: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in pipeline.unet.state_dict().items()}


def test_required_add_ons_of_presets() -> None:
    assert addons.required("turbo", MODELS["small"]) == (DISTILLED_LORA, TAESD)
    assert addons.required("turbo", MODELS["tiny"]) == (TAESD,)
    assert addons.required("turbo", MODELS["starter"]) == ()
    assert addons.required("balanced", MODELS["small"]) == ()


def test_turbo_is_loaded_separately_and_quality_is_unchanged(spec: ModelSpec, cached: Hub) -> None:
    cache = PipelineCache(CPU, hub=cached)
    quality = cache.get(spec, local(spec))
    before = weights(quality)
    turbo = cache.get(spec, local(spec), preset="turbo")
    assert list(weights(turbo)) == list(before), "fused, without new layers"
    changed = [name for name, tensor in weights(turbo).items() if not tensor.equal(before[name])]
    assert len(changed) > 3
    assert all("attn" in name for name in changed)
    assert type(turbo.vae).__name__ == "AutoencoderTiny"
    assert all(tensor.equal(before[name]) for name, tensor in weights(quality).items())
    assert cache.get(spec, local(spec), preset="turbo") is turbo
    assert cache.get(spec, local(spec), preset="balanced") is quality
    assert cache.is_loaded(spec, "turbo")
    assert cache.unload(spec)
    assert cache.loaded() == {}


def test_turbo_generates_an_image(spec: ModelSpec, cached: Hub) -> None:
    request = GenerationRequest("a fox", preset="turbo", seed=3, model_key=spec.key).with_defaults(spec)
    assert (request.num_inference_steps, request.guidance_scale) == (4, 0.0)
    pipeline = PipelineCache(CPU, hub=cached).get(spec, local(spec), preset="turbo")
    (image,) = generate(
        pipeline, request, spec=spec, device=CPU, on_step=lambda step: None, cancelled=threading.Event()
    )
    assert image.image is not None
    assert image.image.size == (64, 64)


def test_turbo_without_distilled_lora_only_replaces_the_vae(tiny_spec: ModelSpec, cached: Hub) -> None:
    spec = replace(tiny_spec, accelerations=(TAESD,))
    cache = PipelineCache(CPU, hub=cached)
    quality, turbo = cache.get(spec, local(spec)), cache.get(spec, local(spec), preset="turbo")
    assert turbo.unet is quality.unet
    assert turbo.vae is not quality.vae
    assert len(cache.loaded()) == 1


def test_missing_add_ons_are_an_error_and_leave_the_cache_usable(spec: ModelSpec, tmp_path: Path) -> None:
    hub = Hub(cache_dir=tmp_path)
    cache = PipelineCache(CPU, hub=hub)
    assert addons.missing("turbo", spec, hub=hub) == (DISTILLED_LORA, TAESD)
    with pytest.raises(ModelUnavailable, match=r"Turbo needs ByteDance/Hyper-SD \(269 MB"):
        cache.get(spec, local(spec), preset="turbo")
    assert cache.loaded() == {}
    cache.get(spec, local(spec))


def test_lora_of_another_model_is_rejected(spec: ModelSpec, cached: Hub, repositories: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = cached.repo_folder(ADDONS[DISTILLED_LORA].repo_id) / "snapshots/abc"
    path = file / ADDONS[DISTILLED_LORA].files[0]
    halved = {name: tensor[:, ::2].contiguous() for name, tensor in load_file(path).items()}
    save_file(halved, path)
    with pytest.raises(ModelUnavailable, match="few-step weights do not fit"):
        PipelineCache(CPU, hub=cached).get(spec, local(spec), preset="turbo")


@pytest.mark.slow
def test_add_ons_are_downloaded_once(hub: LocalHub, repositories: Path, spec: ModelSpec, tmp_path: Path) -> None:
    client = Hub(endpoint=hub.url, cache_dir=tmp_path / "cache")
    for addon in ADDONS.values():
        hub.add(addon.repo_id, repositories / addon.repo_id)
    updates: list[DownloadProgress] = []
    addons.fetch("turbo", spec, updates.append, threading.Event(), hub=client)
    assert addons.missing("turbo", spec, hub=client) == ()
    folder = addons.find(TAESD, hub=client)
    assert folder is not None
    assert updates[-1].bytes_done == updates[-1].bytes_total
    assert updates[-1].bytes_total == sum((folder / file).stat().st_size for file in ADDONS[TAESD].files)
    hub.close()
    addons.fetch("turbo", spec, updates.append, threading.Event(), hub=client)


def test_repository_without_the_file_is_an_error(
    hub: LocalHub, tiny_folder: Path, spec: ModelSpec, tmp_path: Path
) -> None:
    client = Hub(endpoint=hub.url, cache_dir=tmp_path / "cache")
    hub.add(ADDONS[DISTILLED_LORA].repo_id, tiny_folder)
    with pytest.raises(ModelCorrupted, match="no longer contains Hyper-SD15-4steps"):
        addons.fetch("turbo", spec, lambda progress: None, threading.Event(), hub=client)
