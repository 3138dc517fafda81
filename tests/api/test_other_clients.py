"""What clients of other programs send on their defaults, from their documented requests."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from canvas import Studio
from canvas.history.api_keys import ApiKeyStore
from canvas.request import UPSCALERS
from canvas.server.security import LINK_LIFETIME, SignedLinks
from tests.app_server import serving

FAST = {"num_inference_steps": 1}
# Processed.js() of A1111 1.10, which sd-backend-client (IntraPaint) validates.
INFO_FIELDS = {
    *("prompt", "all_prompts", "negative_prompt", "all_negative_prompts", "seed", "all_seeds", "subseed"),
    *("all_subseeds", "subseed_strength", "width", "height", "sampler_name", "cfg_scale", "steps", "batch_size"),
    *("restore_faces", "face_restoration_model", "sd_model_name", "sd_model_hash", "sd_vae_name", "sd_vae_hash"),
    *("seed_resize_from_w", "seed_resize_from_h", "denoising_strength", "extra_generation_params"),
    *("index_of_first_image", "infotexts", "styles", "job_timestamp", "clip_skip"),
    *("is_using_inpainting_conditioning", "version"),
}


def decode(content: str) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    image.load()
    return image


def encode(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def post(url: str, path: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{url}/sdapi/v1/{path}", json=body, timeout=120)


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0)


# /v1


def test_images_are_base64_and_a_url_whatever_the_client_sends(client: openai.OpenAI) -> None:
    for format_ in ({}, {"response_format": "url"}, {"response_format": "b64_json"}):
        [item] = client.images.generate(prompt="a fox", extra_body=FAST, **format_).data
        assert httpx.get(item.url).content == base64.b64decode(item.b64_json)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["gpt-image-1", "dall-e-3", "dall-e-2", "gpt-image-1-mini", "chatgpt-image-latest"])
def test_names_of_openai_mean_the_default_model(
    client: openai.OpenAI, served: Studio, model: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "canvas"):
        response = client.images.with_raw_response.generate(prompt="a fox", model=model, extra_body=FAST)
    assert response.headers["x-canvas-model"] == "starter" == served.recent(limit=1)[0].request.model_key
    assert f"The model {model} stands for the default model starter." in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("size", ["1024x1024", "768x768", "1792x1024", "257x255", "64x2048"])
def test_sizes_that_the_model_cannot_draw_are_scaled_and_said(client: openai.OpenAI, served: Studio, size: str) -> None:
    response = client.images.generate(prompt="a fox", size=size, extra_body=FAST)
    [item] = response.data
    [image] = served.recent(limit=1)
    assert response.size == "{}x{}".format(*decode(item.b64_json).size) == "{}x{}".format(*image.request.size) == size
    if size != "257x255":
        assert f"[{image.notes[0]}]" in item.revised_prompt
        assert f"scaled to {size}" in image.notes[0]


def test_streams_of_edits_have_their_own_events(client: openai.OpenAI) -> None:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 90).convert("RGB").save(file, "PNG")
    stream = client.images.edit(
        image=("a.png", file.getvalue()),
        prompt="a fox",
        stream=True,
        partial_images=1,
        extra_body={"num_inference_steps": 12, "strength": 0.9},
    )
    types = [event.type for event in stream]
    assert types[-1] == "image_edit.completed"
    assert set(types) <= {"image_edit.partial_image", "image_edit.completed"}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("POST", "/v1/chat/completions", 404), ("GET", "/v1/", 404), ("GET", "/v1/images/generations", 405)],
)
def test_unknown_paths_are_error_objects(url: str, method: str, path: str, status: int) -> None:
    response = httpx.request(method, url + path)
    assert response.status_code == status
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert response.json()["error"]["code"] == "unknown_url"


# /sdapi


@pytest.mark.slow
def test_the_size_is_that_of_the_request(url: str) -> None:
    for side in (512, 768):
        response = post(url, "txt2img", {"prompt": "a fox", "width": side, "height": side, "steps": 1}).json()
        info = json.loads(response["info"])
        assert decode(response["images"][0]).size == (side, side) == (info["width"], info["height"])
    assert "scaled to 768x768" in info["extra_generation_params"]["Notes"]


def test_info_has_the_fields_of_a1111(url: str) -> None:
    info = json.loads(post(url, "txt2img", {"prompt": "a fox", "steps": 1, "width": 64, "height": 64}).json()["info"])
    assert set(info) == INFO_FIELDS
    assert isinstance(info["sd_model_hash"], str)
    assert info["extra_generation_params"].keys() <= {"Notes"}


def test_enable_hr_upscales_with_detail(url: str, served: Studio) -> None:
    body = {"prompt": "{a fox}", "steps": 1, "width": 128, "height": 128, "enable_hr": True, "hr_scale": 2}
    response = post(url, "txt2img", {**body, "denoising_strength": 0.5, "hr_upscaler": "Latent", "seed": 5})
    [image, first] = served.recent(limit=2)
    assert decode(response.json()["images"][0]).size == (256, 256)
    assert (image.request.upscaler, image.request.strength, image.parent_id) == ("detail", 0.5, first.id)
    assert image.request.prompt == first.request.prompt == "{a fox}"
    refused = post(url, "txt2img", {**body, "hr_scale": 1.5})
    assert refused.status_code == 422
    assert "Hr scale must be 2 or 4 (got 1.5)." in refused.json()["detail"]
    assert served.recent(limit=1) == [image]


def test_what_has_no_effect_is_named(url: str) -> None:
    body = {
        **{"prompt": "a fox", "steps": 1, "width": 64, "height": 64, "restore_faces": True, "tiling": True},
        **{"alwayson_scripts": {"ADetailer": {"args": [True]}, "empty": {"args": []}}, "refiner_checkpoint": "x"},
        **{"styles": ["anime", "mine"], "override_settings": {"CLIP_stop_at_last_layers": 2, "sd_vae": "Automatic"}},
        **{"scheduler": "Exponential", "sampler_name": "Euler a", "save_images": True},
    }
    notes = json.loads(post(url, "txt2img", body).json()["info"])["extra_generation_params"]["Notes"]
    for name in ("restore_faces", "tiling", "(ADetailer)", "refiner_checkpoint", "(mine)", "CLIP_stop", "Exponential"):
        assert name in notes
    for name in ("empty", "(anime)", "sd_vae", "save_images"):
        assert name not in notes


def test_scripts_are_refused(url: str) -> None:
    response = post(url, "txt2img", {"prompt": "a fox", "script_name": "X/Y/Z plot"})
    assert response.status_code == 422
    assert "X/Y/Z plot" in response.json()["detail"]


@pytest.mark.parametrize(("name", "mime"), [("png", "PNG"), ("jpg", "JPEG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_samples_format_is_the_format(url: str, name: str, mime: str) -> None:
    body = {"prompt": "a fox", "steps": 1, "width": 64, "height": 64, "override_settings": {"samples_format": name}}
    assert decode(post(url, "txt2img", body).json()["images"][0]).format == mime


@pytest.mark.parametrize(
    ("sampler", "scheduler"),
    [("k_euler_a", "Euler a"), ("DPM++ 2M Karras", "DPM++ 2M Karras"), ("PLMS", "PNDM"), ("UniPC", "UniPC")],
)
def test_sampler_names_of_clients(url: str, sampler: str, scheduler: str) -> None:
    body = {"prompt": "a fox", "steps": 2, "width": 64, "height": 64, "sampler_name": sampler}
    assert json.loads(post(url, "txt2img", body).json()["info"])["sampler_name"] == scheduler


def test_upscalers_of_clients(url: str) -> None:
    names = [upscaler["name"] for upscaler in httpx.get(f"{url}/sdapi/v1/upscalers").json()]
    assert names == [*UPSCALERS, "R-ESRGAN 4x+", "R-ESRGAN 4x+ Anime6B"]
    body = {"image": encode(Image.new("RGB", (32, 16), "red")), "upscaler_1": "R-ESRGAN 4x+ Anime6B"}
    assert decode(post(url, "extra-single-image", body).json()["image"]).size == (64, 32)
    assert post(url, "extra-single-image", {**body, "upscaler_1": "SwinIR"}).status_code == 422
    response = post(url, "extra-single-image", {**body, "upscaling_resize": 3})
    assert response.json()["detail"] == "Upscaling resize must be 2 or 4 (got 3.0)."
    named = post(url, "extra-single-image", {**body, "gfpgan_visibility": 0.5, "upscaler_2": "None"}).json()
    assert named["html_info"] == "gfpgan_visibility has no effect here."
    batch = {"imageList": [{"data": body["image"], "name": "a.png"}] * 2, "upscaler_1": "None"}
    assert [decode(image).size for image in post(url, "extra-batch-images", batch).json()["images"]] == [(64, 32)] * 2


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        *(("POST", path, 200) for path in ("unload-checkpoint", "reload-checkpoint", "refresh-loras")),
        *(("POST", path, 501) for path in ("skip", "interrogate")),
        *(("GET", path, 200) for path in ("script-info", "realesrgan-models")),
        ("POST", "refresh-checkpoints", 200),
    ],
)
def test_other_routes_of_a1111(url: str, served: Studio, method: str, path: str, status: int) -> None:
    response = httpx.request(method, f"{url}/sdapi/v1/{path}", json={} if method == "POST" else None, timeout=60)
    assert response.status_code == status
    if status == 501:
        assert response.json()["detail"]
    if path == "unload-checkpoint":
        assert not served.is_loaded("starter")


# Links under --auth


@pytest.mark.slow
def test_links_under_a_login_are_signed(tmp_path_factory: pytest.TempPathFactory) -> None:
    with serving(tmp_path_factory.mktemp("links"), auth=("ann", "secret")) as studio:
        key = ApiKeyStore(studio.database).create("client")
        client = openai.OpenAI(base_url=f"{studio.url}/v1", api_key=key)
        [item] = client.images.generate(prompt="a fox", extra_body=FAST).data
        assert httpx.get(item.url).content == base64.b64decode(item.b64_json)
        plain = item.url.partition("?")[0]
        assert httpx.get(plain).status_code == 401
        assert httpx.get(f"{item.url[:-1]}{'1' if item.url[-1] == '0' else '0'}").status_code == 401
        [other] = client.images.generate(prompt="a cat", extra_body=FAST).data
        query = item.url.partition("?")[2]
        assert httpx.get(f"{other.url.partition('?')[0]}?{query}").status_code == 401
        assert httpx.get(f"{studio.url}/export.zip?{query}").status_code == 401


def test_links_expire() -> None:
    seconds = [1000.0]
    links = SignedLinks(b"secret", lambda: seconds[0])
    query = links.query("a.png")
    assert links.is_valid("a.png", query)
    assert not links.is_valid("b.png", query)
    assert not SignedLinks(b"other", lambda: 0.0).is_valid("a.png", query)
    seconds[0] += LINK_LIFETIME
    assert not links.is_valid("a.png", query)
    for invalid in ("", "expires=&signature=", "expires=9e99&signature=x", "expires=²&signature=ß", "&&="):
        assert not links.is_valid("a.png", invalid)


def test_the_openapi_description_has_replies_and_a_key(url: str) -> None:
    schema = httpx.get(f"{url}/openapi.json").json()
    assert schema["components"]["securitySchemes"]["ApiKey"]["scheme"] == "bearer"
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"] != "Nothing", path
            assert operation["description"], (method, path)
            contents = operation["responses"]["200"].get("content", {})
            assert any(content.get("schema") for content in contents.values()), (method, path, operation)
