"""Every task and a LoRA through the studio, with each kind of pipeline."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from canvas import GenerationRequest, Studio
from canvas.engine import upscale
from canvas.settings import Settings
from tests.conftest import make_spec, slow_params
from tests.models.test_loras import make_lora
from tests.tiny_xl import make_tiny_xl

XL = {"size": "1 MB", "speed": "Fast", "quality": "None", "resolution": 64, "scheduler": "Euler"}


@pytest.fixture(params=["tiny torch", *slow_params("starter torch", "xl torch", "starter openvino", "xl openvino")])
def studio_and_model(
    request: pytest.FixtureRequest, settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Studio, str]]:
    model, engine = request.param.split()
    with Studio(Settings(**{**settings.model_dump(), "engine": engine})) as studio:
        if model == "tiny":
            studio.models["tiny-sd"] = make_spec(str(request.getfixturevalue("tiny_folder")), "tiny-sd")
        if model == "xl":
            folder = make_tiny_xl(tmp_path_factory.mktemp("xl"))
            studio.models["tiny-xl"] = {**XL, "name": str(folder), "type": "stable_diffusion_xl"}
        yield studio, {"tiny": "tiny-sd", "xl": "tiny-xl"}.get(model, "starter")


def pixels(studio: Studio, name: str) -> Any:
    with Image.open(studio.image_path(name)) as image:
        return np.asarray(image.convert("RGB"), int)


def test_every_task_and_a_lora(studio_and_model: tuple[Studio, str], settings: Settings) -> None:
    from diffusers import UNet2DConditionModel

    studio, model_key = studio_and_model
    side = studio.models[model_key].resolution

    def generate(**fields: Any) -> Any:
        fields = {"model_key": model_key, "seed": 7, "num_inference_steps": 4, **fields}
        [image] = studio.generate(GenerationRequest("a fox in the snow", **fields))
        assert image.task == fields.get("task", "text_to_image")
        return pixels(studio, image.filename)

    image = Image.effect_noise((side, side), 60).convert("RGB")
    before = np.asarray(image, int)
    mask = Image.new("L", (side, side))
    ImageDraw.Draw(mask).rectangle((8, 8, side // 2, side // 2), fill=255)
    outside = np.asarray(mask) == 0
    name = studio.inputs.upload(image).name
    mask_name = studio.inputs.upload(mask, "mask_image").name

    plain = generate()
    assert (generate(task="image_to_image", image=name, strength=0.5) != before).any()
    inpainted = generate(task="inpaint", image=name, mask_image=mask_name)
    assert (inpainted[outside] == before[outside]).all()
    assert (inpainted[~outside] != before[~outside]).any()
    outpainted = generate(task="inpaint", image=name, outpaint=(0, 0, 16, 8))
    assert outpainted.shape == (side + 8, side + 16, 3)
    assert (outpainted[:side, :side] == before).all()
    upscaled = generate(task="upscale", image=name, upscaler="detail", strength=0.3)
    assert upscaled.shape == (side * 2, side * 2, 3)
    assert (generate(variation_seed=3, variation_strength=0.5) != plain).any()
    assert (generate(prompt_weighting=True) >= 0).all()

    settings.loras_dir.mkdir(parents=True)
    unet = UNet2DConditionModel.from_pretrained(studio.models[model_key].name, subfolder="unet")
    for seed, lora in enumerate(("snow", "rain")):
        make_lora(settings.loras_dir / f"{lora}.safetensors", unet, "kohya", seed)
    applied = generate(loras=(("snow", 1), ("rain", 0.5)))
    assert (applied != plain).any()
    assert (applied == generate(loras=(("rain", 0.5), ("snow", 1)))).all()
    assert (generate(loras=(("snow", 0),)) == plain).all()


MEASURE = """
import resource, sys
from pathlib import Path
from PIL import Image
from canvas import GenerationRequest, Studio
from canvas.settings import Settings
folder, upscaler = sys.argv[1:]
image = Image.radial_gradient("L").resize((1024, 1024)).convert("RGB")
with Studio(Settings(data_dir=Path(folder), device="cpu", dtype="float32", engine="torch")) as studio:
    fields = {"image": studio.inputs.upload(image).name, "scale": 4, "upscaler": upscaler}
    [result] = studio.generate(GenerationRequest("a fox", task="upscale", seed=1, **fields))
    with Image.open(studio.image_path(result.filename)) as upscaled:
        assert upscaled.size == (4096, 4096)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("upscaler", ["lanczos", "illustration", "photo", "detail"])
def test_upscaling_1024_four_times_uses_less_than_3_gb(upscaler: str, tmp_path: Path) -> None:
    if upscaler in upscale.SUPER_RESOLUTION_MODELS and not upscale.is_ncnn_available():
        pytest.skip("the optional packages are not installed")
    command = [sys.executable, "-c", MEASURE, str(tmp_path), upscaler]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 3e9
