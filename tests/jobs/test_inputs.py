"""More than a prompt, through the studio, with the built-in model."""

from __future__ import annotations

import io
import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from canvas import MODELS, GenerationRequest, Studio
from canvas.engine import safety
from canvas.errors import ContentBlocked, HubOffline, InvalidInput, ModelNotFound, NotFound
from canvas.history.metadata import read_settings
from canvas.models.hub_client import Hub
from canvas.request import GeneratedImage
from canvas.settings import Settings
from tests.engine.test_image_io import bomb
from tests.hub_server import LocalHub
from tests.models.test_loras import make_lora

FOX: dict[str, Any] = {"prompt": "a fox in the snow, 3d", "seed": 7, "num_inference_steps": 3}


def wish(**fields: Any) -> GenerationRequest:
    return GenerationRequest(**{**FOX, **fields})


def pixels(studio: Studio, image: GeneratedImage) -> np.ndarray[Any, Any]:
    with Image.open(studio.image_path(image.filename)) as picture:
        return np.asarray(picture.convert("RGB"), int)


def scene() -> Image.Image:
    picture = Image.new("RGB", (256, 192), "#4477bb")
    ImageDraw.Draw(picture).ellipse((80, 40, 180, 160), fill="#dd6622")
    return picture


def painted(box: tuple[int, int, int, int] = (100, 60, 159, 119)) -> Image.Image:
    """What an editor hands over: strokes on a transparent layer."""
    layer = Image.new("RGBA", (256, 192), (0, 0, 0, 0))
    ImageDraw.Draw(layer).rectangle(box, fill=(255, 0, 0, 255))
    return layer


def test_a_picture_of_the_gallery_is_varied_and_is_the_parent(
    studio: Studio, settings: Settings
) -> None:
    [parent] = studio.generate(wish())
    two = studio.generate(
        wish(task="image_to_image", image=parent.filename, strength=0.4, num_images=2)
    )
    assert [child.parent_id for child in two] == [parent.id] * 2
    assert [child.task for child in two] == ["image_to_image"] * 2
    assert (pixels(studio, two[0]) != pixels(studio, two[1])).any()
    row = sqlite3.connect(settings.database_path).execute(
        "select task, parent_id, options from generated_images where id = ?", [two[0].id]
    )
    [(task, parent_id, options)] = row.fetchall()
    assert (task, parent_id) == ("image_to_image", parent.id)
    assert json.loads(options)["image"] == parent.filename
    assert json.loads(options)["strength"] == 0.4
    assert studio.image(two[1].id or 0) == two[1]
    [again] = studio.generate(two[1].request)
    assert (pixels(studio, again) == pixels(studio, two[1])).all()
    kept = read_settings(studio.image_path(two[0].filename))
    assert kept is not None
    assert kept.request == two[0].request


def test_a_handed_in_picture_is_inpainted_and_extended(studio: Studio) -> None:
    picture = studio.inputs.upload(scene())
    mask = studio.inputs.upload(painted(), "mask_image")
    [changed] = studio.generate(wish(task="inpaint", image=picture.name, mask_image=mask.name))
    difference = (pixels(studio, changed) != np.asarray(scene(), int)).any(-1)
    inside = np.zeros_like(difference)
    inside[60:120, 100:160] = True
    assert not difference[~inside].any()
    assert difference[inside].any()
    assert changed.parent_id is None

    extended = wish(task="inpaint", image=picture.name, outpaint=(64, 0, 0, 64))
    [larger] = studio.generate(extended)
    assert (larger.request.width, larger.request.height) == (320, 256)
    assert (pixels(studio, larger)[:192, 64:] == np.asarray(scene(), int)).all()


def test_enlarging_needs_no_model_in_memory(studio: Studio, settings: Settings) -> None:
    name = studio.inputs.upload(scene()).name
    [larger] = studio.generate(GenerationRequest("", task="upscale", image=name, scale=4))
    assert pixels(studio, larger).shape == (768, 1024, 3)
    loads = (
        sqlite3.connect(settings.database_path).execute("select * from model_downloads").fetchall()
    )
    assert loads == []


