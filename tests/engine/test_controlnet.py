"""ControlNets with random weights on tiny models of three families, compared with diffusers' own pipelines."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image, ImageChops

from canvas.catalog import ModelSpec
from canvas.engine.control_detectors import detect
from canvas.engine.controlnet import ControlInput
from canvas.engine.device import Device
from canvas.engine.generate import GenerationInputs
from canvas.engine.img2img import pipeline_task
from canvas.engine.pipeline_cache import PipelineCache
from canvas.engine.step_callback import build_scheduler
from canvas.engine.tasks import run_task
from canvas.engine.upscale import LoadedPipeline
from canvas.errors import GenerationCancelled, InvalidInput, OutOfMemory
from canvas.guidance import ControlImage
from canvas.models.download import LocalModel
from canvas.request import GeneratedImage, GenerationRequest
from tests.conftest import make_spec, slow_params
from tests.tiny_families import make_tiny
from tests.tiny_guidance import make_photo, make_tiny_controlnet, make_tiny_flux_controlnet
from tests.tiny_pipeline import write_announced_terabyte

CPU = Device("cpu", "float32", "test")
DIFFUSERS_PIPELINES = {"sd15": "StableDiffusionControlNetPipeline", "sdxl": "StableDiffusionXLControlNetPipeline"}
ITEM = ControlImage("control.png", "canny", detect=True)
PHOTO = make_photo()


class Model(NamedTuple):
    """A tiny model with a ControlNet."""

    family: str
    spec: ModelSpec
    cache: PipelineCache
    folder: Path

    def generate(self, *items: ControlImage, images: dict[str, Image.Image] | None = None, **fields: Any) -> Any:
        """The image of a request with these control images, all of PHOTO; with `run_task` as a backend calls it."""
        names = {name: f"{name}.png" for name in images or {}}
        defaults = {"width": 64, "height": 64, "num_inference_steps": 4, "seed": 3, "model_key": self.spec.key}
        request = GenerationRequest("a fox", control_images=items, **{**defaults, **names, **fields})  # type: ignore[arg-type]
        request = request.with_defaults(self.spec)
        local = LocalModel(Path(self.spec.name), "")
        pipeline = self.cache.get(self.spec, local)
        pipeline = self.cache.get(self.spec, local, pipeline_task(pipeline, request), request.preset)
        inputs = tuple(ControlInput(item, PHOTO, self.folder) for item in request.control_images)
        nets = tuple(self.cache.get_controlnet(self.folder, pipeline) for _ in inputs)
        loaded = LoadedPipeline(pipeline, self.spec, CPU, "", nets)
        given = GenerationInputs(images or {}, controls=inputs)
        [image] = run_task(request, given, loaded, lambda step: None, threading.Event())
        return image


@pytest.fixture(scope="module", params=["sd15", *slow_params("sdxl", "flux-dev")])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp(request.param)
    spec = make_spec(str(make_tiny(request.param, folder / "model")), request.param)
    cache = PipelineCache(CPU)
    pipeline = cache.get(spec, LocalModel(Path(spec.name), ""))
    make = make_tiny_flux_controlnet if "flux" in request.param else make_tiny_controlnet
    return Model(request.param, spec, cache, make(pipeline, folder / "net"))


def difference(first: GeneratedImage, second: GeneratedImage) -> float:
    """The mean difference of the pixels, of 255."""
    assert first.image is not None
    assert second.image is not None
    return float(np.asarray(ImageChops.difference(first.image, second.image)).mean())


def test_image_equals_that_of_diffusers(model: Model) -> None:
    if model.family not in DIFFUSERS_PIPELINES:
        pytest.skip("FLUX.1's pipeline draws the control latents at random")
    image = model.generate(ITEM)
    base = model.cache.get(model.spec, LocalModel(Path(model.spec.name), ""))
    options = {"requires_safety_checker": False} if model.family == "sd15" else {}
    net = model.cache.get_controlnet(model.folder, base)
    pipeline = getattr(diffusers, DIFFUSERS_PIPELINES[model.family])(**base.components, controlnet=net, **options)
    pipeline.set_progress_bar_config(disable=True)
    request = image.request
    pipeline.scheduler = build_scheduler(base.scheduler.config, request.scheduler, request.num_inference_steps)
    expected = pipeline(
        prompt=image.enhanced_prompt,
        negative_prompt="",
        image=detect("canny", PHOTO),
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        width=64,
        height=64,
        generator=torch.Generator("cpu").manual_seed(request.seed),
    ).images[0]
    assert np.abs(np.asarray(expected).astype(int) - np.asarray(image.image).astype(int)).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("task", ["text_to_image", "image_to_image", "inpaint"])
def test_control_acts_in_every_task_and_the_same_request_gives_the_same_pixels(model: Model, task: str) -> None:
    mask = Image.new("L", PHOTO.size)
    mask.paste(255, (8, 8, 56, 56))
    images = {"image": PHOTO, "mask_image": mask} if task == "inpaint" else {"image": PHOTO}
    fields: dict[str, Any] = {"task": task, "images": {} if task == "text_to_image" else images}
    first, again = model.generate(ITEM, **fields), model.generate(ITEM, **fields)
    without = model.generate(**fields)
    assert difference(first, again) == 0
    assert difference(first, without) > 0.5
    assert difference(model.generate(ITEM._replace(weight=0.0), **fields), without) == 0, "and nothing is left behind"


def test_start_and_end_limit_the_steps(model: Model) -> None:
    whole, without = model.generate(ITEM), model.generate()
    early, late = model.generate(ITEM._replace(end=0.5)), model.generate(ITEM._replace(start=0.5))
    assert difference(early, without) > 0
    assert difference(late, without) > 0
    assert difference(early, whole) > 0
    assert difference(early, late) > 0
    assert difference(model.generate(ITEM._replace(start=0.9)), without) == 0, "a part of a step does not count"


def test_several_control_images_add_up(model: Model) -> None:
    twice = model.generate(ITEM, ITEM)
    assert difference(twice, model.generate(ITEM)) > 0
    assert difference(twice, model.generate(ITEM._replace(weight=2.0))) < 1, "the same as twice the weight"


def test_balanced_reuses_residuals_in_cached_steps(model: Model) -> None:
    if model.family == "flux-dev":
        pytest.skip("DeepCache is for UNets")
    calls = []
    base = model.cache.get(model.spec, LocalModel(Path(model.spec.name), ""))
    net = model.cache.get_controlnet(model.folder, base)
    handle = net.register_forward_hook(lambda *_: calls.append(1))
    fields = {"preset": "balanced", "num_inference_steps": 12}
    try:
        controlled = model.generate(ITEM, **fields)
    finally:
        handle.remove()
    assert 0 < len(calls) < 12, "a cached step computes no ControlNet"
    assert difference(controlled, model.generate(**fields)) > 0.5


@pytest.mark.slow
def test_upscaling_computes_the_control_by_tiles(model: Model) -> None:
    if model.family == "flux-dev":
        pytest.skip("upscaling with detail needs a UNet")
    sizes = []
    base = model.cache.get(model.spec, LocalModel(Path(model.spec.name), ""))
    net = model.cache.get_controlnet(model.folder, base)
    handle = net.register_forward_pre_hook(lambda _, args: sizes.append(tuple(args[0].shape[-2:])))
    item = ITEM._replace(image="image.png", kind="tile", detect=False)
    fields: dict[str, Any] = {"task": "upscale", "upscaler": "detail", "images": {"image": PHOTO}, "strength": 0.5}
    fields |= {"width": 128, "height": 128}
    try:
        upscaled = model.generate(item, **fields)
    finally:
        handle.remove()
    assert upscaled.image.size == (128, 128)
    assert set(sizes) == {(8, 8)}
    assert difference(upscaled, model.generate(**fields)) > 0.01


def test_stopping_ends_within_a_step(model: Model) -> None:
    cancelled = threading.Event()
    pipeline = model.cache.get(model.spec, LocalModel(Path(model.spec.name), ""))
    request = GenerationRequest("a fox", control_images=(ITEM,), num_inference_steps=8, width=64, height=64, seed=1)
    request = request.with_defaults(model.spec)
    inputs = GenerationInputs(controls=(ControlInput(ITEM, PHOTO, model.folder),))
    net = model.cache.get_controlnet(model.folder, pipeline)
    steps = []

    def stop(step: Any) -> None:
        steps.append(step)
        cancelled.set()

    with pytest.raises(GenerationCancelled):
        list(run_task(request, inputs, LoadedPipeline(pipeline, model.spec, CPU, "", (net,)), stop, cancelled))
    assert len(steps) == 1
    assert difference(model.generate(), model.generate(ITEM._replace(weight=0.0))) == 0, "nothing is left behind"


def test_controlnet_of_another_family_is_a_sentence(model: Model, tmp_path: Path) -> None:
    other = "sdxl" if model.family == "sd15" else "sd15"
    spec = make_spec(str(make_tiny(other, tmp_path / "model")), other)
    pipeline = PipelineCache(CPU).get(spec, LocalModel(Path(spec.name), ""))
    wrong = model._replace(folder=make_tiny_controlnet(pipeline, tmp_path / "net"))
    with pytest.raises(InvalidInput, match=r"does not fit this model\. Choose one for ") as caught:
        wrong.generate(ITEM._replace(model="mine"))
    assert caught.value.field == "control_images"


def test_other_models_are_no_controlnets(model: Model) -> None:
    part = "transformer" if model.family == "flux-dev" else "unet"
    wrong = model._replace(folder=Path(model.spec.name) / part)
    with pytest.raises(InvalidInput, match=r"which this program does not run\. It runs ControlNetModel, Flux"):
        wrong.generate(ITEM)


def test_controlnet_that_does_not_fit_is_refused_before_loading(model: Model, tmp_path: Path) -> None:
    shutil.copy(model.folder / "config.json", tmp_path)
    write_announced_terabyte(tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(OutOfMemory, match=r"ControlNet needs 1099\.\d GB of memory, but only"):
        model._replace(folder=tmp_path).generate(ITEM)


def test_controlnets_count_in_the_memory_budget(model: Model) -> None:
    model.generate(ITEM)
    sizes = {name: size for name, size in model.cache.loaded().items() if name.startswith("controlnet ")}
    [size] = [size for name, size in sizes.items() if str(model.folder) in name]
    file = (model.folder / "diffusion_pytorch_model.safetensors").stat().st_size
    assert 0.8 * file < size <= file, "all but the header"
