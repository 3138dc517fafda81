"""Every task and a LoRA through the studio, with each layout of a pipeline."""

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
from canvas.engine import super_resolution
from canvas.settings import Settings
from tests.conftest import make_spec
from tests.models.test_loras import make_lora
from tests.tiny_xl import make_tiny_xl

XL = {"size": "1 MB", "speed": "Fast", "quality": "None", "resolution": 64, "scheduler": "Euler"}


@pytest.fixture(params=["starter", "tiny", "xl"])
def ready(
    request: pytest.FixtureRequest, settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Studio, str]]:
    with Studio(settings) as studio:
        if request.param == "tiny":
            studio.models["tiny-sd"] = make_spec(
                str(request.getfixturevalue("tiny_folder")), "tiny-sd"
            )
        if request.param == "xl":
            folder = make_tiny_xl(tmp_path_factory.mktemp("xl"))
            studio.models["tiny-xl"] = {**XL, "name": str(folder), "type": "stable_diffusion_xl"}
        yield studio, {"tiny": "tiny-sd", "xl": "tiny-xl"}.get(request.param, "starter")


def pixels(studio: Studio, name: str) -> Any:
    with Image.open(studio.image_path(name)) as picture:
        return np.asarray(picture.convert("RGB"), int)


def test_every_task_and_a_lora(ready: tuple[Studio, str], settings: Settings) -> None:
    from diffusers import UNet2DConditionModel

    studio, model_key = ready
    side = studio.models[model_key].resolution

    def make(**fields: Any) -> Any:
        given = {"model_key": model_key, "seed": 7, "num_inference_steps": 4, **fields}
        [made] = studio.generate(GenerationRequest("a fox in the snow", **given))
        assert made.task == given.get("task", "text_to_image")
        return pixels(studio, made.filename)

    picture = Image.effect_noise((side, side), 60).convert("RGB")
    before = np.asarray(picture, int)
    mask = Image.new("L", (side, side))
    ImageDraw.Draw(mask).rectangle((8, 8, side // 2, side // 2), fill=255)
    outside = np.asarray(mask) == 0
    name = studio.inputs.upload(picture).name
    mask_name = studio.inputs.upload(mask, "mask_image").name

    plain = make()
    assert (make(task="image_to_image", image=name, strength=0.5) != before).any()
    painted = make(task="inpaint", image=name, mask_image=mask_name)
    assert (painted[outside] == before[outside]).all()
    assert (painted[~outside] != before[~outside]).any()
    larger = make(task="inpaint", image=name, outpaint=(0, 0, 16, 8))
    assert larger.shape == (side + 8, side + 16, 3)
    assert (larger[:side, :side] == before).all()
    detailed = make(task="upscale", image=name, upscaler="detail", strength=0.3)
    assert detailed.shape == (side * 2, side * 2, 3)
    assert (make(variation_seed=3, variation_strength=0.5) != plain).any()
    assert (make(prompt_weighting=True) >= 0).all()

    settings.loras_dir.mkdir(parents=True)
    unet = UNet2DConditionModel.from_pretrained(studio.models[model_key].name, subfolder="unet")
    for seed, lora in enumerate(("snow", "rain")):
        make_lora(settings.loras_dir / f"{lora}.safetensors", unet, "kohya", seed)
    worn = make(loras=(("snow", 1), ("rain", 0.5)))
    assert (worn != plain).any()
    assert (worn == make(loras=(("rain", 0.5), ("snow", 1)))).all()
    assert (make(loras=(("snow", 0),)) == plain).all()


MEASURE = """
import resource, sys
from pathlib import Path
from PIL import Image
from canvas import GenerationRequest, Studio
from canvas.settings import Settings
folder, upscaler = sys.argv[1:]
picture = Image.radial_gradient("L").resize((1024, 1024)).convert("RGB")
with Studio(Settings(data_dir=Path(folder), device="cpu", dtype="float32")) as studio:
    fields = {"image": studio.shelf.hand_in(picture).name, "scale": 4, "upscaler": upscaler}
    [made] = studio.generate(GenerationRequest("a fox", task="upscale", seed=1, **fields))
    with Image.open(studio.picture_path(made.filename)) as enlarged:
        assert enlarged.size == (4096, 4096)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("upscaler", ["lanczos", "illustration", "photo", "detail"])
def test_four_times_1024_stays_under_3_gb(upscaler: str, tmp_path: Path) -> None:
    if upscaler in super_resolution.NETWORKS and not super_resolution.is_ncnn_available():
        pytest.skip("the optional packages are not installed")
    command = [sys.executable, "-c", MEASURE, str(tmp_path), upscaler]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 3e9
