"""Images, masks, LoRAs and safety through the studio, with the built-in model."""

from __future__ import annotations

import io
import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from canvas import MODELS, GenerationRequest, Studio
from canvas.catalog import ModelSpec
from canvas.engine import safety
from canvas.errors import ContentBlocked, HubOffline, InvalidInput, ModelNotFound, NotFound
from canvas.guidance import ControlImage, ReferenceImage
from canvas.history.metadata import read_settings
from canvas.jobs.inputs import requested_loras
from canvas.models.hub_client import Hub
from canvas.prompt_syntax import LoraWeight
from canvas.request import MAX_EDIT_SIDE, GeneratedImage
from canvas.settings import Settings
from tests.engine.test_image_io import bomb
from tests.hub_server import LocalHub
from tests.models.test_loras import make_lora

FOX: dict[str, Any] = {"prompt": "a fox in the snow, 3d", "seed": 7, "num_inference_steps": 3}


def make_request(**fields: Any) -> GenerationRequest:
    return GenerationRequest(**{**FOX, **fields})


def pixels(studio: Studio, image: GeneratedImage) -> np.ndarray[Any, Any]:
    with Image.open(studio.image_path(image.filename)) as opened:
        return np.asarray(opened.convert("RGB"), int)


def make_scene() -> Image.Image:
    image = Image.new("RGB", (256, 192), "#4477bb")
    ImageDraw.Draw(image).ellipse((80, 40, 180, 160), fill="#dd6622")
    return image


def make_mask_layer(box: tuple[int, int, int, int] = (100, 60, 159, 119)) -> Image.Image:
    """A mask as an image editor sends it: strokes on a transparent layer."""
    layer = Image.new("RGBA", (256, 192), (0, 0, 0, 0))
    ImageDraw.Draw(layer).rectangle(box, fill=(255, 0, 0, 255))
    return layer


def test_an_owner_may_use_only_their_own_images_again(studio: Studio) -> None:
    [image] = studio.generate(make_request(num_inference_steps=1))
    upload = studio.inputs.upload(make_scene()).name
    for name, owner in ((image.filename, "ann"), (upload, "ben"), ("x.png", "ann")):
        assert not studio.inputs.is_stored_for(name, owner)
    assert studio.inputs.is_stored_for(image.filename, image.owner)


@pytest.mark.slow
def test_image_to_image_of_a_gallery_image_records_its_parent(studio: Studio, settings: Settings) -> None:
    [parent] = studio.generate(make_request())
    two = studio.generate(make_request(task="image_to_image", image=parent.filename, strength=0.4, num_images=2))
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
    embedded = read_settings(studio.image_path(two[0].filename))
    assert embedded is not None
    assert embedded.request == two[0].request


@pytest.mark.slow
def test_inpaint_and_outpaint_an_upload(studio: Studio) -> None:
    image = studio.inputs.upload(make_scene())
    mask = studio.inputs.upload(make_mask_layer(), "mask_image")
    [changed] = studio.generate(make_request(task="inpaint", image=image.name, mask_image=mask.name))
    difference = (pixels(studio, changed) != np.asarray(make_scene(), int)).any(-1)
    inside = np.zeros_like(difference)
    inside[60:120, 100:160] = True
    assert not difference[~inside].any()
    assert difference[inside].any()
    assert changed.parent_id is None

    outpaint = make_request(task="inpaint", image=image.name, outpaint=(64, 0, 0, 64))
    [larger] = studio.generate(outpaint)
    assert (larger.request.width, larger.request.height) == (320, 256)
    assert (pixels(studio, larger)[:192, 64:] == np.asarray(make_scene(), int)).all()


