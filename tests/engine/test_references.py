"""Reference images: IP-Adapters with random weights on tiny models, and FLUX.2-klein, which takes them itself."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageChops

from canvas.backends.base import GenerationTask
from canvas.backends.local import LocalBackend
from canvas.engine.device import Device
from canvas.engine.generate import GenerationInputs
from canvas.engine.pipeline_cache import PipelineCache
from canvas.engine.references import ReferenceInput, applied_references, reference_bytes
from canvas.engine.tasks import run_task
from canvas.engine.upscale import LoadedPipeline
from canvas.errors import InvalidInput, OutOfMemory
from canvas.guidance import ReferenceImage
from canvas.models.download import LocalModel
from canvas.request import GenerationRequest
from canvas.settings import Settings
from tests.conftest import make_spec, slow_params
from tests.tiny_families import make_tiny
from tests.tiny_guidance import make_drawing, make_photo, make_tiny_adapter, make_tiny_encoder
from tests.tiny_pipeline import write_announced_terabyte

CPU = Device("cpu", "float32", "test")
PHOTO, DRAWING = make_photo(), make_drawing()


class Model:
    """A tiny model of a family with an adapter, if it uses one."""

    def __init__(self, family: str, folder: Path) -> None:
        self.spec = make_spec(str(make_tiny(family, folder / "model")), family)
        self.cache = PipelineCache(CPU)
        self.local = LocalModel(Path(self.spec.name), "")
        self.file = self.encoder = None
        if hasattr(self.pipeline(), "unet"):
            self.encoder = make_tiny_encoder(folder / "encoder")
            self.file = make_tiny_adapter(self.pipeline().unet, folder / "adapter.safetensors")

    def pipeline(self, task: str = "text_to_image") -> Any:
        return self.cache.get(self.spec, self.local, task)

    def inputs(self, *images: Image.Image, **fields: Any) -> tuple[ReferenceInput, ...]:
        item = ReferenceImage("r.png", **fields)
        return tuple(ReferenceInput(item, image, self.file, self.encoder) for image in images)

    def generate(
        self, *images: Image.Image, task: str = "text_to_image", preset: str = "quality", **fields: Any
    ) -> Any:
        given = {"image": PHOTO} if task != "text_to_image" else {}
        request = GenerationRequest(
            "a fox",
            task=task,
            preset=preset,
            image="i.png" if given else None,
            upscaler="detail",
            **{"width": 64, "height": 64, "seed": 3, "num_inference_steps": 4, "model_key": self.spec.key},
        ).with_defaults(self.spec)
        pipeline = self.pipeline("text_to_image" if task == "text_to_image" else "image_to_image")
        loaded = LoadedPipeline(pipeline, self.spec, CPU)
        inputs = GenerationInputs(given, references=self.inputs(*images, **fields))
        [image] = run_task(request, inputs, loaded, lambda step: None, threading.Event())
        return image


@pytest.fixture(scope="module", params=["sd15", *slow_params("sdxl", "flux2-klein")])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(request.param, tmp_path_factory.mktemp(request.param))


def difference(first: Any, second: Any) -> float:
    return float(np.asarray(ImageChops.difference(first.image, second.image)).mean())


@pytest.mark.slow
@pytest.mark.parametrize("task", ["text_to_image", "image_to_image"])
def test_references_act_and_leave_nothing_behind(model: Model, task: str) -> None:
    without = model.generate(task=task)
    first, again = model.generate(PHOTO, task=task), model.generate(PHOTO, task=task)
    assert difference(first, again) == 0
    assert difference(first, without) > 0.005
    assert difference(first, model.generate(DRAWING, task=task)) > 0.005
    assert difference(first, model.generate(PHOTO, DRAWING, task=task)) > 0.005, "several"
    assert difference(without, model.generate(task=task)) == 0


def test_references_act_on_the_upscaler_detail(model: Model) -> None:
    if model.file is None:
        pytest.skip("the upscaler is for UNets")
    without = model.generate(task="upscale")
    assert difference(model.generate(PHOTO, task="upscale"), without) > 0.005
    assert difference(model.generate(task="upscale"), without) == 0


def test_weight_of_an_adapter(model: Model) -> None:
    image, without = model.generate(PHOTO, weight=0.0), model.generate()
    if model.file is None:
        assert image.notes == ("Weight and kind of reference images have no effect on this model.",)
    else:
        assert difference(image, without) < 0.5
        assert difference(model.generate(PHOTO, weight=2.0), without) > difference(image, without)


def test_balanced_has_the_adapter_in_all_steps(model: Model) -> None:
    if model.file is None:
        pytest.skip("DeepCache is for UNets")
    assert difference(model.generate(PHOTO, preset="balanced"), model.generate(preset="balanced")) > 0.005


def test_models_without_references_and_wrong_adapters_are_sentences(model: Model, tmp_path: Path) -> None:
    if model.file is None:
        flux = PipelineCache(CPU).get(
            make_spec(str(make_tiny("flux-dev", tmp_path / "flux")), "flux"), LocalModel(tmp_path / "flux", "")
        )
        with (
            pytest.raises(InvalidInput, match="This model takes no reference images"),
            applied_references(flux, model.inputs(PHOTO), guided=True, has_mask=False),
        ):
            pass
        with pytest.raises(InvalidInput, match=r"without the IP-Adapter x\. Leave the name out"):
            model.generate(PHOTO, model="x")
        return
    other = Model("sdxl" if model.spec.key == "sd15" else "sd15", tmp_path)
    processors = {name: type(each) for name, each in model.pipeline().unet.attn_processors.items()}
    with (
        pytest.raises(InvalidInput, match="does not fit this model"),
        applied_references(model.pipeline(), other.inputs(PHOTO, model="x"), guided=True, has_mask=False),
    ):
        pass
    assert {name: type(each) for name, each in model.pipeline().unet.attn_processors.items()} == processors


def test_memory_of_the_encoder_and_adapters_is_counted(model: Model) -> None:
    if model.file is None:
        assert reference_bytes(model.inputs(PHOTO), model.pipeline()) == 0
        return
    files = [model.file, model.file, *(model.encoder or model.file).glob("*.safetensors")]
    counted = reference_bytes(model.inputs(PHOTO, DRAWING), model.pipeline())
    assert 0.8 * sum(file.stat().st_size for file in files) < counted <= sum(file.stat().st_size for file in files)


def test_adapter_that_does_not_fit_is_refused_before_loading(model: Model, tmp_path: Path, settings: Settings) -> None:
    if model.file is None:
        pytest.skip("the model takes references itself")
    write_announced_terabyte(tmp_path / "adapter.safetensors")
    reference = ReferenceInput(ReferenceImage("r.png"), PHOTO, tmp_path / "adapter.safetensors", model.encoder)
    request = GenerationRequest("a fox", model_key=model.spec.key, num_inference_steps=1, width=64, height=64)
    task = GenerationTask(
        request.with_defaults(model.spec), model.spec, model.local, GenerationInputs(references=(reference,))
    )
    with (
        closing(LocalBackend(settings, lambda event: None)) as backend,
        pytest.raises(OutOfMemory, match="IP-Adapter needs 1099"),
    ):
        list(backend.generate(task, lambda **_: None, threading.Event()))