def test_enlarging_with_detail(studio: Studio) -> None:
    name = studio.inputs.upload(scene()).name
    request = wish(task="upscale", image=name, upscaler="detail", strength=0.4)
    job = studio.submit(request)
    [larger] = job.wait()
    assert pixels(studio, larger).shape == (384, 512, 3)
    plain = scene().resize((512, 384), Image.Resampling.LANCZOS)
    assert 1 < np.abs(pixels(studio, larger) - np.asarray(plain, int)).mean() < 60


def test_what_is_wrong_with_pictures_is_said_before_anything_is_queued(studio: Studio) -> None:
    picture = studio.inputs.upload(scene())
    empty = studio.inputs.upload(Image.new("L", (256, 192)))
    small = studio.inputs.upload(Image.new("L", (64, 64), 255))
    for fields, sentence in (
        ({"task": "image_to_image"}, "image: None"),
        ({"task": "inpaint", "image": picture.name, "mask_image": empty.name}, "The mask is empty"),
        ({"task": "inpaint", "image": picture.name, "mask_image": small.name}, "256x192.*64x64"),
        ({"task": "inpaint", "image": picture.name, "extend": (512, 0, 0, 0)}, "extend|width"),
    ):
        with pytest.raises(InvalidInput, match=sentence):
            studio.submit(wish(**fields))
    with pytest.raises(NotFound, match="upload it again"):
        studio.submit(wish(task="image_to_image", image="0" * 64 + ".png"))
    assert studio.jobs("local") == []


def test_bad_files_are_refused_and_nothing_is_kept(studio: Studio, settings: Settings) -> None:
    for content in (b"just text", bomb(40_000, 40_000)):
        with pytest.raises(InvalidInput):
            studio.inputs.upload(content)
    assert not settings.uploads_dir.exists()


def test_what_was_done_to_a_handed_in_picture_is_said(studio: Studio) -> None:
    frames = [Image.new("RGB", (32, 16), color) for color in ("red", "blue")]
    moving = io.BytesIO()
    frames[0].save(moving, "gif", save_all=True, append_images=frames[1:])
    handed = studio.inputs.upload(moving.getvalue())
    assert (handed.width, handed.height) == (32, 16)
    assert handed.notes == ("Only the first of 2 frames is used.",)
    large = studio.inputs.upload(Image.new("RGB", (8192, 16)))
    assert (large.width, large.height) == (4096, 8)
    assert "4096" in large.notes[0]


def test_pictures_of_others_are_not_to_be_had(studio: Studio) -> None:
    [parent] = studio.generate(wish(), owner="one")
    with pytest.raises(NotFound):
        studio.submit(wish(task="image_to_image", image=parent.filename), owner="other")


@pytest.fixture
def lora(settings: Settings) -> str:
    from diffusers import UNet2DConditionModel

    settings.loras_dir.mkdir(parents=True)
    unet = UNet2DConditionModel.from_pretrained(Path(MODELS["starter"].name) / "unet")
    make_lora(settings.loras_dir / "snow.safetensors", unet, "kohya")
    return "snow"


def test_a_lora_from_the_folder_by_field_or_in_the_prompt(studio: Studio, lora: str) -> None:
    [plain] = studio.generate(wish())
    [by_field] = studio.generate(wish(loras=((lora, 0.8),)))
    [in_prompt] = studio.generate(wish(prompt=f"{FOX['prompt']} <lora:{lora}:0.8>"))
    [after] = studio.generate(wish())
    assert (pixels(studio, by_field) != pixels(studio, plain)).any()
    assert (pixels(studio, in_prompt) == pixels(studio, by_field)).all()
    assert (pixels(studio, after) == pixels(studio, plain)).all()
    assert in_prompt.enhanced_prompt == plain.enhanced_prompt
    assert list(studio.inputs.list_loras()) == [lora]
    with pytest.raises(NotFound, match="there are: snow"):
        studio.submit(wish(loras=(("rain", 1),)))