@pytest.mark.slow
def test_sizes_are_recorded_as_they_are(studio: Studio, settings: Settings) -> None:
    image = Image.effect_noise((301, 75), 90).convert("RGB")
    name = studio.inputs.upload(image).name
    mask = Image.new("L", image.size)
    mask.paste(255, (100, 20, 140, 60))
    mask_name = studio.inputs.upload_mask(mask).name
    for fields, size in (
        ({"task": "image_to_image"}, (301, 75)),
        ({"task": "image_to_image", "width": 1111, "height": 30}, (1111, 30)),
        ({"task": "inpaint", "mask_image": mask_name}, (301, 75)),
        ({"task": "inpaint", "mask_image": mask_name, "only_masked": True}, (301, 75)),
        ({"task": "inpaint", "outpaint": (3, 0, 40, 1)}, (344, 76)),
        ({"task": "upscale", "scale": 2}, (602, 150)),
        ({"task": "upscale", "scale": 2, "upscaler": "detail"}, (602, 150)),
    ):
        [result] = studio.generate(make_request(image=name, **fields))
        with Image.open(studio.image_path(result.filename)) as file:
            assert file.size == size == result.request.size
        embedded = read_settings(studio.image_path(result.filename))
        assert embedded is not None
        assert embedded.request.size == size
        row = sqlite3.connect(settings.database_path).execute(
            "select image_width, image_height from generated_images where id = ?", [result.id]
        )
        assert row.fetchone() == size
        [again] = studio.generate(result.request)
        assert (pixels(studio, again) == pixels(studio, result)).all()


@pytest.mark.long
def test_inpainting_a_large_image_keeps_its_scale(studio: Studio) -> None:
    image = Image.effect_noise((4096, 4096), 90).convert("RGB")
    mask = Image.new("L", image.size)
    mask.paste(255, (3000, 60, 3200, 240))
    request = make_request(
        task="inpaint", image=studio.inputs.upload(image).name, mask_image=studio.inputs.upload_mask(mask).name
    )
    [result] = studio.generate(request)
    changed = (pixels(studio, result) != np.asarray(image, int)).any(-1)
    assert changed.shape == (4096, 4096)
    assert changed[60:240, 3000:3200].mean() > 0.9
    changed[60:240, 3000:3200] = False
    assert not changed.any()
    assert result.notes == (), "the part around the mask was drawn without scaling"


def test_upload_mask_stores_what_may_change(studio: Studio) -> None:
    layer = make_mask_layer((0, 0, 99, 191))
    for options, box in (
        ({}, (0, 0, 100, 192)),
        ({"invert": True}, (100, 0, 256, 192)),
        ({"transparent": True}, (100, 0, 256, 192)),
        ({"transparent": True, "invert": True}, (0, 0, 100, 192)),
    ):
        upload = studio.inputs.upload_mask(layer, **options)
        stored = studio.inputs.open_image(upload.name, "local")
        assert (stored.mode, stored.getbbox()) == ("L", box)


def test_lanczos_upscaling_loads_no_model(studio: Studio, settings: Settings) -> None:
    name = studio.inputs.upload(make_scene()).name
    [larger] = studio.generate(GenerationRequest("", task="upscale", image=name, scale=4))
    assert pixels(studio, larger).shape == (768, 1024, 3)
    loads = sqlite3.connect(settings.database_path).execute("select * from model_downloads").fetchall()
    assert loads == []


@pytest.mark.slow
def test_upscaling_with_detail(studio: Studio) -> None:
    name = studio.inputs.upload(make_scene()).name
    request = make_request(task="upscale", image=name, upscaler="detail", strength=0.4)
    job = studio.submit(request)
    [larger] = job.wait()
    assert pixels(studio, larger).shape == (384, 512, 3)
    plain = make_scene().resize((512, 384), Image.Resampling.LANCZOS)
    assert 1 < np.abs(pixels(studio, larger) - np.asarray(plain, int)).mean() < 60


def test_invalid_images_are_rejected_before_queueing(studio: Studio) -> None:
    image = studio.inputs.upload(make_scene())
    empty = studio.inputs.upload(Image.new("L", (256, 192)))
    small = studio.inputs.upload(Image.new("L", (64, 64), 255))
    for fields, message in (
        ({"task": "image_to_image"}, "requires an image"),
        ({"task": "inpaint", "image": image.name, "mask_image": empty.name}, "The mask is empty"),
        ({"task": "inpaint", "image": image.name, "mask_image": small.name}, "256x192.*64x64"),
        ({"task": "inpaint", "image": image.name, "outpaint": (64, 0, 0, 0), "width": 64}, "margins leave no room"),
        ({"task": "inpaint", "image": image.name, "outpaint": (2048, 0, 2048, 0)}, "4352x192.*at most 4096"),
        ({"task": "image_to_image", "image": image.name, "width": 8192}, "Width must be .* 8 and 4096"),
    ):
        with pytest.raises(InvalidInput, match=message):
            studio.submit(make_request(**fields))
    with pytest.raises(NotFound, match="upload it again"):
        studio.submit(make_request(task="image_to_image", image="0" * 64 + ".png"))
    assert studio.jobs("local") == []


