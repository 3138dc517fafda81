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

FAST = {"num_inference_steps": 2}
BAD: list[tuple[dict[str, Any], str | None, str]] = [
    ({"prompt": ""}, "prompt", "some words"),
    ({"prompt": "x" * 100_000}, "prompt", "at most 10,000 characters"),
    ({"prompt": "a\x00b"}, "prompt", "without control characters"),
    ({"prompt": ["a"]}, "prompt", "a valid string"),
    ({"size": "0x0"}, "size", "width: 0"),
    ({"size": "7x256"}, "size", "width: 7"),
    ({"size": "257x256"}, "size", "256 or 264"),
    ({"size": "1000000000x256"}, "size", "width: 1000000000"),
    ({"size": "big"}, "size", "WIDTHxHEIGHT"),
    ({"n": 1000}, "n", "less than or equal to 16"),
    ({"extra_body": {"num_inference_steps": 0}}, "num_inference_steps", "1 to 150"),
    ({"extra_body": {"guidance_scale": "NaN"}}, "guidance_scale", "0 to 30"),
    ({"extra_body": {"seed": -2}}, "seed", "-1 to"),
    ({"extra_body": {"seed": 2**64}}, "seed", "-1 to"),
    ({"extra_body": {"seed": "abc"}}, "seed", "a valid integer"),
    ({"style": "baroque"}, "style", "photorealistic"),
]


@pytest.fixture(scope="module")
def client(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="not asked for", max_retries=0)


def opened(content: str) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    image.load()
    return image


def test_a_picture_as_base64_is_the_kept_file(client: OpenAI, served: Studio) -> None:
    answer = client.images.generate(
        prompt="a red boat", response_format="b64_json", extra_body={**FAST, "seed": 21}
    )
    [kept] = served.recent(limit=1)
    content = base64.b64decode(answer.data[0].b64_json)
    assert content == served.image_path(kept.filename).read_bytes()
    assert kept.request.seed == 21
    assert answer.data[0].revised_prompt == kept.enhanced_prompt


def test_pictures_as_addresses_can_be_fetched(client: OpenAI) -> None:
    answer = client.images.generate(
        prompt="a tree", n=2, size="128x256", output_format="webp", extra_body=FAST
    )
    for datum in answer.data:
        file = httpx.get(datum.url)
        assert file.headers["content-type"] == "image/webp"
        assert Image.open(io.BytesIO(file.content)).size == (128, 256)


def test_unknown_fields_are_let_be(client: OpenAI) -> None:
    answer = client.images.generate(
        prompt="a tree",
        quality="auto",
        style="vivid",
        user="me",
        background="auto",
        moderation="low",
        extra_body={**FAST, "of_tomorrow": 1},
    )
    assert len(answer.data) == 1


def test_a_stream_ends_with_the_picture(client: OpenAI) -> None:
    events = list(
        client.images.generate(
            prompt="a boat",
            stream=True,
            partial_images=2,
            extra_body={"num_inference_steps": 12, "seed": 3},
        )
    )
    *partial, last = events
    assert last.type == "image_generation.completed"
    assert opened(last.b64_json).size == (256, 256)
    assert last.size == "256x256"
    assert 1 <= len(partial) <= 2
    assert [event.partial_image_index for event in partial] == list(range(len(partial)))
    assert all(opened(event.b64_json).width > 0 for event in partial)


def test_the_async_client_works_too(url: str) -> None:
    async def ask() -> list[str]:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="x") as client:
            stream = await client.images.generate(prompt="a boat", stream=True, extra_body=FAST)
            return [event.type async for event in stream]

    assert asyncio.run(ask()) == ["image_generation.completed"]


@pytest.mark.parametrize(("values", "param", "sentence"), BAD)
def test_bad_input_is_an_error_object(
    client: OpenAI, served: Studio, values: dict[str, Any], param: str, sentence: str
) -> None:
    before = served.recent()
    with pytest.raises(openai.BadRequestError) as error:
        client.images.generate(**{"prompt": "a fox", **values})
    assert error.value.body["type"] == "invalid_request_error"
    assert error.value.param == param
    assert sentence in error.value.body["message"]
    assert served.recent() == before


def test_an_unknown_model_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as error:
        client.images.generate(prompt="a fox", model="dall-e-3")
    assert error.value.code == "model_not_found"
    assert "one of starter" in str(error.value)


def test_an_error_in_a_stream_is_raised_by_the_client(client: OpenAI, served: Studio) -> None:
    stream = client.images.generate(
        prompt="a slow boat",
        stream=True,
        partial_images=1,
        extra_body={"num_inference_steps": 150},
    )
    [job] = [job for job in served.jobs("local") if job.request.prompt == "a slow boat"]
    job.cancel()
    with pytest.raises(openai.APIError):
        list(stream)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_stops_the_job(url: str, served: Studio, stream: bool) -> None:
    prompt = f"given up, stream {stream}"
    body = {"prompt": prompt, "num_inference_steps": 150, "stream": stream, "partial_images": 1}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/v1/images/generations", json=body, timeout=httpx.Timeout(30, read=0.2))
    [job] = [job for job in served.jobs("local") if job.request.prompt == prompt]
    for _ in job.subscribe(timeout=60):
        if job.finished:
            break
    assert job.status == "cancelled"


def test_the_models_are_listed(client: OpenAI) -> None:
    assert "starter" in [model.id for model in client.models.list()]
    assert client.models.retrieve("starter").owned_by == "magic-canvas"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nope")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe"])
def test_a_body_that_is_no_wish_is_refused(url: str, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{url}/v1/images/generations", content=body, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_50_megabytes_is_refused(url: str, chunked: bool) -> None:
    whole = b'{"prompt": "' + b"x" * 50_000_000 + b'"}'
    content = (whole[i : i + 2**20] for i in range(0, len(whole), 2**20)) if chunked else whole
    headers = {"content-type": "application/json"}
    answer = httpx.post(
        f"{url}/v1/images/generations", content=content, headers=headers, timeout=60
    )
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "body_too_large"
