"""The models of the catalog in the layouts of their repositories: from the Hub to an image."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from canvas.catalog import MODELS, ModelSpec, parse_model
from canvas.engine.device import Device
from canvas.engine.generate import generate
from canvas.engine.pipeline_cache import PipelineCache
from canvas.errors import ConsentRequired
from canvas.models import download
from canvas.models.hub_client import Hub
from canvas.presets import PRESETS
from canvas.request import GenerationRequest
from canvas.settings import Settings
from canvas.studio import Studio
from tests.conftest import slow_params
from tests.hub_server import LocalHub
from tests.tiny_families import make_tiny
from tests.tiny_pipeline import UNUSED_CONTENT, make_bin_layout, make_full_layout

BF16 = Device("cpu", "bfloat16", "for the test")
FP32 = Device("cpu", "float32", "for the test")


def add_fp16(folder: Path) -> None:
    """The fp16 variant beside each file of weights."""
    for weights in sorted(folder.glob("*/*.safetensors")):
        halves = {name: tensor.half() for name, tensor in load_file(weights).items()}
        save_file(halves, weights.with_suffix(".fp16.safetensors"), {"format": "pt"})


def add_unused(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(UNUSED_CONTENT)


def sdxs(root: Path) -> None:
    folder = make_tiny("sdxs", root / "IDKiro/sdxs-512-dreamshaper")
    add_unused(folder, "vae_large/diffusion_pytorch_model.safetensors", "output.png")


def sd_turbo(root: Path) -> None:
    folder = make_tiny("sd21-v", root / "stabilityai/sd-turbo")
    add_fp16(folder)
    add_unused(folder, "sd_turbo.safetensors")


def tiny(root: Path) -> None:
    make_bin_layout(make_tiny("sd15", root / "sd15"), root / "OFA-Sys/small-stable-diffusion-v0")


def small(root: Path) -> None:
    make_full_layout(make_tiny("sd15", root / "sd15"), root / "stable-diffusion-v1-5/stable-diffusion-v1-5")


def realistic(root: Path) -> None:
    make_full_layout(make_tiny("sd15", root / "sd15"), root / "SG161222/Realistic_Vision_V5.1_noVAE")
    vae = make_tiny("sd15", root / "other") / "vae"
    shutil.copytree(vae, root / "stabilityai/sd-vae-ft-mse")
    other = root / "stabilityai/sd-vae-ft-mse/diffusion_pytorch_model.safetensors"
    save_file({name: tensor * 1.1 for name, tensor in load_file(other).items()}, other, {"format": "pt"})
    add_unused(other.parent, "diffusion_pytorch_model.bin")


def anime(root: Path) -> None:
    folder = make_full_layout(make_tiny("sd15", root / "sd15"), root / "Meina/MeinaMix_V11")
    for variant in folder.glob("*/*.fp16.*"):
        variant.unlink()


def sdxl(root: Path) -> None:
    folder = make_tiny("sdxl", root / "stabilityai/stable-diffusion-xl-base-1.0")
    shutil.copytree(folder / "vae", root / "madebyollin/sdxl-vae-fp16-fix")
    add_unused(root / "madebyollin/sdxl-vae-fp16-fix", "sdxl_vae.safetensors")
    add_fp16(folder)
    add_unused(folder, "sd_xl_base_1.0.safetensors", "vae_1_0/diffusion_pytorch_model.safetensors")


def flux_klein(root: Path) -> None:
    folder = make_tiny("flux2-klein", root / "black-forest-labs/FLUX.2-klein-4B")
    add_unused(folder, "flux-2-klein-4b.safetensors")


def z_image(root: Path) -> None:
    folder = make_tiny("z-image-turbo", root / "Tongyi-MAI/Z-Image-Turbo")
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    single = root / "Comfy-Org/z_image_turbo/split_files/diffusion_models/z_image_turbo_bf16.safetensors"
    single.parent.mkdir(parents=True)
    save_file(original_z_image(tensors), single, {"format": "pt"})
    add_unused(single.parent, "z_image_turbo_nvfp4.safetensors")
    weights.write_bytes(UNUSED_CONTENT)  # the float32 weights, which are not to be fetched


def original_z_image(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names of the authors, in bfloat16: the inverse of diffusers' conversion."""
    names = {
        "all_final_layer.2-1.": "final_layer.",
        "all_x_embedder.2-1.": "x_embedder.",
        ".attention.to_out.0.": ".attention.out.",
        ".attention.norm_k.": ".attention.k_norm.",
        ".attention.norm_q.": ".attention.q_norm.",
    }
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        new = name
        for old, original in names.items():
            new = new.replace(old, original)
        found[new] = tensor.bfloat16()
    for name in [name for name in found if name.endswith(".attention.to_q.weight")]:
        parts = [found.pop(name.replace("to_q", part)) for part in ("to_q", "to_k", "to_v")]
        found[name.replace("to_q", "qkv")] = torch.cat(parts)
    return found


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "sdxs": sdxs,
    "sd-turbo": sd_turbo,
    "tiny": tiny,
    "small": small,
    "realistic": realistic,
    "anime": anime,
    "sdxl": sdxl,
    "flux-klein": flux_klein,
    "z-image": z_image,
}


