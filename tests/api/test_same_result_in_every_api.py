"""The same request through every API: the same pixels and, except for the client, the same row."""

from __future__ import annotations

import base64
import inspect
import io
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import openai
import pytest
import webuiapi
from gradio_client import Client, handle_file
from PIL import Image, ImageChops

from canvas import GenerationRequest, Studio
from canvas.api.a1111_bodies import ImageToImage
from canvas.api.gradio_api import GradioApi
from canvas.api.openai_images import PARAM_NAMES, EditRequest
from canvas.cli import main as cli
from canvas.cli.generate import OPTIONS
from canvas.guidance import ControlImage, ReferenceImage
from canvas.image_formats import data_url
from tests.api.test_notation import make_lora
from tests.app_server import run_in_mcp_session
from tests.conftest import slow_params

PARAMS: dict[str, Any] = {
    "prompt": "a {flat|cartoon} boat (by a lake:1.3) <lora:strong:0.5>",
    "negative_prompt": "fog",
    "num_inference_steps": 4,
    "guidance_scale": 4.0,
    "seed": 77,
    "scheduler": "Euler a",
    "preset": "balanced",
    "prompt_weighting": True,
    "variation_seed": 5,
    "variation_strength": 0.25,
}
EDIT = {"strength": 0.8, "mask_blur": 3}
SIZE = {"width": 264, "height": 128}
TASKS = ("text_to_image", "inpaint")


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


SOURCE = Image.effect_mandelbrot((136, 128), (-2, -1.5, 1, 1.5), 60).convert("RGB")
MASK = Image.new("L", SOURCE.size)
MASK.paste(255, (20, 30, 90, 100))


def openai_mask() -> bytes:
    """The same mask by OpenAI's rule: transparent where the image is redrawn."""
    mask = Image.new("RGBA", MASK.size)
    mask.putalpha(ImageChops.invert(MASK))
    return png(mask)


def params_of(task: str) -> dict[str, Any]:
    return PARAMS | (SIZE if task == "text_to_image" else EDIT)


def pixels_of(content: bytes) -> bytes:
    with Image.open(io.BytesIO(content)) as image:
        return image.tobytes()


def save_files(folder: Path) -> tuple[Path, Path]:
    source, mask = folder / "source.png", folder / "mask.png"
    source.write_bytes(png(SOURCE))
    mask.write_bytes(png(MASK))
    return source, mask


def with_gradio(studio: Studio, tmp_path: Path, task: str) -> list[bytes]:
    client = Client(studio.url, verbose=False, download_files=str(tmp_path))
    files: dict[str, Any] = {}
    if task == "inpaint":
        files = {
            name: handle_file(path) for name, path in zip(("image", "mask_image"), save_files(tmp_path), strict=True)
        }
    name = "/generate" if task == "text_to_image" else "/edit"
    _, settings = client.predict(**params_of(task), **files, api_name=name)
    return [pixels_of(Path(path).read_bytes()) for path in settings["pictures"]]


def with_mcp(studio: Studio, tmp_path: Path, task: str) -> list[bytes]:
    files = {"image": data_url(png(SOURCE), "png"), "mask_image": data_url(png(MASK), "png")}
    tool, arguments = ("generate", params_of(task)) if task == "text_to_image" else ("edit", params_of(task) | files)
    result = run_in_mcp_session(studio.url, lambda session: session.call_tool(tool, arguments))
    assert not result.isError, result.content
    return [pixels_of(base64.b64decode(item.data)) for item in result.content if item.type == "image"]


def with_openai(studio: Studio, tmp_path: Path, task: str) -> list[bytes]:
    client = openai.OpenAI(base_url=f"{studio.url}/v1", api_key="x")
    ours = {name: value for name, value in params_of(task).items() if name not in ("prompt", "width", "height")}
    if task == "text_to_image":
        ours["scale_to_size"] = False
        response = client.images.generate(prompt=PARAMS["prompt"], size="264x128", extra_body=ours)
    else:
        form = {name: str(value) for name, value in (ours | {"scale_to_size": False}).items()}
        response = client.images.edit(
            prompt=PARAMS["prompt"], image=("a.png", png(SOURCE)), mask=("m.png", openai_mask()), extra_body=form
        )
    return [pixels_of(base64.b64decode(item.b64_json)) for item in response.data]


def with_a1111(studio: Studio, tmp_path: Path, task: str) -> list[bytes]:
    """With what webuiapi sends, and `preset` beside it."""
    host, _, port = studio.url.removeprefix("http://").partition(":")
    client = webuiapi.WebUIApi(host=host, port=int(port))
    options: dict[str, Any] = {
        "prompt": PARAMS["prompt"],
        "negative_prompt": "fog",
        "steps": 4,
        "cfg_scale": 4,
        "seed": 77,
        "sampler_name": "Euler a",
        "subseed": 5,
        "subseed_strength": 0.25,
        "override_settings": {"preset": "balanced", "scale_to_size": False},
    }
    if task == "text_to_image":
        result = client.txt2img(**options, **SIZE)
    else:
        size = {"width": SOURCE.width, "height": SOURCE.height, "resize_mode": 1}
        edit = {"images": [SOURCE], "mask_image": MASK, "denoising_strength": 0.8, "mask_blur": 3}
        result = client.img2img(**options, **size, **edit, inpaint_full_res=False)
    client.session.close()
    return [pixels_of(base64.b64decode(content)) for content in result.json["images"]]