def test_a_pickled_lora_is_refused(studio: Studio, settings: Settings) -> None:
    settings.loras_dir.mkdir(parents=True)
    (settings.loras_dir / "evil.ckpt").write_bytes(b"\x80\x04.")
    with pytest.raises(InvalidInput, match=r"evil\.ckpt.*programs"):
        studio.submit(wish(prompt="a fox <lora:evil>"))


def test_a_watermark_is_seen_and_recorded_and_off_by_default(studio: Studio) -> None:
    [plain] = studio.generate(wish())
    [marked] = studio.generate(wish(watermark="mine"))
    changed = (pixels(studio, marked) != pixels(studio, plain)).any(-1)
    assert changed[192:, 128:].any()
    assert not changed[:192].any()
    assert plain.request.watermark == ""
    assert marked.request.watermark == "mine"


@pytest.mark.parametrize(
    ("fields", "level"),
    [({}, "off"), ({"public": True}, "prompt"), ({"share": True}, "prompt"),
     ({"public": True, "safety": "full"}, "full"), ({"public": True, "safety": "off"}, "off")],
)  # fmt: skip
def test_strangers_get_the_word_filter(fields: dict[str, Any], level: str) -> None:
    assert Settings(**fields).safety_level == level


def test_a_blocked_prompt_is_said_at_once(settings: Settings) -> None:
    with Studio(settings.model_copy(update={"safety": "prompt"})) as studio:
        with pytest.raises(ContentBlocked, match="“nude”"):
            studio.submit(wish(prompt="a nude fox"))
        assert studio.jobs("local") == []
        assert studio.submit(wish(prompt="a skilled fox", negative_prompt="nude")).wait()


def test_the_checker_is_fetched_with_progress_and_what_it_blocks_is_not_stored(
    settings: Settings,
    hub: LocalHub,
    tmp_path: Path,
) -> None:
    """With the checker's own class and random weights that flag everything."""
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 16}
    model = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=8))
    model.concept_embeds_weights.data.fill_(-2)
    model.save_pretrained(tmp_path / "checker")
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(
        tmp_path / "checker"
    )
    hub.add(safety.CHECKER, tmp_path / "checker")
    source = Hub(endpoint=hub.url, cache_dir=tmp_path / "cache", timeout=5)
    with Studio(settings.model_copy(update={"safety": "full"}), hub=source) as studio:
        job = studio.submit(wish(num_images=2))
        told = [(seen.status, getattr(seen.progress, "what", "")) for seen in job.subscribe()]
        assert ("downloading", safety.CHECKER) in told
        with pytest.raises(ContentBlocked, match="not stored"):
            job.wait()
        assert studio.recent() == []
        asked = len(hub.requests)
        with pytest.raises(ContentBlocked, match="not stored"):
            studio.generate(wish())
        assert len(hub.requests) == asked, "it is fetched once"
    assert not list(settings.outputs_dir.rglob("*.png"))


def test_without_its_checker_full_safety_shows_nothing(settings: Settings, tmp_path: Path) -> None:
    nowhere = Hub(endpoint="http://127.0.0.1:9", cache_dir=tmp_path / "cache", timeout=2)
    with Studio(settings.model_copy(update={"safety": "full"}), hub=nowhere) as studio:
        with pytest.raises(HubOffline):
            studio.generate(wish())
        assert studio.recent() == []


