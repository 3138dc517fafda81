from __future__ import annotations

import asyncio
import base64
import io
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from PIL import Image

from canvas import Studio
from tests.app_server import wait_until_finished

FAST = {"num_inference_steps": 2}
INVALID: list[tuple[dict[str, Any], str | None, str]] = [
    ({"prompt": ""}, "prompt", "Prompt"),
    ({"prompt": "x" * 100_000}, "prompt", "at most 10,000 characters"),
    ({"prompt": "a\x00b"}, "prompt", "control characters"),
    ({"prompt": ["a"]}, "prompt", "a valid string"),
    ({"size": "0x0"}, "size", "Width"),
    ({"size": "7x256"}, "size", "Width"),
    ({"size": "1000000000x256"}, "size", "(got 1000000000)"),
    ({"size": "big"}, "size", "Size must be WIDTHxHEIGHT in pixels, or auto (got 'big')."),
    ({"n": 1000}, "n", "less than or equal to 16"),
    ({"extra_body": {"num_inference_steps": 0}}, "num_inference_steps", "150"),
    ({"extra_body": {"guidance_scale": "NaN"}}, "guidance_scale", "30"),
    ({"extra_body": {"seed": -2}}, "seed", "-1"),
    ({"extra_body": {"seed": 2**64}}, "seed", "-1"),
    ({"extra_body": {"seed": "abc"}}, "seed", "Seed must be a valid integer (got 'abc')."),
    ({"style": "baroque"}, "style", "photorealistic"),
    ({"extra_body": {"backend": "moon"}}, "backend", "local"),
    ({"extra_body": {"where": "moon"}}, "backend", "local"),
]


@pytest.fixture(scope="module")
def client(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="not required", max_retries=0)


def decode(content: str) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    image.load()
    return image


def test_base64_is_the_stored_file(client: OpenAI, served: Studio) -> None:
    response = client.images.generate(
        prompt="a fox in the snow", response_format="b64_json", extra_body={**FAST, "seed": 21}
    )
    [image] = served.recent(limit=1)
    content = base64.b64decode(response.data[0].b64_json)
    assert content == served.image_path(image.filename).read_bytes()
    assert image.request.seed == 21
    assert response.data[0].revised_prompt == image.enhanced_prompt


def test_urls_can_be_downloaded(client: OpenAI) -> None:
    response = client.images.generate(prompt="a tree", n=2, size="128x256", output_format="webp", extra_body=FAST)
    for item in response.data:
        file = httpx.get(item.url)
        assert file.headers["content-type"] == "image/webp"
        assert Image.open(io.BytesIO(file.content)).size == (128, 256)


def test_unknown_fields_are_ignored(client: OpenAI) -> None:
    response = client.images.generate(
        prompt="a tree",
        quality="auto",
        style="vivid",
        user="me",
        background="auto",
        moderation="low",
        extra_body={**FAST, "of_tomorrow": 1},
    )
    assert len(response.data) == 1


@pytest.mark.parametrize(
    "fields",
    [{"client": "cli", "backend": "local", "accept_terms": False}, {"channel": "cli", "where": "here", "agree": False}],
)
def test_our_fields_have_their_old_names_too(client: OpenAI, served: Studio, fields: dict[str, Any]) -> None:
    client.images.generate(prompt="a tree", extra_body={**FAST, **fields})
    [image] = served.recent(limit=1)
    assert image.client == "cli"
    assert image.request.backend == "local"


@pytest.mark.parametrize("field", ["accept_terms", "agree"])
def test_accepting_the_terms_grants_consent(
    client: OpenAI, served: Studio, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    granted: list[tuple[str, str]] = []
    monkeypatch.setattr(
        served.remote_backends, "grant_consent", lambda owner, backend, spec: granted.append((owner, backend))
    )
    client.images.generate(prompt="a tree", extra_body={**FAST, field: True})
    assert granted == [("local", "local")]


@pytest.mark.slow
def test_a_stream_has_partial_images_and_the_result(client: OpenAI) -> None:
    events = list(
        client.images.generate(
            prompt="a boat", stream=True, partial_images=2, extra_body={"num_inference_steps": 100, "seed": 3}
        )
    )
    *partial, last = events
    assert last.type == "image_generation.completed"
    assert decode(last.b64_json).size == (256, 256)
    assert last.size == "256x256"
    assert 1 <= len(partial) <= 2
    assert [event.partial_image_index for event in partial] == list(range(len(partial)))
    assert all(decode(event.b64_json).width > 0 for event in partial)


def test_the_async_client_streams(url: str) -> None:
    async def event_types() -> list[str]:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="x") as client:
            stream = await client.images.generate(prompt="a boat", stream=True, extra_body=FAST)
            return [event.type async for event in stream]

    assert asyncio.run(event_types()) == ["image_generation.completed"]


@pytest.mark.parametrize(("values", "param", "message"), INVALID)
def test_invalid_values_are_error_objects(
    client: OpenAI, served: Studio, values: dict[str, Any], param: str, message: str
) -> None:
    before = served.recent()
    with pytest.raises(openai.BadRequestError) as error:
        client.images.generate(**{"prompt": "a fox", **values})
    assert error.value.body["type"] == "invalid_request_error"
    assert error.value.param == param
    assert message in error.value.body["message"]
    assert served.recent() == before


def test_a_missing_prompt_is_an_error(url: str) -> None:
    response = httpx.post(f"{url}/v1/images/generations", json={"n": 1})
    assert response.json()["error"]["message"] == "Prompt is required."


def test_an_unknown_model_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as error:
        client.images.generate(prompt="a fox", model="flux-dev")
    assert error.value.code == "model_not_found"
    assert "starter" in str(error.value)


def test_an_error_in_a_stream_is_raised_by_the_client(client: OpenAI, served: Studio) -> None:
    stream = client.images.generate(
        prompt="a slow boat", stream=True, partial_images=1, extra_body={"num_inference_steps": 150}
    )
    [job] = [job for job in served.jobs("local") if job.request.prompt == "a slow boat"]
    job.cancel()
    with pytest.raises(openai.APIError):
        list(stream)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_disconnects_cancels_the_job(url: str, served: Studio, stream: bool) -> None:
    prompt = f"aborted, stream {stream}"
    body = {"prompt": prompt, "num_inference_steps": 150, "stream": stream, "partial_images": 1}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/v1/images/generations", json=body, timeout=httpx.Timeout(30, read=0.2))
    [job] = [job for job in served.jobs("local") if job.request.prompt == prompt]
    assert wait_until_finished(job) == "cancelled"


def test_models_are_listed(client: OpenAI) -> None:
    assert "starter" in [model.id for model in client.models.list()]
    assert client.models.retrieve("starter").owned_by == "magic-canvas"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nope")