def test_invalid_uploads_are_not_stored(studio: Studio, settings: Settings) -> None:
    for content in (b"just text", bomb(40_000, 40_000)):
        with pytest.raises(InvalidInput):
            studio.inputs.upload(content)
    assert not settings.uploads_dir.exists()


def test_an_upload_has_notes_on_its_conversion(studio: Studio) -> None:
    frames = [Image.new("RGB", (32, 16), color) for color in ("red", "blue")]
    animation = io.BytesIO()
    frames[0].save(animation, "gif", save_all=True, append_images=frames[1:])
    upload = studio.inputs.upload(animation.getvalue())
    assert (upload.width, upload.height) == (32, 16)
    assert upload.notes == ("Only the first of 2 frames is used.",)
    large = studio.inputs.upload(Image.new("RGB", (8192, 16)))
    assert (large.width, large.height) == (4096, 8)
    assert "4096" in large.notes[0]


def test_images_of_other_owners_are_not_found(studio: Studio) -> None:
    [parent] = studio.generate(make_request(), owner="one")
    with pytest.raises(NotFound):
        studio.submit(make_request(task="image_to_image", image=parent.filename), owner="other")


@pytest.fixture
def lora(settings: Settings) -> str:
    from diffusers import UNet2DConditionModel

    settings.loras_dir.mkdir(parents=True)
    unet = UNet2DConditionModel.from_pretrained(Path(MODELS["starter"].name) / "unet")
    make_lora(settings.loras_dir / "snow.safetensors", unet, "kohya")
    return "snow"


@pytest.mark.slow
def test_apply_a_lora_of_the_folder_by_field_or_prompt(studio: Studio, lora: str) -> None:
    [plain] = studio.generate(make_request())
    [by_field] = studio.generate(make_request(loras=((lora, 0.8),)))
    [in_prompt] = studio.generate(make_request(prompt=f"{FOX['prompt']} <lora:{lora}:0.8>"))
    [after] = studio.generate(make_request())
    assert (pixels(studio, by_field) != pixels(studio, plain)).any()
    assert (pixels(studio, in_prompt) == pixels(studio, by_field)).all()
    assert (pixels(studio, after) == pixels(studio, plain)).all()
    assert in_prompt.enhanced_prompt == plain.enhanced_prompt
    assert list(studio.inputs.list_loras()) == [lora]
    with pytest.raises(NotFound, match="it has: snow"):
        studio.submit(make_request(loras=(("rain", 1),)))


def test_a_pickled_lora_is_rejected(studio: Studio, settings: Settings) -> None:
    settings.loras_dir.mkdir(parents=True)
    (settings.loras_dir / "evil.ckpt").write_bytes(b"\x80\x04.")
    with pytest.raises(InvalidInput, match=r"evil\.ckpt.*run code"):
        studio.submit(make_request(prompt="a fox <lora:evil>"))


@pytest.mark.slow
def test_a_watermark_is_drawn_and_recorded(studio: Studio) -> None:
    [plain] = studio.generate(make_request())
    [marked] = studio.generate(make_request(watermark="mine"))
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
def test_the_word_filter_is_on_for_public_servers(fields: dict[str, Any], level: str) -> None:
    assert Settings(**fields).safety_level == level


def test_a_blocked_prompt_is_rejected_before_queueing(settings: Settings) -> None:
    with Studio(settings.model_copy(update={"safety": "prompt"})) as studio:
        with pytest.raises(ContentBlocked, match="“nude”"):
            studio.submit(make_request(prompt="a nude fox"))
        assert studio.jobs("local") == []
        assert studio.submit(make_request(prompt="a skilled fox", negative_prompt="nude")).wait()