@pytest.fixture
def on_the_hub(hub: LocalHub, tmp_path: Path) -> LocalHub:
    """LoRAs for the built-in model: one alone in its repository, two in another; and a pickle."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(Path(MODELS["starter"].name) / "unet")
    words = {"modelspec.trigger_phrase": "snowy sks"}
    for number, name in enumerate(("me/snow/snow", "me/weather/rain", "me/weather/hail")):
        path = tmp_path / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        make_lora(path, unet, seed=number, **words)
    (tmp_path / "me/evil").mkdir()
    (tmp_path / "me/evil/lora.bin").write_bytes(b"\x80\x04.")
    for repo_id in ("me/snow", "me/weather", "me/evil"):
        hub.add(repo_id, tmp_path / repo_id)
    return hub


def test_a_lora_of_the_hub_is_fetched_and_worn(
    settings: Settings, on_the_hub: LocalHub, tmp_path: Path
) -> None:
    source = Hub(endpoint=on_the_hub.url, cache_dir=tmp_path / "cache", timeout=5)
    with Studio(settings, hub=source) as studio:
        [plain] = studio.generate(wish())
        size = (tmp_path / "me/snow/snow.safetensors").stat().st_size
        assert studio.inputs.lora_download_size("me/snow") == size
        assert studio.inputs.get_lora("me/snow") is None
        job = studio.submit(wish(loras=(("me/snow", 1),)))
        told = [(seen.status, getattr(seen.progress, "what", "")) for seen in job.subscribe()]
        assert ("downloading", "me/snow") in told
        [worn] = job.wait()
        assert (pixels(studio, worn) != pixels(studio, plain)).any()
        found = studio.inputs.get_lora("me/snow")
        assert found is not None
        assert found.trigger_words == ("snowy sks",)
        rain = "me/weather:rain.safetensors"
        [named] = studio.generate(wish(loras=((rain, 1),)))
        assert (pixels(studio, named) != pixels(studio, worn)).any()
        [tagged] = studio.generate(wish(prompt=f"{FOX['prompt']} <lora:{rain}:1>"))
        assert (pixels(studio, tagged) == pixels(studio, named)).all()


def test_what_is_wrong_with_a_lora_of_the_hub_is_said(
    settings: Settings, on_the_hub: LocalHub, tmp_path: Path
) -> None:
    source = Hub(endpoint=on_the_hub.url, cache_dir=tmp_path / "cache", timeout=5)
    with Studio(settings, hub=source) as studio:
        with pytest.raises(InvalidInput, match=r"a colon: hail\.safetensors, rain\.safetensors"):
            studio.inputs.lora_download_size("me/weather")
        with pytest.raises(InvalidInput, match="can run code"):
            studio.generate(wish(loras=(("me/evil", 1),)))
        with pytest.raises(ModelNotFound, match="me/nothing"):
            studio.generate(wish(loras=(("me/nothing", 1),)))


def test_visitors_cannot_have_loras_fetched(
    settings: Settings, on_the_hub: LocalHub, tmp_path: Path
) -> None:
    source = Hub(endpoint=on_the_hub.url, cache_dir=tmp_path / "cache", timeout=5)
    with (
        Studio(settings.model_copy(update={"public": True}), hub=source) as studio,
        pytest.raises(NotFound, match="visitors cannot fetch"),
    ):
        studio.submit(wish(loras=(("me/snow", 1),)))
    assert on_the_hub.requests == []


def test_long_prompts_are_read_whole_with_weights(studio: Studio) -> None:
    long = ", ".join(["a fox in the snow"] * 30)
    assert studio.token_budget(wish(prompt=long)).truncated
    assert not studio.token_budget(wish(prompt=long, prompt_weighting=True)).truncated
    [plain] = studio.generate(wish(prompt=f"{long}, a red house"))
    [whole] = studio.generate(wish(prompt=f"{long}, a red house", prompt_weighting=True))
    assert (pixels(studio, whole) != pixels(studio, plain)).any()


def test_plain_brackets_are_plain_unless_switched(studio: Studio) -> None:
    [plain] = studio.generate(wish(prompt="a (fox:1.7) in the snow"))
    [weighted] = studio.generate(wish(prompt="a (fox:1.7) in the snow", prompt_weighting=True))
    assert (pixels(studio, plain) != pixels(studio, weighted)).any()
    assert (plain.request.prompt_weighting, weighted.request.prompt_weighting) == (False, True)
