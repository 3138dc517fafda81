"""Each family of models as on the Hub, with tiny random weights: every task, and what the record says."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from canvas.catalog import ModelSpec, parse_model
from canvas.engine import preview, step_callback
from canvas.engine.device import Device
from canvas.engine.generate import generate
from canvas.engine.img2img import pipeline_task
from canvas.engine.lora_adapters import applied_loras
from canvas.engine.pipeline_cache import PipelineCache
from canvas.errors import GenerationCancelled, GenerationFailed, InvalidInput
from canvas.models import download
from canvas.models.capabilities import adapt_spec, capabilities_of, read_folder
from canvas.models.hub_client import Hub
from canvas.models.loras import read_lora
from canvas.request import GeneratedImage, GenerationRequest, ProgressUpdate
from tests.conftest import slow_params
from tests.hub_server import LocalHub
from tests.tiny_families import BUILDERS, make_tiny

SIDE = 64
QUICK_FAMILIES = ("flux2-klein", "sd15", "sdxl")
FAMILIES = [*QUICK_FAMILIES, *slow_params(*sorted(BUILDERS.keys() - set(QUICK_FAMILIES)))]


class Loaded:
    """A family, downloaded from a local Hub and loaded in one dtype."""

    def __init__(self, family: str, folder: Path, cache: Path, dtype: str) -> None:
        self.family = family
        repo_id = f"tiny/{family}"
        server = LocalHub()
        try:
            server.add(repo_id, make_tiny(family, folder))
            hub = Hub(endpoint=server.url, cache_dir=cache)
            self.spec = self._spec(repo_id, folder)
            plan = download.plan_download(self.spec, hub=hub)
            result = download.download(self.spec, plan, lambda _: None, threading.Event(), hub=hub)
        finally:
            server.close()
        self.local = result.local
        self.capabilities = read_folder(self.local.path, repo_id)
        self.spec = adapt_spec(self.spec, self.capabilities)
        self.devices = {dtype: Device("cpu", dtype, "") for dtype in ("float32", "bfloat16")}
        self.caches = {name: PipelineCache(device, 10**10) for name, device in self.devices.items()}

    def _spec(self, repo_id: str, folder: Path) -> ModelSpec:
        entry = {"name": repo_id, "size": "1 MB", "speed": "Fast", "quality": "None", "type": "auto"}
        return parse_model(self.family, {**entry, "resolution": SIDE, "num_inference_steps": 3, "guidance_scale": 3.0})

    def pipeline(self, task: str = "text_to_image", dtype: str = "float32") -> Any:
        cache = self.caches[dtype]
        base = cache.get(self.spec, self.local)
        request = (
            replace(self.request(), task=task, image="x.png", mask_image="y.png")
            if task != "text_to_image"
            else self.request()
        )
        return cache.get(self.spec, self.local, pipeline_task(base, request))

    def request(self, **fields: Any) -> GenerationRequest:
        values = {"prompt": "a red fox in the snow", "seed": 5, "model_key": self.spec.key, **fields}
        return GenerationRequest(**values).with_defaults(self.spec)

    def generate(
        self, dtype: str = "float32", *, images: Any = None, on_step: Any = None, cancelled: Any = None, **fields: Any
    ) -> GeneratedImage:
        request = self.request(**fields)
        [image] = generate(
            self.pipeline(request.task, dtype),
            request,
            spec=self.spec,
            device=self.devices[dtype],
            on_step=on_step or (lambda _: None),
            cancelled=cancelled or threading.Event(),
            images=images,
        )
        return image


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    folder = tmp_path_factory.mktemp("family")
    yield Loaded(request.param, folder / request.param, folder / "cache", "float32")


def pixels(image: GeneratedImage) -> Any:
    assert image.image is not None
    return np.asarray(image.image, int)


@pytest.fixture
def inputs() -> dict[str, Any]:
    image = Image.effect_noise((SIDE, SIDE), 60).convert("RGB")
    mask = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(mask).rectangle((8, 8, SIDE // 2, SIDE // 2), fill=255)
    return {"image": image, "mask_image": mask}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_text_to_image_is_repeatable(loaded: Loaded, dtype: str) -> None:
    updates: list[ProgressUpdate] = []
    first = loaded.generate(dtype, on_step=updates.append)
    assert first.image is not None and first.image.size == (SIDE, SIDE)
    assert pixels(first).std() > 0
    assert first.dtype == dtype
    assert [update.step for update in updates] == list(range(1, updates[0].num_steps + 1))
    assert (pixels(loaded.generate(dtype)) == pixels(first)).all()
    assert (pixels(loaded.generate(dtype, seed=6)) != pixels(first)).any()


def test_sizes_are_those_of_the_capabilities(loaded: Loaded) -> None:
    assert loaded.capabilities.size_step == capabilities_of(loaded.pipeline()).size_step == diffusers_step(loaded)
    assert loaded.capabilities.resolution in (SIDE, 512, 1024)
    image = loaded.generate(width=SIDE, height=SIDE + 32)
    assert image.image is not None and image.image.size == (SIDE, SIDE + 32)


def diffusers_step(loaded: Loaded) -> int:
    """The step to which the pipeline's own code rounds: a latent, or a patch of latents."""
    pipeline = loaded.pipeline()
    transformer = getattr(pipeline, "transformer", None)
    patch = getattr(transformer.config, "patch_size", None) or 1 if transformer is not None else 1
    patch = max(patch) if isinstance(patch, list | tuple) else patch
    processor = pipeline.image_processor.config
    return math.lcm(8, pipeline.vae_scale_factor * patch, getattr(processor, "vae_scale_factor", 1))