@pytest.mark.slow
def test_the_checker_is_downloaded_and_blocked_images_are_not_stored(
    settings: Settings, hub: LocalHub, tmp_path: Path
) -> None:
    """With the real checker class and random weights that flag everything."""
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 16}
    model = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=8))
    model.concept_embeds_weights.data.fill_(-2)
    model.save_pretrained(tmp_path / "checker")
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(tmp_path / "checker")
    hub.add(safety.CHECKER, tmp_path / "checker")
    source = Hub(endpoint=hub.url, cache_dir=tmp_path / "cache", timeout=5)
    with Studio(settings.model_copy(update={"safety": "full"}), hub=source) as studio:
        job = studio.submit(make_request(num_images=2))
        updates = [(seen.status, getattr(seen.progress, "label", "")) for seen in job.subscribe()]
        assert ("downloading", safety.CHECKER) in updates
        with pytest.raises(ContentBlocked, match="not stored"):
            job.wait()
        assert studio.recent() == []
        num_requests = len(hub.requests)
        with pytest.raises(ContentBlocked, match="not stored"):
            studio.generate(make_request())
        assert len(hub.requests) == num_requests, "downloaded once"
    assert not list(settings.outputs_dir.rglob("*.png"))


def test_full_safety_fails_without_the_checker(settings: Settings, tmp_path: Path) -> None:
    offline = Hub(endpoint="http://127.0.0.1:9", cache_dir=tmp_path / "cache", timeout=2)
    with Studio(settings.model_copy(update={"safety": "full"}), hub=offline) as studio:
        with pytest.raises(HubOffline):
            studio.generate(make_request())
        assert studio.recent() == []


@pytest.fixture
def lora_hub(hub: LocalHub, tmp_path: Path) -> LocalHub:
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


@pytest.mark.slow
def test_a_lora_of_the_hub_is_downloaded_and_applied(settings: Settings, lora_hub: LocalHub, tmp_path: Path) -> None:
    source = Hub(endpoint=lora_hub.url, cache_dir=tmp_path / "cache", timeout=5)
    with Studio(settings, hub=source) as studio:
        [plain] = studio.generate(make_request())
        size = (tmp_path / "me/snow/snow.safetensors").stat().st_size
        assert studio.inputs.lora_download_size("me/snow") == size
        assert studio.inputs.get_lora("me/snow") is None
        job = studio.submit(make_request(loras=(("me/snow", 1),)))
        updates = [(seen.status, getattr(seen.progress, "label", "")) for seen in job.subscribe()]
        assert ("downloading", "me/snow") in updates
        [snow] = job.wait()
        assert (pixels(studio, snow) != pixels(studio, plain)).any()
        found = studio.inputs.get_lora("me/snow")
        assert found is not None
        assert found.trigger_words == ("snowy sks",)
        rain = "me/weather:rain.safetensors"
        [named] = studio.generate(make_request(loras=((rain, 1),)))
        assert (pixels(studio, named) != pixels(studio, snow)).any()
        [tagged] = studio.generate(make_request(prompt=f"{FOX['prompt']} <lora:{rain}:1>"))
        assert (pixels(studio, tagged) == pixels(studio, named)).all()


@pytest.mark.slow
def test_invalid_loras_of_the_hub_are_rejected(settings: Settings, lora_hub: LocalHub, tmp_path: Path) -> None:
    source = Hub(endpoint=lora_hub.url, cache_dir=tmp_path / "cache", timeout=5)
    with Studio(settings, hub=source) as studio:
        with pytest.raises(InvalidInput, match=r"a colon: hail\.safetensors, rain\.safetensors"):
            studio.inputs.lora_download_size("me/weather")
        with pytest.raises(InvalidInput, match="can run code"):
            studio.generate(make_request(loras=(("me/evil", 1),)))
        with pytest.raises(ModelNotFound, match="me/nothing"):
            studio.generate(make_request(loras=(("me/nothing", 1),)))


def test_visitors_cannot_download_loras(settings: Settings, lora_hub: LocalHub, tmp_path: Path) -> None:
    source = Hub(endpoint=lora_hub.url, cache_dir=tmp_path / "cache", timeout=5)
    with (
        Studio(settings.model_copy(update={"public": True}), hub=source) as studio,
        pytest.raises(NotFound, match="visitors cannot download"),
    ):
        studio.submit(make_request(loras=(("me/snow", 1),)))
    assert lora_hub.requests == []


