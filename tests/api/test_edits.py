"""Image to image, inpainting and upscaling through every API that has them."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import webuiapi
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from canvas import GenerationRequest, Studio
from tests.app_server import run_in_mcp_session

FAST = {"num_inference_steps": 4, "seed": 9}


@pytest.fixture(scope="module")
def start(served: Studio) -> Path:
    request = GenerationRequest("a red boat on a lake", num_inference_steps=4, seed=51)
    [image] = served.generate(request)
    return served.image_path(image.filename)


@pytest.fixture
def client(url: str, tmp_path: Path) -> Client:
    return Client(url, verbose=False, download_files=str(tmp_path))


@pytest.fixture
def openai_client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0)


def to_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def pixels_of(source: Path | str | bytes) -> np.ndarray:
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def right_half() -> Image.Image:
    mask = Image.new("L", (256, 256))
    mask.paste(255, (128, 0, 256, 256))
    return mask


def assert_only_right_half_changed(before: np.ndarray, after: np.ndarray) -> None:
    assert (before[:, :128] == after[:, :128]).all()
    assert (before[:, 128:] != after[:, 128:]).any()


@pytest.mark.slow
def test_gradio_inpaints(client: Client, served: Studio, start: Path, tmp_path: Path) -> None:
    right_half().save(tmp_path / "mask.png")
    file, settings = client.predict(
        "a green tree", handle_file(start), mask_image=handle_file(tmp_path / "mask.png"), **FAST, api_name="/edit"
    )
    assert settings["task"] == "inpaint"
    assert_only_right_half_changed(pixels_of(start), pixels_of(file))
    assert served.recent(limit=1)[0].request.task == "inpaint"


def test_gradio_upscales(client: Client, start: Path) -> None:
    file, settings = client.predict(handle_file(start), scale=2, api_name="/upscale")
    assert pixels_of(file).shape == (512, 512, 3)
    assert settings["task"] == "upscale"


@pytest.mark.parametrize("path", ["/etc/passwd", "ai_images.db", "../x.png", "", "\x00", None, 3])
@pytest.mark.parametrize("name", ["edit", "upscale"])
def test_gradio_rejects_files_that_were_not_uploaded(url: str, path: Any, name: str) -> None:
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    data = ["a tree", file] if name == "edit" else [file]
    response = httpx.post(f"{url}/gradio_api/call/{name}", json={"data": data})
    if response.status_code == 200:
        event_id = response.json()["event_id"]
        events = httpx.get(f"{url}/gradio_api/call/{name}/{event_id}", timeout=60).text
        assert "event: error" in events
        assert "root:" not in events


@pytest.mark.slow
@pytest.mark.parametrize("name", ["edit", "upscale"])
def test_gradio_starts_from_an_image_id(client: Client, served: Studio, start: Path, name: str) -> None:
    image_id = served.image_by_filename(start.name).id
    params = {"prompt": "a green tree", "num_inference_steps": 4} if name == "edit" else {}
    client.predict(**params, image_id=image_id, api_name=f"/{name}")
    assert served.recent(limit=1)[0].parent_id == image_id
    for unknown in (10**9, 0, "x"):
        with pytest.raises(AppError, match=r"(?i)image"):
            client.predict(**params, image_id=unknown, api_name=f"/{name}")


@pytest.mark.slow
def test_mcp_inpaints(url: str, start: Path) -> None:
    def data_url(content: bytes) -> str:
        return "data:image/png;base64," + base64.b64encode(content).decode()

    arguments = {"prompt": "a tree", "num_inference_steps": 4}
    arguments |= {"image": data_url(start.read_bytes()), "mask_image": data_url(to_png(right_half()))}
    result = run_in_mcp_session(url, lambda session: session.call_tool("edit", arguments))
    assert not result.isError, result.content
    after = pixels_of(base64.b64decode(result.content[0].data))
    assert_only_right_half_changed(pixels_of(start), after)


def test_gradio_rejects_other_files(client: Client, tmp_path: Path) -> None:
    (tmp_path / "no.png").write_text("text", encoding="utf-8")
    with pytest.raises(AppError, match="not an image"):
        client.predict("a tree", handle_file(tmp_path / "no.png"), api_name="/edit")


def test_openai_edit(openai_client: openai.OpenAI, served: Studio, start: Path) -> None:
    response = openai_client.images.edit(
        image=start, prompt="a green tree", response_format="b64_json", extra_body=FAST
    )
    [image] = served.recent(limit=1)
    assert image.request.task == "image_to_image"
    assert image.request.seed == 9
    content = base64.b64decode(response.data[0].b64_json)
    assert content == served.image_path(image.filename).read_bytes()


def test_openai_edit_inpaints_where_the_mask_is_transparent(openai_client: openai.OpenAI, start: Path) -> None:
    mask = Image.new("RGBA", (256, 256))
    mask.putalpha(right_half().point(lambda value: 255 - value))
    response = openai_client.images.edit(
        image=start.read_bytes(), mask=to_png(mask), prompt="a green tree", response_format="b64_json", extra_body=FAST
    )
    after = pixels_of(base64.b64decode(response.data[0].b64_json))
    assert_only_right_half_changed(pixels_of(start), after)


def test_openai_edit_without_a_mask_uses_the_holes_of_the_image(openai_client: openai.OpenAI, start: Path) -> None:
    with Image.open(start) as opened:
        image = opened.convert("RGBA")
    image.putalpha(right_half().point(lambda value: 255 - value))
    response = openai_client.images.edit(
        image=to_png(image), prompt="a green tree", response_format="b64_json", extra_body=FAST
    )
    after = pixels_of(base64.b64decode(response.data[0].b64_json))
    assert_only_right_half_changed(pixels_of(start), after)


@pytest.mark.parametrize(
    ("values", "files", "param", "message"),
    [
        ({}, [("image", None), ("mask", to_png(right_half()))], "mask", "no transparent pixels"),
        ({}, [("image", None), ("mask", b"text")], "mask", "not an image"),
        ({}, [("image[]", None), ("image[]", None)], "reference_images", "no usual IP-Adapter"),
        ({"background": "transparent"}, [("image", None)], "background", "'auto' or 'opaque'"),
    ],
)
def test_openai_refuses_what_an_edit_cannot_do(
    url: str, start: Path, values: dict[str, str], files: list[tuple[str, bytes | None]], param: str, message: str
) -> None:
    sent = [(name, ("a.png", start.read_bytes() if content is None else content)) for name, content in files]
    response = httpx.post(f"{url}/v1/images/edits", data={"prompt": "a tree", **values}, files=sent)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert message in response.json()["error"]["message"]


def test_openai_refuses_a_transparent_background(url: str) -> None:
    body = {"prompt": "a tree", "background": "transparent"}
    response = httpx.post(f"{url}/v1/images/generations", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "background"
    for background in ("auto", "opaque"):
        body = {"prompt": "a tree", "background": background, "num_inference_steps": 1}
        assert httpx.post(f"{url}/v1/images/generations", json=body, timeout=60).status_code == 200


def test_openai_variation_uses_the_embedded_prompt(openai_client: openai.OpenAI, served: Studio, start: Path) -> None:
    with pytest.deprecated_call():  # by OpenAI, which has removed its model for variations
        openai_client.images.create_variation(image=start, n=2, extra_body=FAST)
    second, first = served.recent(limit=2)
    assert first.request.prompt == second.request.prompt == "a red boat on a lake"
    assert (first.request.seed, second.request.seed) == (9, 10)


@pytest.mark.parametrize("path", ["edits", "variations"])
@pytest.mark.parametrize(
    ("values", "files", "param"),
    [
        ({"prompt": "a tree"}, {}, "image"),
        ({"prompt": "a tree", "image": "text"}, {}, "image"),
        ({"prompt": "a tree"}, {"image": b""}, "image"),
        ({"prompt": "a tree"}, {"image": b"text"}, "image"),
        ({"prompt": "a tree", "n": "many"}, {"image": None}, "n"),
        ({"prompt": "a tree", "strength": "7"}, {"image": None}, "strength"),
    ],
)
def test_openai_names_the_invalid_field_of_a_form(
    url: str, start: Path, path: str, values: dict[str, str], files: dict[str, bytes | None], param: str
) -> None:
    sent = {name: start.read_bytes() if content is None else content for name, content in files.items()}
    response = httpx.post(f"{url}/v1/images/{path}", data=values, files=sent or None)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_a1111_img2img_and_inpainting(url: str, served: Studio, start: Path) -> None:
    host, _, port = url.removeprefix("http://").partition(":")
    client = webuiapi.WebUIApi(host=host, port=int(port), sampler="DDIM", steps=4)
    with Image.open(start) as image:
        params = {"images": [image], "prompt": "a green tree", "seed": 9, "width": 256, "height": 256}
        client.img2img(**params, denoising_strength=0.5).image.close()
        assert served.recent(limit=1)[0].request.strength == 0.5
        inpainted = client.img2img(**params, mask_image=right_half())
    client.session.close()
    after = np.asarray(inpainted.image.convert("RGB")).astype(int)
    inpainted.image.close()
    assert_only_right_half_changed(pixels_of(start), after)
    assert "init_images" not in inpainted.parameters


def half(background: tuple[int, ...], color: tuple[int, ...]) -> Image.Image:
    """An A1111 mask with strokes on its left half."""
    mask = Image.new("RGBA", (256, 256), background)
    mask.paste(color, (0, 0, 128, 256))
    return mask


@pytest.mark.slow
@pytest.mark.parametrize("invert", [0, 1])
@pytest.mark.parametrize(
    ("background", "color"),
    [
        ((0, 0, 0, 0), (0, 0, 0, 255)),
        ((0, 0, 0, 0), (255, 0, 0, 255)),
        ((255, 255, 255, 0), (255, 255, 255, 255)),
        ((0, 0, 0, 255), (255, 255, 255, 200)),
        ((0, 0, 0, 255), (255, 255, 255, 130)),
    ],
)
def test_a1111_changes_only_what_the_mask_marks(
    url: str, start: Path, background: tuple[int, ...], color: tuple[int, ...], invert: int
) -> None:
    body = {
        "prompt": "a fox",
        "init_images": [base64.encodebytes(start.read_bytes()).decode()],
        "mask": base64.b64encode(to_png(half(background, color))).decode(),
        "mask_blur": 0,
        "inpainting_mask_invert": invert,
        "denoising_strength": 0.9,
        "steps": 3,
        "width": 256,
        "height": 256,
    }
    response = httpx.post(f"{url}/sdapi/v1/img2img", json=body, timeout=60)
    after = pixels_of(base64.b64decode(response.json()["images"][0]))
    changed = (after != pixels_of(start)).any(-1)
    left, right = changed[:, :128], changed[:, 128:]
    assert not (left if invert else right).any()
    assert (right if invert else left).mean() > 0.5


def test_a1111_img2img_has_the_requested_size(url: str, start: Path) -> None:
    body = {"prompt": "a fox", "init_images": [base64.b64encode(start.read_bytes()).decode()], "steps": 2}
    response = httpx.post(f"{url}/sdapi/v1/img2img", json={**body, "width": 597, "height": 33}, timeout=60)
    assert pixels_of(base64.b64decode(response.json()["images"][0])).shape == (33, 597, 3)


def test_a1111_upscales(url: str, start: Path) -> None:
    body = {"image": base64.b64encode(start.read_bytes()).decode(), "upscaling_resize": 4, "upscaler_1": "Lanczos"}
    address = f"{url}/sdapi/v1/extra-single-image"
    result = httpx.post(address, json=body, timeout=60).json()
    assert pixels_of(base64.b64decode(result["image"])).shape == (1024, 1024, 3)
    assert httpx.post(address, json={**body, "upscaling_resize": 3}).status_code == 400


@pytest.mark.parametrize("images", [None, [], ["!"], ["QUJD"], ["QUJD", "QUJD"]])
def test_a1111_rejects_other_data(url: str, images: list[str] | None) -> None:
    body = {"prompt": "a tree", "init_images": images}
    response = httpx.post(f"{url}/sdapi/v1/img2img", json=body)
    assert response.status_code == 400
    assert "image" in response.json()["detail"]