def with_cli(studio: Studio, tmp_path: Path, task: str) -> list[bytes]:
    options: list[str] = []
    for field, value in params_of(task).items():
        if field not in ("prompt", "prompt_weighting"):
            options += [f"--{OPTIONS[field].name.replace('_', '-')}", str(value)]
    before = studio.recent(limit=1)[0].id
    folder = ["--prompt-weighting", "--data-dir", str(studio.settings.data_dir)]
    source, mask = save_files(tmp_path)
    files = [str(source)] if task == "inpaint" else []
    with_mask = ["--mask", str(mask)] if task == "inpaint" else []
    command = ["edit" if task == "inpaint" else "generate", *files, PARAMS["prompt"], *with_mask, *options, *folder]
    with pytest.raises(SystemExit) as exit_info:
        cli.main(command)
    assert not exit_info.value.code
    images = [image for image in studio.recent(limit=2) if image.id > before]
    return [pixels_of(studio.image_path(image.filename).read_bytes()) for image in reversed(images)]


CLIENTS = {"gradio": with_gradio, "mcp": with_mcp, "openai": with_openai, "sdapi": with_a1111, "cli": with_cli}


@pytest.fixture(scope="module")
def with_lora(served: Studio) -> Iterator[Studio]:
    path = served.settings.loras_dir / "strong.safetensors"
    path.parent.mkdir(exist_ok=True)
    make_lora(path, 1)
    yield served
    path.unlink()


@pytest.fixture(scope="module")
def expected(with_lora: Studio) -> dict[str, tuple[list[bytes], list[dict[str, Any]]]]:
    results = {}
    for task in TASKS:
        fields: dict[str, Any] = params_of(task)
        if task == "inpaint":
            image, mask = (with_lora.inputs.upload(png(image)).name for image in (SOURCE, MASK))
            fields |= {"task": task, "image": image, "mask_image": mask}
        images = with_lora.generate(GenerationRequest(**fields))
        assert images[0].client == "python"
        pixels = [pixels_of(with_lora.image_path(image.filename).read_bytes()) for image in images]
        assert len(set(pixels)) == 2, "braces stand for two prompts"
        results[task] = pixels, latest_settings(with_lora)
    return results


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CANVAS_DEVICE", "cpu")
    monkeypatch.setenv("CANVAS_DTYPE", "float32")
    monkeypatch.setenv("CANVAS_CACHE_DIR", str(tmp_path))


def latest_settings(studio: Studio) -> list[dict[str, Any]]:
    different = ("generation_time", "created_at", "client", "image", "mask_image")
    return [
        {name: value for name, value in image.settings().items() if name not in different}
        for image in reversed(studio.recent(limit=2))
    ]


@pytest.mark.parametrize("task", ["inpaint", *slow_params("text_to_image")])
@pytest.mark.parametrize("client", CLIENTS)
def test_same_pixels_and_settings(
    with_lora: Studio,
    expected: dict[str, tuple[list[bytes], list[dict[str, Any]]]],
    tmp_path: Path,
    client: str,
    task: str,
) -> None:
    pixels, settings = expected[task]
    before = len(with_lora.recent(limit=1000))
    assert CLIENTS[client](with_lora, tmp_path, task) == pixels
    assert {image.client for image in with_lora.recent(limit=2)} == {client}
    assert latest_settings(with_lora) == settings
    assert len(with_lora.recent(limit=1000)) == before + 2


def test_every_api_has_every_field() -> None:
    names = {item.name for item in fields(GenerationRequest)}
    gradio = {*signature_of("generate"), *signature_of("edit"), *signature_of("upscale"), "task"}
    openai_names = {*EditRequest.model_fields, "image", "mask_image"}
    openai_fields = {name for name in names if PARAM_NAMES.get(name, name) in openai_names}
    body = ImageToImage.model_validate(OWN_VALUES)
    request = body.to_request("starter", **body.image_fields())
    sdapi = {name for name, value in OWN_VALUES.items() if getattr(request, name) == value}
    for found in (gradio, openai_fields, sdapi | {"image", "mask_image", "task"}, {*OPTIONS, *CLI_ARGUMENTS}):
        assert names - found == set()


# Accepted by /sdapi under their own names, and different from the defaults.
OWN_VALUES: dict[str, Any] = {
    **{"prompt": "p", "negative_prompt": "n", "style": "anime", "model_key": "tiny", "width": 128, "height": 136},
    **{"num_inference_steps": 3, "guidance_scale": 2.0, "scheduler": "DDIM", "seed": 4, "num_images": 2},
    **{"image_format": "webp", "quality": 50, "strength": 0.4, "resize_mode": "pad", "fill_color": "#000000"},
    **{"mask_blur": 1, "only_masked": True, "outpaint": (8, 0, 0, 0), "variation_seed": 1, "variation_strength": 0.5},
    **{"scale": 4, "upscaler": "detail", "loras": (("a", 0.5),), "prompt_weighting": True, "watermark": "w"},
    **{"preset": "turbo", "backend": "remote", "scale_to_size": False},
    "control_images": (ControlImage("a.png", "canny", 0.5),),
    "reference_images": (ReferenceImage("b.png", 0.5, "style"),),
}
CLI_ARGUMENTS = ("prompt", "image", "mask_image", "task")


def signature_of(name: str) -> list[str]:
    return list(inspect.signature(getattr(GradioApi, name)).parameters)
