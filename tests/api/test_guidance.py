"""Control images through every API: the same pixels and settings, with a ControlNet of random weights for `starter`."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
import webuiapi
from gradio_client import Client, handle_file
from PIL import Image

from canvas import GenerationRequest, Studio
from canvas.catalog import ASSETS
from canvas.cli import main as cli
from canvas.engine.control_detectors import recognize
from canvas.guidance import ControlImage
from canvas.history.infotext import read_infotext, write_infotext
from canvas.history.metadata import read_settings
from canvas.image_formats import data_url
from tests.app_server import run_in_mcp_session
from tests.tiny_guidance import make_photo, make_tiny_controlnet

PROMPT = "a red boat on a lake"
# webuiapi sends a sampler and a guidance of its own.
OTHERS: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 4.0, "scheduler": "Euler a", "seed": 21}
FIELDS: dict[str, Any] = {**OTHERS, "width": 128, "height": 128}
SETTINGS: dict[str, Any] = {"kind": "canny", "weight": 0.8, "start": 0.0, "end": 0.75, "model": "mine"}
PHOTO = make_photo((160, 128))


@pytest.fixture(scope="module")
def studio(served: Studio) -> Iterator[Studio]:
    served.warm_up(wait=True)  # imports diffusers in another thread
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(ASSETS / "starter" / "unet")
    make_tiny_controlnet(SimpleNamespace(unet=unet, vae_scale_factor=16), served.settings.controlnets_dir / "mine")
    yield served
    for path in (served.settings.controlnets_dir / "mine").iterdir():
        path.unlink()


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    PHOTO.save(path)
    return path


@pytest.fixture(scope="module")
def expected(studio: Studio) -> bytes:
    name = studio.inputs.upload(PHOTO).name
    [plain] = studio.generate(GenerationRequest(PROMPT, **FIELDS))
    [image] = studio.generate(GenerationRequest(PROMPT, **FIELDS, control_images=({"image": name, **SETTINGS},)))
    assert image.request.control_images == (ControlImage(name, detect=True, **SETTINGS),)
    pixels = pixels_of(studio.image_path(image.filename).read_bytes())
    assert pixels != pixels_of(studio.image_path(plain.filename).read_bytes())
    return pixels


def pixels_of(content: bytes) -> bytes:
    with Image.open(io.BytesIO(content)) as image:
        return image.tobytes()


def latest(studio: Studio) -> tuple[ControlImage, bytes]:
    [image] = studio.recent(limit=1)
    return image.request.control_images[0], pixels_of(studio.image_path(image.filename).read_bytes())


def with_gradio(studio: Studio, photo: Path) -> None:
    client = Client(studio.url, verbose=False)  # type: ignore[attr-defined]
    items = [{"image": handle_file(str(photo)), **SETTINGS}]
    client.predict(prompt=PROMPT, **FIELDS, control_images=items, api_name="/generate")


def with_mcp(studio: Studio, photo: Path) -> None:
    items = [{"image": data_url(photo.read_bytes(), "png"), **SETTINGS}]
    arguments = {"prompt": PROMPT, **FIELDS, "control_images": items}
    result = run_in_mcp_session(studio.url, lambda session: session.call_tool("generate", arguments))  # type: ignore[attr-defined]
    assert not result.isError, result.content


def with_openai(studio: Studio, photo: Path) -> None:
    client = openai.OpenAI(base_url=f"{studio.url}/v1", api_key="x", max_retries=0)  # type: ignore[attr-defined]
    items = [{"image": base64.b64encode(photo.read_bytes()).decode(), **SETTINGS}]
    client.images.generate(prompt=PROMPT, size="128x128", extra_body={**OTHERS, "control_images": items})


def with_webuiapi(studio: Studio, photo: Path) -> None:
    client = webui(studio)
    unit = webuiapi.ControlNetUnit(
        image=PHOTO,
        module="canny",
        model="mine",
        weight=0.8,
        guidance_start=0.0,
        guidance_end=0.75,
        resize_mode="Crop and Resize",
    )
    options = {"steps": 4, "seed": 21, "width": 128, "height": 128, "cfg_scale": 4.0, "sampler_name": "Euler a"}
    # A dict of our own: webuiapi writes the units into its default, so that later calls send them too
    result = client.txt2img(prompt=PROMPT, **options, controlnet_units=[unit], alwayson_scripts={})
    assert "ControlNet" not in str(result.info.get("extra_generation_params"))


def with_cli(studio: Studio, photo: Path) -> None:
    options = ["--steps", "4", "--seed", "21", "--width", "128", "--height", "128"]
    options += ["--guidance", "4", "--scheduler", "Euler a"]
    settings = ",".join(f"{name}={value}" for name, value in SETTINGS.items())
    folder = ["--data-dir", str(studio.settings.data_dir)]
    with pytest.raises(SystemExit) as raised:
        cli.main(["generate", PROMPT, *options, "--control", f"{photo},{settings}", *folder])
    assert not raised.value.code


CLIENTS: dict[str, Callable[[Studio, Path], None]] = {
    "gradio": with_gradio,
    "mcp": with_mcp,
    "openai": with_openai,
    "sdapi": with_webuiapi,
    "cli": with_cli,
}


def webui(studio: Studio) -> Any:
    host, _, port = studio.url.removeprefix("http://").partition(":")  # type: ignore[attr-defined]
    return webuiapi.WebUIApi(host=host, port=int(port))


@pytest.mark.parametrize("client", CLIENTS)
def test_same_pixels_and_settings(studio: Studio, photo: Path, expected: bytes, client: str) -> None:
    before = len(studio.recent(limit=1000))
    CLIENTS[client](studio, photo)
    assert len(studio.recent(limit=1000)) == before + 1
    item, pixels = latest(studio)
    assert item == ControlImage(item.image, detect=True, **SETTINGS)
    assert pixels == expected


def test_settings_are_read_back_from_the_file(studio: Studio, expected: bytes) -> None:
    [image] = studio.recent(limit=1)
    read = read_settings(studio.image_path(image.filename))
    assert read is not None
    assert read.request == image.request
    fields = read_infotext(write_infotext(image)).values
    assert GenerationRequest.from_dict(dict(fields)).control_images == image.request.control_images
    [again] = studio.generate(read.request)
    assert pixels_of(studio.image_path(again.filename).read_bytes()) == expected


def test_clients_of_the_extension_get_its_lists_and_detector(studio: Studio) -> None:
    client = webui(studio)
    assert client.controlnet_version() == 2
    assert {"mine", "control_v11p_sd15_canny"} <= set(client.controlnet_model_list())
    assert {"none", "canny", "tile_resample"} <= set(client.controlnet_module_list())
    found = client.controlnet_detect([PHOTO], module="canny")
    assert found.image.size == PHOTO.size
    assert recognize(found.image) == "canny"


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


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"image": "missing.png"}, "There is no image"),
        ({"image": data_url(to_png(PHOTO), "png"), "kind": "magic"}, "list in which kind is one of auto, canny"),
        ({"image": data_url(to_png(PHOTO), "png"), "weight": 9}, "weight is a number between 0 and 2 (got 9.0)"),
        ({"image": data_url(to_png(PHOTO), "png")}, "no usual ControlNet of the kind canny for the model starter"),
        ({"image": data_url(to_png(PHOTO), "png"), "model": "other"}, "ControlNet other not found. Add a folder other"),
        ({"image": data_url(to_png(PHOTO), "png"), "model": "../x"}, "not found"),
        ({"image": "data:image/png;base64,AAAA"}, "it is not an image"),
    ],
)
def test_wrong_input_is_a_sentence(studio: Studio, item: dict[str, Any], message: str) -> None:
    body = {"prompt": PROMPT, "control_images": [item]}
    response = httpx.post(f"{studio.url}/v1/images/generations", json=body, timeout=60)  # type: ignore[attr-defined]
    assert response.status_code in (400, 404), response.text
    assert message in response.json()["error"]["message"]


def test_edits_take_several_images(studio: Studio) -> None:
    client = openai.OpenAI(base_url=f"{studio.url}/v1", api_key="x", max_retries=0)  # type: ignore[attr-defined]
    images = [("a.png", to_png(PHOTO)), ("b.png", to_png(make_photo()))]
    with pytest.raises(openai.BadRequestError, match="The model starter has layers of its own"):
        client.images.edit(prompt=PROMPT, image=images)
    with pytest.raises(openai.BadRequestError, match="a list of at most 3 objects"):
        client.images.edit(prompt=PROMPT, image=[*images, *images, *images])