def test_prompt_weighting_reads_long_prompts_completely(studio: Studio, tiny_spec: ModelSpec) -> None:
    studio.models["tiny"] = replace(tiny_spec, key="tiny")
    long = ", ".join(["a fox in the snow"] * 30)
    request = make_request(prompt=f"{long}, a red house", model_key="tiny", width=64, height=64)
    weighted = replace(request, prompt_weighting=True)
    assert studio.token_budget(request).truncated
    assert not studio.token_budget(weighted).truncated
    [plain], [whole] = studio.generate(request), studio.generate(weighted)
    assert (pixels(studio, whole) != pixels(studio, plain)).any()


def test_weights_are_plain_text_without_prompt_weighting(studio: Studio, tiny_spec: ModelSpec) -> None:
    studio.models["tiny"] = replace(tiny_spec, key="tiny")
    request = make_request(prompt="a (fox:1.7) in the snow", model_key="tiny", width=64, height=64)
    [plain], [weighted] = studio.generate(request), studio.generate(replace(request, prompt_weighting=True))
    assert (pixels(studio, plain) != pixels(studio, weighted)).any()
    assert (plain.request.prompt_weighting, weighted.request.prompt_weighting) == (False, True)


@pytest.mark.slow
def test_the_built_in_model_says_that_it_leaves_out_weights(studio: Studio) -> None:
    [weighted] = studio.generate(make_request(prompt="a (fox:1.7) in the snow", prompt_weighting=True))
    assert weighted.enhanced_prompt == "a fox in the snow 1 left 1 down"
    assert weighted.notes == ("Understood: a fox, in the snow. Left out: weights.",)


CONTROL, REFERENCE = ControlImage("a.png", model="net"), ReferenceImage("a.png", model="adapter")


@pytest.fixture
def guided(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path | None]:
    """Where the ControlNet, the adapter and its encoder are; a test may change it."""
    stored: dict[str, Path | None] = {"net": Path("net"), "adapter": Path("adapter"), "encoder": Path("encoder")}
    monkeypatch.setattr("canvas.models.controlnets.find", lambda name, *_, **__: stored["net"])
    monkeypatch.setattr("canvas.models.controlnets.check_family", lambda *_: None)
    monkeypatch.setattr("canvas.models.controlnets.usual_model", lambda *_: "usual net")
    monkeypatch.setattr("canvas.models.ip_adapters.find", lambda name, *_, **__: stored["adapter"])
    monkeypatch.setattr("canvas.models.ip_adapters.find_encoder", lambda *_: stored["encoder"])
    monkeypatch.setattr("canvas.models.ip_adapters.usual_adapter", lambda *_: "usual adapter")
    monkeypatch.setattr(studio.inputs, "open_image", lambda name, owner: make_scene())
    return stored


@pytest.mark.parametrize(
    ("missing", "backend", "counts"),
    [
        (None, "local", (0, 1, 1)),
        ("net", "local", (0, 0, 1)),
        ("adapter", "local", (0, 1, 0)),
        ("encoder", "local", (0, 1, 0)),
        (None, "remote", (1, 0, 0)),
    ],
)
def test_guiding_images_are_loaded_with_what_is_stored_or_sent(
    studio: Studio, guided: dict[str, Path | None], missing: str | None, backend: str, counts: tuple[int, int, int]
) -> None:
    if missing is not None:
        guided[missing] = None
    request = make_request(control_images=(CONTROL,), reference_images=(REFERENCE,), backend=backend)
    inputs = studio.inputs.load_inputs(request, "local")
    assert (len(inputs.images), len(inputs.controls), len(inputs.references)) == counts


def test_a_reference_without_an_adapter_needs_none(studio: Studio, guided: dict[str, Path | None]) -> None:
    guided["adapter"] = guided["encoder"] = None
    request = make_request(
        reference_images=(REFERENCE._replace(model=""),), control_images=(CONTROL._replace(model=""),)
    )
    inputs = studio.inputs.load_inputs(request, "local")
    assert [item.file for item in inputs.references] == [None]
    assert inputs.controls == ()


