"""Control and reference images through every API: the same pixels and settings, with random weights in each family."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import openai
import pytest
import webuiapi
from gradio_client import Client, handle_file
from PIL import Image

from canvas import GenerationRequest, Studio
from canvas.api.a1111_controlnet import Unit
from canvas.cli import main as cli
from canvas.engine.control_detectors import recognize
from canvas.guidance import ControlImage, ReferenceImage
from canvas.history.infotext import read_infotext, write_infotext
from canvas.history.metadata import read_settings
from canvas.image_formats import data_url
from canvas.models.hub_client import Hub
from canvas.request import GeneratedImage
from tests.app_server import run_in_mcp_session
from tests.conftest import slow_params
from tests.tiny_guidance import CONTROL, FAMILIES, GuidedModel, guided_models, make_photo, pixels_of, starter_controlnet

PROMPT = "a red boat on a lake"
# webuiapi sends a sampler and a guidance of its own.
OTHERS: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 4.0, "scheduler": "Euler a", "seed": 21}
PHOTO = make_photo((160, 128))


class Expected(NamedTuple):
    """An image that was guided, its pixels, and the fields of the request but for what guides it."""

    image: GeneratedImage
    pixels: bytes
    fields: dict[str, Any]


@pytest.fixture(scope="module")
def models(served: Studio, hub_of_served: Hub) -> Iterator[dict[str, GuidedModel]]:
    """The models of all families and `starter`, each with what guides it."""
    with starter_controlnet(served) as name, guided_models(served, hub_of_served) as models:
        yield {**models, "starter": GuidedModel("starter", {**CONTROL, "model": name})}


@pytest.fixture(scope="module")
def studio(served: Studio, models: dict[str, GuidedModel]) -> Studio:
    return served


@pytest.fixture(scope="module", params=[FAMILIES[0], *slow_params("starter", *FAMILIES[1:])])
def model(request: pytest.FixtureRequest, models: dict[str, GuidedModel]) -> GuidedModel:
    return models[request.param]


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    PHOTO.save(path)
    return path


@pytest.fixture(scope="module")
def expected(studio: Studio, model: GuidedModel) -> Expected:
    side = min(128, studio.models[model.key].resolution)
    fields = {**OTHERS, "model_key": model.key, "width": side, "height": side}
    [plain] = studio.generate(GenerationRequest(PROMPT, **fields))
    guides: dict[str, Any] = model.guides(studio.inputs.upload(PHOTO).name)
    for name, items in guides.items():
        [image] = studio.generate(GenerationRequest(PROMPT, **fields, **{name: items}))
        assert pixels_of(studio, image) != pixels_of(studio, plain), name
    [image] = studio.generate(GenerationRequest(PROMPT, **fields, **guides))
    return Expected(image, pixels_of(studio, image), fields)


def with_gradio(studio: Studio, photo: Path, model: GuidedModel, fields: dict[str, Any]) -> None:
    client = Client(studio.url, verbose=False)  # type: ignore[attr-defined]
    client.predict(prompt=PROMPT, **fields, **model.guides(handle_file(str(photo))), api_name="/generate")


def with_mcp(studio: Studio, photo: Path, model: GuidedModel, fields: dict[str, Any]) -> None:
    arguments = {"prompt": PROMPT, **fields, **model.guides(data_url(photo.read_bytes(), "png"))}
    result = run_in_mcp_session(studio.url, lambda session: session.call_tool("generate", arguments))  # type: ignore[attr-defined]
    assert not result.isError, result.content


def with_openai(studio: Studio, photo: Path, model: GuidedModel, fields: dict[str, Any]) -> None:
    size, guides = f"{fields['width']}x{fields['height']}", model.guides(base64.b64encode(photo.read_bytes()).decode())
    openai_client(studio).images.generate(prompt=PROMPT, model=model.key, size=size, extra_body={**OTHERS, **guides})


def with_webuiapi(studio: Studio, photo: Path, model: GuidedModel, fields: dict[str, Any]) -> None:
    units = []
    if item := model.control:
        steps = {"guidance_start": item["start"], "guidance_end": item["end"], "resize_mode": "Crop and Resize"}
        unit = {"module": item["kind"], "model": item["model"], "weight": item["weight"]}
        units.append(webuiapi.ControlNetUnit(image=PHOTO, **unit, **steps))
    if item := model.reference:
        name = item["model"].removesuffix(".safetensors") or "None"
        units.append(webuiapi.ControlNetUnit(image=PHOTO, module="ip-adapter", model=name, weight=item["weight"]))
    result = webui(studio).txt2img(
        prompt=PROMPT,
        **{name: fields[name] for name in ("width", "height", "seed")},
        steps=4,
        cfg_scale=4.0,
        sampler_name="Euler a",
        override_settings={"sd_model_checkpoint": model.key},
        controlnet_units=units,
        alwayson_scripts={},  # webuiapi writes the units into its default, so that later calls send them, too
    )
    assert "controlnet" not in str(result.info.get("extra_generation_params"))


def with_cli(studio: Studio, photo: Path, model: GuidedModel, fields: dict[str, Any]) -> None:
    names = {"num_inference_steps": "steps", "guidance_scale": "guidance", "model_key": "model"}
    options = [text for name, value in fields.items() for text in (f"--{names.get(name, name)}", str(value))]
    for name, [item] in model.guides(photo).items():
        values = ",".join(f"{key}={value}" for key, value in item.items() if key != "image" and value != "")
        options += [f"--{name.removesuffix('_images')}", f"{photo},{values}"]
    with pytest.raises(SystemExit) as raised:
        cli.main(["generate", PROMPT, *options, "--data-dir", str(studio.settings.data_dir)])
    assert not raised.value.code


CLIENTS: dict[str, Callable[[Studio, Path, GuidedModel, dict[str, Any]], None]] = {
    "gradio": with_gradio,
    "mcp": with_mcp,
    "openai": with_openai,
    "sdapi": with_webuiapi,
    "cli": with_cli,
}


def openai_client(studio: Studio) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{studio.url}/v1", api_key="x", max_retries=0)  # type: ignore[attr-defined]


def webui(studio: Studio) -> Any:
    host, _, port = studio.url.removeprefix("http://").partition(":")  # type: ignore[attr-defined]
    return webuiapi.WebUIApi(host=host, port=int(port))


@pytest.mark.parametrize("client", CLIENTS)
def test_same_pixels_and_settings(
    studio: Studio, photo: Path, model: GuidedModel, expected: Expected, client: str
) -> None:
    before = len(studio.recent(limit=1000))
    CLIENTS[client](studio, photo, model, expected.fields)
    assert len(studio.recent(limit=1000)) == before + 1
    [image] = studio.recent(limit=1)
    name = next(item.image for item in (*image.request.control_images, *image.request.reference_images))
    assert image.request.control_images == tuple(
        ControlImage(name, detect=True, **item) for item in [model.control] if item
    )
    assert image.request.reference_images == tuple(ReferenceImage(name, **item) for item in [model.reference] if item)
    assert pixels_of(studio, image) == expected.pixels


def test_settings_are_read_back_from_the_file(studio: Studio, expected: Expected) -> None:
    read = read_settings(studio.image_path(expected.image.filename))
    assert read is not None
    assert read.request == expected.image.request
    request = GenerationRequest.from_dict(dict(read_infotext(write_infotext(expected.image)).values))
    assert request.control_images == expected.image.request.control_images
    assert request.reference_images == expected.image.request.reference_images
    [again] = studio.generate(read.request)
    assert pixels_of(studio, again) == expected.pixels


def test_clients_of_the_extension_get_its_lists_and_detector(studio: Studio) -> None:
    client = webui(studio)
    assert client.controlnet_version() == 2
    assert {"mine", "tiny-sdxl", "control_v11p_sd15_canny"} <= set(client.controlnet_model_list())
    assert {"none", "canny", "tile_resample"} <= set(client.controlnet_module_list())
    found = client.controlnet_detect([PHOTO], module="canny")
    assert found.image.size == PHOTO.size
    assert recognize(found.image) == "canny"


@pytest.mark.slow
def test_kinds_guide_the_built_in_model(studio: Studio) -> None:
    options = {"steps": 4, "seed": 21, "width": 128, "height": 128}
    webui(studio).txt2img(prompt=PROMPT, **options, alwayson_scripts={})
    images = studio.recent(limit=1)
    for module, kind in (("canny", "canny"), ("scribble_xdog", "scribble"), ("tile_resample", "tile")):
        unit = webuiapi.ControlNetUnit(image=PHOTO, module=module, model="mine")
        webui(studio).txt2img(prompt=PROMPT, **options, controlnet_units=[unit], alwayson_scripts={})
        images += studio.recent(limit=1)
        [item] = images[-1].request.control_images
        assert (item.kind, item.detect) == (kind, kind != "tile")
    assert len({pixels_of(studio, image) for image in images}) == 4


@pytest.mark.slow
def test_edits_are_guided(studio: Studio, model: GuidedModel) -> None:
    guides = model.guides(base64.b64encode(to_png(PHOTO)).decode())
    form = {"seed": "3", "num_inference_steps": "4", **{name: json.dumps(items) for name, items in guides.items()}}
    source = ("a.png", to_png(make_photo((128, 128))))
    openai_client(studio).images.edit(prompt=PROMPT, model=model.key, image=source, extra_body=form)
    [image] = studio.recent(limit=1)
    assert image.request.task == "image_to_image"
    assert [bool(image.request.control_images), bool(image.request.reference_images)] == [
        bool(model.control),
        bool(model.reference),
    ]
    [again] = studio.generate(image.request)
    [plain] = studio.generate(replace(image.request, control_images=(), reference_images=()))
    assert pixels_of(studio, again) == pixels_of(studio, image) != pixels_of(studio, plain)


def test_units_redraw_the_source_image_and_name_what_has_no_effect(studio: Studio) -> None:
    source = base64.b64encode(to_png(make_photo((128, 128)))).decode()
    unit = {"module": "none", "model": "mine", "resize_mode": 1, "control_mode": "My prompt is more important"}
    disabled = {"module": "canny", "model": "nothing", "enabled": False}
    body = {
        **{"prompt": PROMPT, "init_images": [source], "steps": 4, "seed": 5, "denoising_strength": 0.5},
        "alwayson_scripts": {"controlnet": {"args": [unit, disabled]}},
    }
    response = httpx.post(f"{studio.url}/sdapi/v1/img2img", json=body, timeout=60)  # type: ignore[attr-defined]
    assert response.status_code == 200, response.text
    notes = json.loads(response.json()["info"])["extra_generation_params"]["Notes"]
    assert "controlnet control_mode has no effect here." in notes
    [image] = studio.recent(limit=1)
    [item] = image.request.control_images
    assert (item.image, item.detect, item.kind) == (image.request.image, False, "canny")


def to_png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


GIVEN = {"image": data_url(to_png(PHOTO), "png")}


@pytest.mark.parametrize(
    ("key", "field", "item", "message"),
    [
        ("starter", "control", {"image": "missing.png"}, "There is no image"),
        ("starter", "control", {"kind": "canny"}, "control_images.0.image is required"),
        ("starter", "control", {**GIVEN, "kind": "magic"}, "list in which kind is one of auto, canny"),
        ("starter", "control", {**GIVEN, "weight": 9}, "weight is a number between 0 and 2 (got 9.0)"),
        ("starter", "control", GIVEN, "no usual ControlNet of the kind canny for the model starter"),
        ("starter", "control", {**GIVEN, "model": "other"}, "ControlNet other not found. Add a folder other"),
        ("starter", "control", {**GIVEN, "model": "../x"}, "not found"),
        ("starter", "control", {"image": "data:image/png;base64,AAAA"}, "it is not an image"),
        ("starter", "control", {**GIVEN, "kind": "pose", "detect": True, "model": "mine"}, "Poses cannot be detected"),
        (
            "starter",
            "control",
            {**GIVEN, "kind": "depth", "model": "mine"},
            "depth-anything/Depth-Anything-V2-Small-hf",
        ),
        ("tiny-sdxl", "control", {**GIVEN, "model": "tiny-sd15"}, "does not fit this model. Choose one for SDXL"),
        ("tiny-flux-dev", "control", {**GIVEN, "model": "tiny-sdxl"}, "does not fit this model. Choose one for FLUX.1"),
        ("tiny-flux2-klein", "control", GIVEN, "takes no control images. Choose a model of Stable Diffusion 1.5, SDXL"),
        ("tiny-flux2-klein", "control", {**GIVEN, "model": "tiny-sd15"}, "takes no control images"),
        ("tiny-sdxl", "reference", {**GIVEN, "model": "tiny-sd15.safetensors"}, "sd15.safetensors does not fit this"),
        (
            "tiny-sdxl",
            "reference",
            {**GIVEN, "model": "other"},
            "other not found in the folder ip_adapters (it has: tiny",
        ),
        ("tiny-flux-dev", "reference", GIVEN, "takes no reference images. Choose Stable Diffusion 1.5, SDXL or FLUX.2"),
        ("tiny-flux-dev", "reference", {**GIVEN, "model": "tiny-sd15.safetensors"}, "takes no reference images"),
        ("tiny-flux2-klein", "reference", {**GIVEN, "model": "tiny-sd15.safetensors"}, "Leave the name out"),
    ],
)
def test_wrong_input_is_a_sentence(studio: Studio, key: str, field: str, item: dict[str, Any], message: str) -> None:
    body = {"prompt": PROMPT, "model": key, "size": "64x64", f"{field}_images": [item]}
    response = httpx.post(f"{studio.url}/v1/images/generations", json=body, timeout=60)  # type: ignore[attr-defined]
    assert response.status_code in (400, 404, 503), response.text
    assert message in response.json()["error"]["message"]


def test_start_and_end_act_on_control_images_only(studio: Studio) -> None:
    unit = {"module": "ip-adapter", "guidance_start": 0.0, "guidance_end": 0.5}
    assert Unit(unit, studio.settings).notes() == ["controlnet guidance_end has no effect here."]
    assert Unit({**unit, "module": "canny"}, studio.settings).notes() == []


@pytest.mark.parametrize(
    ("unit", "message"),
    [
        ({"model": "mine"}, "Each ControlNet unit needs an image."),
        ({"model": "other", "image": GIVEN["image"]}, "one of control_v11p_sd15_canny, "),
        ({"module": "ip-adapter", "model": "other", "image": GIVEN["image"]}, "one of tiny-sd15, tiny-sdxl"),
        ({"module": "ip-adapter", "model": "ip-adapter_sd15", "image": GIVEN["image"]}, "no usual IP-Adapter"),
        ({"module": "depth_midas", "model": "mine", "image": GIVEN["image"]}, "depth-anything/"),
    ],
)
def test_wrong_unit_is_a_sentence(studio: Studio, unit: dict[str, Any], message: str) -> None:
    body = {"prompt": PROMPT, "alwayson_scripts": {"controlnet": {"args": [unit]}}}
    response = httpx.post(f"{studio.url}/sdapi/v1/txt2img", json=body, timeout=60)  # type: ignore[attr-defined]
    assert response.status_code in (400, 503), response.text
    assert message in response.json()["detail"]


def test_edits_take_several_images(studio: Studio) -> None:
    client = openai_client(studio)
    images = [("a.png", to_png(PHOTO)), ("b.png", to_png(make_photo()))]
    with pytest.raises(openai.BadRequestError, match="The model starter has layers of its own"):
        client.images.edit(prompt=PROMPT, image=images)
    with pytest.raises(openai.BadRequestError, match="a list of at most 3 objects"):
        client.images.edit(prompt=PROMPT, image=[*images, *images, *images])
    client.images.edit(prompt=PROMPT, image=images, model="tiny-flux2-klein")
    [image] = studio.recent(limit=1)
    [item] = image.request.reference_images
    assert item == ReferenceImage(item.image)
    assert item.image != image.request.image
