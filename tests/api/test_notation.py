"""Braces, wildcard lists, LoRA tags and weights mean the same in every API."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio_client import Client
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from canvas import GenerationRequest, Studio
from canvas.catalog import ASSETS
from canvas.cli import main as cli
from canvas.errors import CanvasError, InvalidInput
from tests.app_server import run_in_mcp_session

PROMPT = "a {flat|cartoon} __boats__ <lora:SNOW:0.5:1> <lora:folder/inner:0,5> <lora:snow:0.2>"
FIELDS = {"negative_prompt": "fog", "num_inference_steps": 1, "guidance_scale": 3.0, "seed": 5}
EXPANDED = ["a flat boat", "a cartoon boat"]


def make_lora(path: Path, seed: int) -> None:
    """A LoRA for the cross-attention of the built-in model."""
    import torch

    numbers = torch.Generator().manual_seed(seed)
    tensors = {}
    [unet] = (ASSETS / "starter/unet").glob("*.safetensors")
    with safe_open(unet, "pt") as file:
        for name in [name for name in sorted(file.keys()) if "attn2.to_" in name and name.endswith("weight")][:6]:
            rows, columns = file.get_slice(name).get_shape()
            flat = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
            tensors[f"{flat}.lora_down.weight"] = torch.randn(4, columns, generator=numbers) * 0.3
            tensors[f"{flat}.lora_up.weight"] = torch.randn(rows, 4, generator=numbers) * 0.3
            tensors[f"{flat}.alpha"] = torch.tensor(4.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)


@pytest.fixture(scope="module", autouse=True)
def files(served: Studio) -> None:
    make_lora(served.settings.loras_dir / "snow.safetensors", 1)
    make_lora(served.settings.loras_dir / "folder" / "inner.safetensors", 2)
    served.settings.wildcards_dir.mkdir(exist_ok=True)
    (served.settings.wildcards_dir / "boats.txt").write_bytes("boat\r\n".encode("utf-16"))


def pixels_of(content: bytes) -> bytes:
    with Image.open(io.BytesIO(content)) as image:
        return image.tobytes()


def stored_pixels(studio: Studio, filename: str) -> bytes:
    return pixels_of(studio.image_path(filename).read_bytes())


def with_openai(studio: Studio, prompt: str, tmp_path: Path) -> list[bytes]:
    body = {"prompt": prompt, "response_format": "b64_json", **FIELDS}
    response = httpx.post(f"{studio.url}/v1/images/generations", json=body, timeout=60)
    response.raise_for_status()
    return [pixels_of(base64.b64decode(each["b64_json"])) for each in response.json()["data"]]


def with_a1111(studio: Studio, prompt: str, tmp_path: Path) -> list[bytes]:
    body = {"prompt": prompt, "negative_prompt": "fog", "steps": 1, "cfg_scale": 3, "seed": 5}
    response = httpx.post(f"{studio.url}/sdapi/v1/txt2img", json=body, timeout=60)
    response.raise_for_status()
    assert json.loads(response.json()["info"])["all_prompts"] == [
        image.request.prompt for image in reversed(studio.recent(limit=len(response.json()["images"])))
    ]
    return [pixels_of(base64.b64decode(each)) for each in response.json()["images"]]


def with_gradio(studio: Studio, prompt: str, tmp_path: Path) -> list[bytes]:
    client = Client(studio.url, verbose=False, download_files=str(tmp_path))
    client.predict(prompt=prompt, **FIELDS, api_name="/generate")
    return [stored_pixels(studio, image.filename) for image in reversed(studio.recent(limit=len(EXPANDED)))]


def with_mcp(studio: Studio, prompt: str, tmp_path: Path) -> list[bytes]:
    params: dict[str, Any] = {"prompt": prompt, **FIELDS}
    result = run_in_mcp_session(studio.url, lambda session: session.call_tool("generate", params))
    assert not result.isError, result.content
    return [stored_pixels(studio, image.filename) for image in reversed(studio.recent(limit=len(EXPANDED)))]


def with_cli(studio: Studio, prompt: str, tmp_path: Path) -> list[bytes]:
    options = ["--negative", "fog", "--steps", "1", "--guidance", "3", "--seed", "5"]
    paths = ["--output", str(tmp_path / "out.png"), "--data-dir", str(studio.settings.data_dir)]
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["generate", prompt, *options, *paths])
    assert not exit_info.value.code
    return [pixels_of((tmp_path / f"out-{number}.png").read_bytes()) for number in (1, 2)]


CLIENTS = {"gradio": with_gradio, "mcp": with_mcp, "openai": with_openai, "sdapi": with_a1111, "cli": with_cli}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CANVAS_DEVICE", "cpu")
    monkeypatch.setenv("CANVAS_DTYPE", "float32")
    monkeypatch.setenv("CANVAS_CACHE_DIR", str(tmp_path))


@pytest.fixture(scope="module")
def expected(served: Studio) -> list[bytes]:
    """The images of the prompts that the dynamic one stands for, with the weights of its tags added up."""
    loras = (("snow", 1.2), ("inner", 0.5))
    images = []
    for prompt in EXPANDED:
        [image] = served.generate(GenerationRequest(prompt, loras=loras, **FIELDS))
        images.append(stored_pixels(served, image.filename))
    assert images[0] != images[1]
    return images


@pytest.mark.parametrize("client", CLIENTS)
def test_every_api_expands_prompts_and_applies_tags(
    served: Studio, expected: list[bytes], tmp_path: Path, client: str
) -> None:
    assert CLIENTS[client](served, PROMPT, tmp_path) == expected
    assert [image.request.prompt.split(" <")[0] for image in served.recent(limit=2)] == EXPANDED[::-1]


def test_python_expands_prompts_and_applies_tags(served: Studio, expected: list[bytes]) -> None:
    images = served.generate(GenerationRequest(PROMPT, **FIELDS))
    assert [stored_pixels(served, image.filename) for image in images] == expected


@pytest.mark.slow
def test_a_dynamic_request_is_one_job(served: Studio) -> None:
    request = GenerationRequest("a {red|blue} boat", negative_prompt="{fog|rain}", num_images=2, num_inference_steps=1)
    job = served.submit(request)
    seen = [each.progress for each in job.subscribe() if each.progress is not None]
    assert len(job.wait()) == job.num_images == 8
    assert {(step.num_images) for step in seen} == {8}
    indices = [step.image_index for step in seen]
    assert indices == sorted(indices)
    assert [(image.request.prompt, image.request.negative_prompt) for image in job.images[::2]] == [
        ("a red boat", "fog"),
        ("a red boat", "rain"),
        ("a blue boat", "fog"),
        ("a blue boat", "rain"),
    ]


def test_cancelling_ends_all_requests_of_a_job(served: Studio) -> None:
    job = served.submit(GenerationRequest("a {red|blue|green} boat", num_inference_steps=100))
    started = threading.Event()
    for each in job.subscribe():
        if each.progress is not None and not started.is_set():
            started.set()
            job.cancel()
    assert job.status == "cancelled"
    assert job.images == []


def test_a_resumed_job_has_the_same_requests(served: Studio) -> None:
    for prompt, prompts in (
        ("a {red|blue} boat", ["a red boat", "a blue boat"]),
        (r"a \{red\|blue\} boat", ["a {red|blue} boat"]),
    ):
        job = served.submit(GenerationRequest(prompt, num_inference_steps=1))
        job.wait()
        assert [each.prompt for each in served.expand_prompt(job.resumable_request)] == prompts


@pytest.mark.parametrize("client", ["openai", "sdapi"])
@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a fox <lora:snow:1:lbw=IN02>", "lbw=IN02 is not supported"),
        ("a __plant__", "no wildcard list"),
        ("a fox <lora:nowhere:1>", "LoRA nowhere not found"),
    ],
)
def test_what_cannot_be_used_is_named(served: Studio, tmp_path: Path, client: str, prompt: str, message: str) -> None:
    with pytest.raises(httpx.HTTPStatusError) as caught:
        CLIENTS[client](served, prompt, tmp_path)
    assert caught.value.response.status_code in (400, 404)
    assert message in caught.value.response.text


def test_a_tag_in_the_negative_prompt_is_rejected(served: Studio) -> None:
    with pytest.raises(InvalidInput, match=r"The tag <lora:snow:1> acts in the prompt only"):
        served.submit(GenerationRequest("a fox", negative_prompt="fog <lora:snow:1>"))


def sdapi(studio: Studio, prompt: str, **fields: Any) -> tuple[bytes, dict[str, Any]]:
    body = {"prompt": prompt, "steps": 1, "seed": 5, **fields}
    response = httpx.post(f"{studio.url}/sdapi/v1/txt2img", json=body, timeout=60)
    response.raise_for_status()
    return pixels_of(base64.b64decode(response.json()["images"][0])), json.loads(response.json()["info"])


@pytest.mark.slow
def test_sdapi_reads_weights(served: Studio) -> None:
    plain, _ = sdapi(served, "a fox in the snow")
    assert sdapi(served, "(a fox:1.0) in the (snow:1.0)")[0] == plain
    weighted, _ = sdapi(served, "a (fox:1.4) in the snow")
    assert served.recent()[0].request.prompt_weighting
    [image] = served.generate(
        GenerationRequest("a (fox:1.4) in the snow", prompt_weighting=True, num_inference_steps=1, seed=5)
    )
    assert weighted == stored_pixels(served, image.filename)


@pytest.mark.slow
def test_sdapi_subseeds_are_variation_seeds(served: Studio) -> None:
    pixels, info = sdapi(served, "a fox", subseed=9, subseed_strength=0.5)
    [image] = served.generate(
        GenerationRequest("a fox", num_inference_steps=1, seed=5, variation_seed=9, variation_strength=0.5)
    )
    assert pixels == stored_pixels(served, image.filename) != sdapi(served, "a fox")[0]
    assert (info["subseed"], info["all_subseeds"], info["subseed_strength"]) == (9, [9], 0.5)
    _, info = sdapi(served, "a fox", subseed=-1, subseed_strength=0.5)
    assert info["subseed"] >= 0


@pytest.mark.parametrize("prompt", ["a (fox:1.3)", "a fox BREAK snow"])
def test_weights_that_are_words_are_noted(served: Studio, prompt: str) -> None:
    [image] = served.generate(GenerationRequest(prompt, num_inference_steps=1))
    assert any("was read as words, because prompt weights are off" in note for note in image.notes)
    [image] = served.generate(GenerationRequest(prompt, num_inference_steps=1, prompt_weighting=True))
    assert not any("read as words" in note for note in image.notes)


def test_a_damaged_lora_is_named(served: Studio) -> None:
    path = served.settings.loras_dir / "nan.safetensors"
    tensors = load_file(served.settings.loras_dir / "snow.safetensors")
    tensors[min(tensors)] *= float("nan")
    save_file(tensors, path)
    with pytest.raises(CanvasError, match=r"The LoRA nan is damaged: its weights lora_unet_.* contain NaN"):
        served.generate(GenerationRequest("a fox <lora:nan>", num_inference_steps=1))
    path.unlink()


@pytest.mark.slow
def test_a_textual_inversion_acts_by_its_name(served: Studio) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(ASSETS / "starter/tokenizer")
    [token] = tokenizer("fox", add_special_tokens=False).input_ids
    [weights] = (ASSETS / "starter/text_encoder").glob("*.safetensors")
    with safe_open(weights, "pt") as file:
        name = next(name for name in file.keys() if name.endswith("token_embedding.weight"))  # noqa: SIM118
        vector = file.get_tensor(name)[token : token + 1].float()
    served.settings.embeddings_dir.mkdir()
    save_file({"emb_params": vector}, served.settings.embeddings_dir / "Vulpine.safetensors")
    fields: dict[str, Any] = {"num_inference_steps": 1, "seed": 5}
    [plain] = served.generate(GenerationRequest("a fox in the snow", **fields))
    for word in ("vulpine", "embedding:vulpine", "<embed:Vulpine>"):
        [image] = served.generate(GenerationRequest(f"a {word} in the snow", **fields))
        assert stored_pixels(served, image.filename) == stored_pixels(served, plain.filename)
        assert image.request.prompt == f"a {word} in the snow"
    with pytest.raises(CanvasError, match="Textual inversion lupine not found"):
        served.submit(GenerationRequest("a embedding:lupine", **fields))


@pytest.fixture(autouse=True)
def finished(served: Studio) -> Iterator[None]:
    yield
    for job in served.jobs(None):
        job.cancel()