# Models whose repositories have the same files as another's.
SAME_LAYOUT = {"mini-sd": "tiny", "dreamshaper": "small", "openjourney": "anime", "portrait": "anime"}


def test_every_model_is_tried() -> None:
    assert set(MODELS) == {"starter", *LAYOUTS, *SAME_LAYOUT}
    assert MODELS["mini-sd"].name == MODELS["tiny"].name


@pytest.fixture(params=["sd-turbo", *slow_params(*sorted(LAYOUTS.keys() - {"sd-turbo"}))])
def served(request: pytest.FixtureRequest, hub: LocalHub, tmp_path: Path) -> ModelSpec:
    """The entry of the catalog, with its repositories on the local Hub; tiny, so of 64 x 64 pixels."""
    root = tmp_path / "hub"
    LAYOUTS[request.param](root)
    spec = MODELS[request.param]
    for repo_id in (spec.name, *download.component_repositories(spec)):
        hub.add(repo_id, root / repo_id)
    return replace(spec, resolution=64)


def draw(spec: ModelSpec, local: download.LocalModel, device: Device) -> Any:
    pipeline = PipelineCache(device, quantization="none", offload="none").get(spec, local)
    request = GenerationRequest("a fox", seed=1, width=64, height=64).with_defaults(spec)
    [image] = generate(pipeline, request, spec=spec, device=device, on_step=lambda _: None, cancelled=threading.Event())
    return pipeline, image


@pytest.mark.parametrize("device", [FP32, BF16], ids=lambda device: device.dtype)
def test_from_the_hub_to_an_image(hub: LocalHub, tmp_path: Path, served: ModelSpec, device: Device) -> None:
    client = Hub(hub.url, tmp_path / "cache", "none")
    assert download.find_local(served, hub=client) is None
    plan = download.plan_download(served, hub=client)
    parts = (plan, *(part for _, part in plan.components))
    assert plan.total_bytes == plan.missing_bytes == sum(file.size for part in parts for file in part.files)
    for part in parts:
        names = {file.path for file in part.files}
        contents = {hub.files(part.repo_id)[name].read_bytes() for name in names}
        assert UNUSED_CONTENT not in contents, names
    done = download.download(served, plan, lambda _: None, threading.Event(), hub=client)
    assert done.bytes == plan.total_bytes
    assert done.local == download.find_local(served, hub=client)
    hub.requests.clear()

    pipeline, image = draw(served, done.local, device)
    assert hub.requests == []
    assert image.image.size == (64, 64)
    assert image.image.convert("L").getextrema()[0] < image.image.convert("L").getextrema()[1]
    assert image.request.num_inference_steps == served.num_inference_steps
    for name, source in done.local.components:
        file = source if source.is_file() else source / "diffusion_pytorch_model.safetensors"
        assert parameter_of(pipeline, name) == pytest.approx(first_value(load_file(file), name), rel=0.02)


def parameter_of(pipeline: Any, component: str) -> float:
    module = getattr(pipeline, component)
    return float(dict(module.named_parameters())[PARAMETERS[component]].detach().flatten()[0])


PARAMETERS = {"vae": "decoder.conv_in.weight", "transformer": "t_embedder.mlp.0.weight"}


def first_value(tensors: dict[str, torch.Tensor], component: str) -> float:
    return float(tensors[PARAMETERS[component]].detach().flatten()[0])


@pytest.mark.slow
def test_deleting_a_model_deletes_its_components(hub: LocalHub, tmp_path: Path) -> None:
    realistic(tmp_path / "hub")
    spec = MODELS["realistic"]
    for repo_id in (spec.name, *download.component_repositories(spec)):
        hub.add(repo_id, tmp_path / "hub" / repo_id)
    client = Hub(hub.url, tmp_path / "cache", "none")
    plan = download.plan_download(spec, hub=client)
    done = download.download(spec, plan, lambda _: None, threading.Event(), hub=client)
    assert download.remove(spec, hub=client) >= done.bytes
    assert download.model_bytes_on_disk(spec, hub=client) == 0