def test_image_to_image(loaded: Loaded, inputs: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"task": "image_to_image", "image": "x.png", "strength": 0.5, "num_inference_steps": 4}
    if "image_to_image" not in loaded.capabilities.pipelines:
        with pytest.raises(InvalidInput, match="supports text to image only"):
            loaded.generate(images=inputs, **fields)
        return
    updates: list[ProgressUpdate] = []
    image = loaded.generate(images=inputs, on_step=updates.append, **fields)
    assert (pixels(image) != np.asarray(inputs["image"], int)).any()
    assert len(updates) == image.request.step_counts[1]  # the record has what was computed


def test_inpaint(loaded: Loaded, inputs: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"task": "inpaint", "image": "x.png", "mask_image": "y.png", "mask_blur": 0}
    if not {"inpaint", "image_to_image"} & loaded.capabilities.pipelines.keys():
        with pytest.raises(InvalidInput, match="supports text to image only"):
            loaded.generate(images=inputs, **fields)
        return
    if "inpaint" not in loaded.capabilities.pipelines and not hasattr(loaded.pipeline(), "unet"):
        with pytest.raises(InvalidInput, match="does not support inpainting"):
            loaded.generate(images=inputs, **fields)
        return
    before = np.asarray(inputs["image"], int)
    outside = np.asarray(inputs["mask_image"]) == 0
    after = pixels(loaded.generate(images=inputs, **fields))
    assert (after[outside] == before[outside]).all()
    assert (after[~outside] != before[~outside]).any()


def test_previews_from_the_second_step(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_callback, "PREVIEW_DELAY", 0)
    monkeypatch.setattr(step_callback, "PREVIEW_INTERVAL", 0)
    monkeypatch.setattr(step_callback, "PREVIEW_SHARE", 1e9)
    updates: list[ProgressUpdate] = []
    loaded.generate(num_inference_steps=4, on_step=updates.append)
    shown = [update.preview for update in updates[1:-1]]
    assert shown and all(shown)
    for image in shown:
        assert max(image.size) == preview.PREVIEW_SIDE
        assert np.asarray(image).std() > 0


def test_stops_within_a_step(loaded: Loaded) -> None:
    cancelled = threading.Event()
    steps: list[int] = []

    def stop(update: ProgressUpdate) -> None:
        steps.append(update.step)
        cancelled.set()

    with pytest.raises(GenerationCancelled):
        loaded.generate(num_inference_steps=4, on_step=stop, cancelled=cancelled)
    assert steps == [1]


def test_nan_is_an_error(loaded: Loaded) -> None:
    import torch

    pipeline = loaded.pipeline()
    denoiser = getattr(pipeline, "unet", None) or pipeline.transformer
    parameter = max(denoiser.parameters(), key=lambda each: each.numel())
    kept = parameter.detach().clone()
    with torch.no_grad():
        parameter.fill_(float("nan"))
    try:
        with pytest.raises(GenerationFailed, match="NaN"):
            loaded.generate()
    finally:
        with torch.no_grad():
            parameter.copy_(kept)


def test_the_record_says_what_acted(loaded: Loaded) -> None:
    plain = loaded.generate()
    capabilities = loaded.capabilities
    chosen: dict[str, dict[str, Any]] = {
        "negative_prompt": {"negative_prompt": "house"},
        "guidance": {"guidance_scale": 6.0},
        "variation_seed": {"variation_seed": 3, "variation_strength": 0.5},
    }
    for effect, fields in chosen.items():
        image = loaded.generate(**fields)
        assert (pixels(image) != pixels(plain)).any() == getattr(capabilities, effect), effect
        assert bool(image.notes) != getattr(capabilities, effect), image.notes
        kept = all(getattr(image.request, name) == value for name, value in fields.items())
        assert kept == getattr(capabilities, effect), effect
    image = loaded.generate(scheduler="Euler a")
    if "Euler a" in capabilities.schedulers:
        assert (pixels(image) != pixels(plain)).any() and not image.notes
    else:
        assert (pixels(image) == pixels(plain)).all()
        assert image.request.scheduler == capabilities.schedulers[0]
        assert "Euler a" in image.notes[0]


def test_a_lora_acts_where_diffusers_loads_it(loaded: Loaded, tmp_path: Path) -> None:
    if not loaded.capabilities.lora_family:
        assert not loaded.capabilities.family.lora
        return
    plain = loaded.generate()
    pipeline = loaded.pipeline()
    lora = read_lora(save_lora(pipeline, tmp_path))
    with applied_loras(pipeline, [(lora, 1.0)]):
        changed = loaded.generate()
    assert (pixels(changed) != pixels(plain)).any()
    assert (pixels(loaded.generate()) == pixels(plain)).all()


def test_no_parameter_requires_a_gradient(loaded: Loaded) -> None:
    pipeline = loaded.pipeline()
    denoiser = getattr(pipeline, "unet", None) or pipeline.transformer
    assert not any(parameter.requires_grad for parameter in denoiser.parameters())


def save_lora(pipeline: Any, folder: Path) -> Path:
    """A LoRA with random weights for the attention of the denoiser, as diffusers' trainers save it."""
    import torch
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    name = "unet" if hasattr(pipeline, "unet") else "transformer"
    denoiser = getattr(pipeline, name)
    targets = r".*attn2?\.to_q" if name == "unet" else r".*\.(to_q|to_k)"
    denoiser.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=targets), "test")
    torch.manual_seed(0)
    layers = {
        key: torch.randn(tensor.shape)
        for key, tensor in get_peft_model_state_dict(denoiser, adapter_name="test").items()
    }
    denoiser.delete_adapters("test")
    type(pipeline).save_lora_weights(folder, **{f"{name}_lora_layers": layers})
    return folder / "pytorch_lora_weights.safetensors"
