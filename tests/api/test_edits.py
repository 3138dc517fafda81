"""Pictures from pictures, through every door that takes them."""

from __future__ import annotations

import asyncio
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
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client
from PIL import Image

from canvas import GenerationRequest, Studio

FAST = {"num_inference_steps": 4, "seed": 9}


@pytest.fixture(scope="module")
def start(served: Studio) -> Path:
    wish = GenerationRequest("a red boat on a lake", num_inference_steps=4, seed=51)
    [picture] = served.generate(wish)
    return served.image_path(picture.filename)


@pytest.fixture
def client(url: str, tmp_path: Path) -> Client:
    return Client(url, verbose=False, download_files=str(tmp_path))


@pytest.fixture
def openai_client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0)


def in_png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    return buffer.getvalue()


def values_in(source: Path | str | bytes) -> np.ndarray:
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def right_half() -> Image.Image:
    mask = Image.new("L", (256, 256))
    mask.paste(255, (128, 0, 256, 256))
    return mask


def test_gradio_edits_and_masks(
    client: Client, served: Studio, start: Path, tmp_path: Path
) -> None:
    right_half().save(tmp_path / "mask.png")
    picture, settings = client.predict(
        "a green tree",
        handle_file(start),
        mask_image=handle_file(tmp_path / "mask.png"),
        num_inference_steps=4,
        seed=9,
        api_name="/edit",
    )
    assert settings["task"] == "inpaint"
    before, after = values_in(start), values_in(picture)
    assert (before[:, :128] == after[:, :128]).all()
    assert (before[:, 128:] != after[:, 128:]).any()
    assert served.recent(limit=1)[0].request.task == "inpaint"


def test_gradio_enlarges(client: Client, start: Path) -> None:
    picture, settings = client.predict(handle_file(start), scale=2, api_name="/upscale")
    assert values_in(picture).shape == (512, 512, 3)
    assert settings["task"] == "upscale"


@pytest.mark.parametrize("path", ["/etc/passwd", "ai_images.db", "../x.png", "", "\x00", None, 3])
@pytest.mark.parametrize("name", ["edit", "upscale"])
def test_gradio_takes_no_file_of_the_server(url: str, path: Any, name: str) -> None:
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    data = ["a tree", file] if name == "edit" else [file]
    answer = httpx.post(f"{url}/gradio_api/call/{name}", json={"data": data})
    if answer.status_code == 200:
        event = answer.json()["event_id"]
        told = httpx.get(f"{url}/gradio_api/call/{name}/{event}", timeout=60).text
        assert "event: error" in told
        assert "root:" not in told


@pytest.mark.parametrize("name", ["edit", "upscale"])
def test_gradio_starts_from_an_own_picture(
    client: Client, served: Studio, start: Path, name: str
) -> None:
    number = served.database.image_by_filename(start.name).id
    words = {"prompt": "a green tree", "num_inference_steps": 4} if name == "edit" else {}
    client.predict(**words, image_id=number, api_name=f"/{name}")
    [kept] = served.recent(limit=1)
    assert kept.parent_id == number
    for strange in (10**9, 0, "x"):
        with pytest.raises(AppError, match=r"picture|image_id"):
            client.predict(**words, image_id=strange, api_name=f"/{name}")


def test_agents_edit_with_a_mask(url: str, served: Studio, start: Path) -> None:
    def link(content: bytes) -> str:
        return "data:image/png;base64," + base64.b64encode(content).decode()

    wish = {"prompt": "a tree", "num_inference_steps": 4, "image": link(start.read_bytes())}
    wish["mask_image"] = link(in_png(right_half()))

    async def ask() -> Any:
        async with (
            streamablehttp_client(f"{url}/gradio_api/mcp/") as (reading, writing, _),
            ClientSession(reading, writing) as session,
        ):
            await session.initialize()
            return await session.call_tool("edit", wish)

    result = asyncio.run(ask())
    assert not result.isError, result.content
    before, after = values_in(start), values_in(base64.b64decode(result.content[0].data))
    assert (before[:, :128] == after[:, :128]).all()
    assert (before[:, 128:] != after[:, 128:]).any()