@pytest.mark.parametrize("backend", ["local", "remote"])
def test_guiding_images_get_the_usual_models_here_only(
    studio: Studio, guided: dict[str, Path | None], backend: str
) -> None:
    items = {
        "control_images": (CONTROL, CONTROL._replace(model="", kind="canny")),
        "reference_images": (REFERENCE, REFERENCE._replace(model="")),
    }
    request = make_request(**items, backend=backend)
    resolved = studio.inputs.resolve_guidance(request, MODELS["small"], None, "local")
    is_local = backend == "local"
    assert [item.model for item in resolved.control_images] == ["net", "usual net" if is_local else ""]
    assert [item.model for item in resolved.reference_images] == ["adapter", "usual adapter" if is_local else ""]
    plain = make_request()
    assert studio.inputs.resolve_guidance(plain, MODELS["small"], None, "local") == plain


@pytest.mark.parametrize(
    ("missing", "message"),
    [(None, None), ("net", "ControlNet net is not"), ("adapter", "IP-Adapter adapter is not"),
     ("encoder", "IP-Adapter adapter is not")],
)  # fmt: skip
@pytest.mark.parametrize("public", [True, False])
def test_visitors_use_only_the_guiding_models_that_are_stored(
    studio: Studio, guided: dict[str, Path | None], missing: str | None, message: str | None, public: bool
) -> None:
    if missing is not None:
        guided[missing] = None
    studio.inputs._allow_downloads = not public
    request = make_request(control_images=(CONTROL,), reference_images=(REFERENCE, REFERENCE._replace(model="")))
    if message is None or not public:
        assert studio.inputs.resolve_guidance(request, MODELS["small"], None, "local")
        return
    with pytest.raises(NotFound, match=message):
        studio.inputs.resolve_guidance(request, MODELS["small"], None, "local")


def test_an_upscaler_without_a_model_takes_no_reference(studio: Studio, guided: dict[str, Path | None]) -> None:
    request = make_request(task="upscale", image="a.png", reference_images=(REFERENCE,))
    with pytest.raises(InvalidInput, match="Reference images act with the upscaler detail only"):
        studio.inputs.resolve_guidance(request, MODELS["small"], None, "local")
    plain = make_request(task="upscale", image="a.png")
    assert studio.inputs.resolve_guidance(plain, MODELS["small"], None, "local") == plain
    assert studio.inputs.resolve_guidance(replace(request, upscaler="detail"), MODELS["small"], None, "local")


@pytest.mark.parametrize(
    ("fields", "size"),
    [({}, (301, 75)), ({"width": 64}, (64, 75)), ({"height": 64}, (301, 64)), ({"width": 64, "height": 32}, (64, 32))],
)
def test_a_side_that_is_not_set_is_that_of_the_image(
    studio: Studio, fields: dict[str, int], size: tuple[int, int]
) -> None:
    request = make_request(task="image_to_image", image="a.png", **fields)
    assert studio.inputs.result_size(request, (301, 75)) == size
    assert studio.inputs.preview_fit(Image.new("RGB", (301, 75)), request).size == size


def test_a_lora_tag_in_the_negative_prompt_is_an_error() -> None:
    request = make_request(prompt="a fox <lora:ink:0.5>", loras=(("wax", 0.3),))
    assert requested_loras(request) == (("wax", LoraWeight(0.3, 0.3)), ("ink", LoraWeight(0.5, 0.5)))
    with pytest.raises(InvalidInput, match=r"The tag <lora:ink:0\.5> acts in the prompt only") as raised:
        requested_loras(make_request(negative_prompt="fog <lora:ink:0.5>"))
    assert raised.value.value == "<lora:ink:0.5>"


def test_an_image_as_large_as_allowed_is_not_reduced(studio: Studio) -> None:
    largest = studio.inputs.upload(Image.new("RGB", (MAX_EDIT_SIDE, 8)))
    assert (largest.width, largest.notes) == (MAX_EDIT_SIDE, ())
    larger = studio.inputs.upload(Image.new("RGB", (MAX_EDIT_SIDE + 1, 8)))
    assert larger.width == MAX_EDIT_SIDE
    assert "was reduced" in larger.notes[0]


def test_an_unknown_embedding_is_named_when_the_image_is_made(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> None:
        raise NotFound("No such embedding.")

    assert not studio.inputs.names_embedding(make_request())
    monkeypatch.setattr("canvas.jobs.inputs.requested_embeddings", missing)
    assert not studio.inputs.names_embedding(make_request())
