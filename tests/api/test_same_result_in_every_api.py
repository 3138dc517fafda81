"""The same request through every API: the same pixels and, except for the client, the same row."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import openai
import pytest
import webuiapi
from gradio_client import Client
from PIL import Image

from canvas import GenerationRequest, Studio
from canvas.cli import main as cli
from tests.app_server import run_in_mcp_session

PARAMS = {
    "prompt": "a red boat on a lake",
    "negative_prompt": "fog",
    "width": 264,
    "height": 128,
    "num_inference_steps": 2,
    "guidance_scale": 4.0,
    "seed": 77,
}


def pixels_of(content: bytes) -> bytes:
    with Image.open(io.BytesIO(content)) as image:
        return image.tobytes()


def with_gradio(studio: Studio, tmp_path: Path) -> bytes:
    client = Client(studio.url, verbose=False, download_files=str(tmp_path))
    file, _ = client.predict(**PARAMS, api_name="/generate")
    return pixels_of(Path(file).read_bytes())


def with_mcp(studio: Studio, tmp_path: Path) -> bytes:
    result = run_in_mcp_session(studio.url, lambda session: session.call_tool("generate", PARAMS))
    assert not result.isError, result.content
    return pixels_of(base64.b64decode(result.content[0].data))


def with_openai(studio: Studio, tmp_path: Path) -> bytes:
    client = openai.OpenAI(base_url=f"{studio.url}/v1", api_key="x")
    ours = ("negative_prompt", "num_inference_steps", "guidance_scale", "seed")
    response = client.images.generate(
        prompt=PARAMS["prompt"],
        size="264x128",
        response_format="b64_json",
        extra_body={name: PARAMS[name] for name in ours},
    )
    return pixels_of(base64.b64decode(response.data[0].b64_json))


def with_a1111(studio: Studio, tmp_path: Path) -> bytes:
    host, _, port = studio.url.removeprefix("http://").partition(":")
    client = webuiapi.WebUIApi(host=host, port=int(port))
    result = client.txt2img(
        prompt=PARAMS["prompt"],
        negative_prompt=PARAMS["negative_prompt"],
        width=264,
        height=128,
        steps=2,
        cfg_scale=4,
        seed=77,
        sampler_name="DDIM",  # webuiapi always sends one; this is the model's default
    )
    client.session.close()
    with result.image as image:
        return image.tobytes()


def with_cli(studio: Studio, tmp_path: Path) -> bytes:
    names = {"negative_prompt": "negative", "num_inference_steps": "steps"}
    names |= {"guidance_scale": "guidance", "width": "width", "height": "height", "seed": "seed"}
    options = [part for name in names for part in (f"--{names[name]}", str(PARAMS[name]))]
    paths = ["--output", str(tmp_path / "out.png"), "--data-dir", str(studio.settings.data_dir)]
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["generate", str(PARAMS["prompt"]), *options, *paths])
    assert not exit_info.value.code
    return pixels_of((tmp_path / "out.png").read_bytes())


CLIENTS = {"gradio": with_gradio, "mcp": with_mcp, "openai": with_openai, "sdapi": with_a1111, "cli": with_cli}


@pytest.fixture(scope="module")
def expected(served: Studio) -> tuple[bytes, dict[str, Any]]:
    [image] = served.generate(GenerationRequest(**PARAMS))
    assert served.recent(limit=1)[0].client == "python"
    return pixels_of(served.image_path(image.filename).read_bytes()), latest_settings(served)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CANVAS_DEVICE", "cpu")
    monkeypatch.setenv("CANVAS_DTYPE", "float32")
    monkeypatch.setenv("CANVAS_CACHE_DIR", str(tmp_path))


def latest_settings(studio: Studio) -> dict[str, Any]:
    [image] = studio.recent(limit=1)
    different = ("generation_time", "created_at", "client")
    return {name: value for name, value in image.settings().items() if name not in different}


@pytest.mark.parametrize("client", CLIENTS)
def test_same_pixels_and_settings(
    served: Studio, expected: tuple[bytes, dict[str, Any]], tmp_path: Path, client: str
) -> None:
    pixels, settings = expected
    before = len(served.recent(limit=1000))
    assert CLIENTS[client](served, tmp_path) == pixels
    assert served.recent(limit=1)[0].client == client
    assert latest_settings(served) == settings
    assert len(served.recent(limit=1000)) == before + 1