def test_gradio_says_what_is_no_picture(client: Client, tmp_path: Path) -> None:
    (tmp_path / "no.png").write_text("no picture", encoding="utf-8")
    with pytest.raises(AppError, match="image"):
        client.predict("a tree", handle_file(tmp_path / "no.png"), api_name="/edit")


def test_openai_edits(openai_client: openai.OpenAI, served: Studio, start: Path) -> None:
    answer = openai_client.images.edit(
        image=start.open("rb"), prompt="a green tree", response_format="b64_json", extra_body=FAST
    )
    [kept] = served.recent(limit=1)
    assert kept.request.task == "image_to_image"
    assert kept.request.seed == 9
    content = base64.b64decode(answer.data[0].b64_json)
    assert content == served.image_path(kept.filename).read_bytes()


def test_openai_redraws_where_the_mask_is_transparent(
    openai_client: openai.OpenAI, start: Path
) -> None:
    mask = Image.new("RGBA", (256, 256))
    mask.putalpha(right_half().point(lambda value: 255 - value))
    answer = openai_client.images.edit(
        image=start.read_bytes(),
        mask=in_png(mask),
        prompt="a green tree",
        response_format="b64_json",
        extra_body=FAST,
    )
    before, after = values_in(start), values_in(base64.b64decode(answer.data[0].b64_json))
    assert (before[:, :128] == after[:, :128]).all()
    assert (before[:, 128:] != after[:, 128:]).any()


def test_openai_varies_after_the_prompt_in_the_file(
    openai_client: openai.OpenAI, served: Studio, start: Path
) -> None:
    openai_client.images.create_variation(image=start.open("rb"), n=2, extra_body=FAST)
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
        ({"prompt": "a tree"}, {"image": b"no picture"}, "image"),
        ({"prompt": "a tree", "n": "many"}, {"image": None}, "n"),
        ({"prompt": "a tree", "strength": "7"}, {"image": None}, "strength"),
    ],
)
def test_openai_says_what_is_wrong_with_a_form(
    url: str,
    start: Path,
    path: str,
    values: dict[str, str],
    files: dict[str, bytes | None],
    param: str,
) -> None:
    sent = {name: content or start.read_bytes() for name, content in files.items()}
    sent |= {name: b"" for name, content in files.items() if content == b""}
    answer = httpx.post(f"{url}/v1/images/{path}", data=values, files=sent or None)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_sdapi_redraws_in_whole_and_in_part(url: str, served: Studio, start: Path) -> None:
    host, _, port = url.removeprefix("http://").partition(":")
    client = webuiapi.WebUIApi(host=host, port=int(port), sampler="DDIM", steps=4)
    with Image.open(start) as picture:
        wish = {"images": [picture], "prompt": "a green tree", "seed": 9}
        client.img2img(**wish, denoising_strength=0.5).image.close()
        assert served.recent(limit=1)[0].request.strength == 0.5
        masked = client.img2img(**wish, mask_image=right_half())
    client.session.close()
    before, after = values_in(start), np.asarray(masked.image.convert("RGB")).astype(int)
    masked.image.close()
    assert (before[:, :128] == after[:, :128]).all()
    assert (before[:, 128:] != after[:, 128:]).any()
    assert "init_images" not in masked.parameters


def test_sdapi_enlarges(url: str, start: Path) -> None:
    body = {
        "image": base64.b64encode(start.read_bytes()).decode(),
        "upscaling_resize": 4,
        "upscaler_1": "Lanczos",
    }
    answer = httpx.post(f"{url}/sdapi/v1/extra-single-image", json=body, timeout=60).json()
    assert values_in(base64.b64decode(answer["image"])).shape == (1024, 1024, 3)
    body["upscaling_resize"] = 3
    assert httpx.post(f"{url}/sdapi/v1/extra-single-image", json=body).status_code == 400


@pytest.mark.parametrize("pictures", [None, [], ["!"], ["QUJD"]])
def test_sdapi_says_what_is_no_picture(url: str, pictures: list[str] | None) -> None:
    body = {"prompt": "a tree", "init_images": pictures}
    answer = httpx.post(f"{url}/sdapi/v1/img2img", json=body)
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("init_images")
