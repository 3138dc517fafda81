"""The same request through every door: the same pixels, and the same record but for the door."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import webuiapi
from gradio_client import Client
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client
from PIL import Image

from canvas import GenerationRequest, Studio
from canvas.cli import main as cli

WISH = {
    "prompt": "a red boat on a lake",
    "negative_prompt": "fog",
    "width": 264,
    "height": 128,
    "num_inference_steps": 2,
    "guidance_scale": 4.0,
    "seed": 77,
}


def pixels_in(content: bytes) -> bytes:
    with Image.open(io.BytesIO(content)) as image:
        return image.tobytes()


def through_python(studio: Studio, tmp_path: Path) -> bytes:
    [picture] = studio.generate(GenerationRequest(**WISH))
    return pixels_in(Path(studio.image_path(picture.filename)).read_bytes())


def through_gradio(studio: Studio, tmp_path: Path) -> bytes:
    client = Client(studio.url, verbose=False, download_files=str(tmp_path))
    picture, _ = client.predict(**WISH, api_name="/generate")
    return pixels_in(Path(picture).read_bytes())


def through_mcp(studio: Studio, tmp_path: Path) -> bytes:
    async def ask() -> Any:
        async with (
            streamablehttp_client(f"{studio.url}/gradio_api/mcp/") as (reading, writing, _),
            ClientSession(reading, writing) as session,
        ):
            await session.initialize()
            return await session.call_tool("generate", WISH)

    result = asyncio.run(ask())
    assert not result.isError, result.content
    return pixels_in(base64.b64decode(result.content[0].data))


def through_openai(studio: Studio, tmp_path: Path) -> bytes:
    client = openai.OpenAI(base_url=f"{studio.url}/v1", api_key="x")
    ours = ("negative_prompt", "num_inference_steps", "guidance_scale", "seed")
    answer = client.images.generate(
        prompt=WISH["prompt"],
        size="264x128",
        response_format="b64_json",
        extra_body={name: WISH[name] for name in ours},
    )
    return pixels_in(base64.b64decode(answer.data[0].b64_json))


def through_sdapi(studio: Studio, tmp_path: Path) -> bytes:
    host, _, port = studio.url.removeprefix("http://").partition(":")
    client = webuiapi.WebUIApi(host=host, port=int(port))
    result = client.txt2img(
        prompt=WISH["prompt"],
        negative_prompt=WISH["negative_prompt"],
        width=264,
        height=128,
        steps=2,
        cfg_scale=4,
        seed=77,
        sampler_name="DDIM",  # the package always names one; this is starter's own
    )
    client.session.close()
    with result.image as image:
        return image.tobytes()


def through_the_command_line(studio: Studio, tmp_path: Path) -> bytes:
    names = {"negative_prompt": "negative", "num_inference_steps": "steps"}
    names |= {"guidance_scale": "guidance", "width": "width", "height": "height", "seed": "seed"}
    options = [part for name in names for part in (f"--{names[name]}", str(WISH[name]))]
    place = ["--output", str(tmp_path / "out.png"), "--data-dir", str(studio.settings.data_dir)]
    with pytest.raises(SystemExit) as leaving:
        cli.main(["generate", str(WISH["prompt"]), *options, *place])
    assert not leaving.value.code
    return pixels_in((tmp_path / "out.png").read_bytes())


DOORS = {
    "gradio": through_gradio,
    "mcp": through_mcp,
    "openai": through_openai,
    "sdapi": through_sdapi,
    "cli": through_the_command_line,
}


@pytest.fixture(scope="module")
def expected(served: Studio, tmp_path_factory: Any) -> tuple[bytes, dict[str, Any]]:
    pixels = through_python(served, tmp_path_factory.mktemp("python"))
    assert served.recent(limit=1)[0].client == "python"
    return pixels, record_of(served)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("CANVAS_DEVICE", "cpu")
    monkeypatch.setenv("CANVAS_DTYPE", "float32")
    monkeypatch.setenv("CANVAS_CACHE_DIR", str(tmp_path))
    yield


def record_of(studio: Studio) -> dict[str, Any]:
    [newest] = studio.recent(limit=1)
    own = ("generation_time", "created_at", "channel")
    return {name: value for name, value in newest.settings().items() if name not in own}


@pytest.mark.parametrize("channel", DOORS)
def test_the_same_request_gives_the_same(
    served: Studio,
    expected: tuple[bytes, dict[str, Any]],
    tmp_path: Path,
    channel: str,
) -> None:
    pixels, record = expected
    before = len(served.recent(limit=1000))
    assert DOORS[channel](served, tmp_path) == pixels
    assert served.recent(limit=1)[0].client == channel
    assert record_of(served) == record
    assert len(served.recent(limit=1000)) == before + 1