@pytest.mark.slow
def test_a_missing_component_is_downloaded_alone(hub: LocalHub, tmp_path: Path) -> None:
    realistic(tmp_path / "hub")
    spec = MODELS["realistic"]
    for repo_id in (spec.name, *download.component_repositories(spec)):
        hub.add(repo_id, tmp_path / "hub" / repo_id)
    client = Hub(hub.url, tmp_path / "cache", "none")
    plan = download.plan_download(spec, hub=client)
    download.download(spec, plan, lambda _: None, threading.Event(), hub=client)
    shutil.rmtree(client.repo_folder("stabilityai/sd-vae-ft-mse"))
    assert download.find_local(spec, hub=client) is None
    rest = download.plan_download(spec, hub=client)
    assert rest.missing_bytes == sum(part.total_bytes for _, part in rest.components)


@pytest.mark.parametrize(("key", "steps"), [("flux-klein", 4), ("z-image", 8), ("sd-turbo", 1), ("sdxs", 1)])
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_keep_the_steps_of_distilled_models(key: str, steps: int, preset: str) -> None:
    request = GenerationRequest("a fox", model_key=key, preset=preset).with_defaults(MODELS[key])
    assert (request.num_inference_steps, request.guidance_scale) == (steps, MODELS[key].guidance_scale)
    assert request.scheduler == "Model default"


def test_turbo_of_sdxl_uses_lightning() -> None:
    request = GenerationRequest("a fox", model_key="sdxl", preset="turbo").with_defaults(MODELS["sdxl"])
    assert (request.num_inference_steps, request.guidance_scale, request.scheduler) == (4, 0.0, "Euler trailing")


def test_readme_lists_the_models() -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    for key, spec in MODELS.items():
        assert f"`{key}`" in readme
        assert key == "starter" or spec.name in readme


@pytest.mark.slow
def test_an_entry_with_only_a_name_gets_the_defaults_of_its_model(hub: LocalHub, tmp_path: Path) -> None:
    make_tiny("z-image-turbo", tmp_path / "hub" / "Tongyi-MAI/Z-Image-Turbo")
    hub.add("owner/z-image-turbo", tmp_path / "hub" / "Tongyi-MAI/Z-Image-Turbo")
    client = Hub(hub.url, tmp_path / "cache", "none")
    spec = parse_model("mine", {"name": "owner/z-image-turbo"})
    complete = download.complete_spec(spec, hub=client)
    assert (complete.num_inference_steps, complete.guidance_scale, complete.scheduler) == (8, 0.0, "Model default")
    assert complete.unset == ()
    given = parse_model("mine", {"name": "owner/z-image-turbo", "num_inference_steps": 5})
    assert download.complete_spec(given, hub=client).num_inference_steps == 5
    assert not client.cache.exists(), "nothing is downloaded"
    plan = download.plan_download(complete, hub=client)
    download.download(complete, plan, lambda _: None, threading.Event(), hub=client)
    hub.requests.clear()
    assert download.complete_spec(spec, hub=client).num_inference_steps == 8
    assert hub.requests == []


def test_a_licence_with_conditions_is_agreed_to_before_the_download(hub: LocalHub, tmp_path: Path) -> None:
    sd_turbo(tmp_path / "hub")
    hub.add("stabilityai/sd-turbo", tmp_path / "hub" / "stabilityai/sd-turbo")
    client = Hub(hub.url, tmp_path / "cache", "none")
    settings = Settings(data_dir=tmp_path / "data", cache_dir=tmp_path / "own", engine="torch")
    request = GenerationRequest("a fox", model_key="sd-turbo", width=256, height=256)
    with Studio(settings, hub=client) as studio:
        for refused in (lambda: studio.submit(request), lambda: studio.download_model("sd-turbo")):
            with pytest.raises(ConsentRequired, match=r"https://stability\.ai/license"):
                refused()
        assert hub.requests == []
        studio.accept_licence("sd-turbo")
        studio.download_model("sd-turbo").wait(60)
        assert studio.model_status("sd-turbo").location == "disk"
    with Studio(settings, hub=client) as studio:
        assert studio.licences.accepts(MODELS["sd-turbo"]), "kept for the next start"
