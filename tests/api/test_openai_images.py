from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from PIL import Image

from canvas import GenerationRequest, Studio
from canvas.api import openai_images
from canvas.errors import StorageError
from canvas.jobs.job import Job
from canvas.models.download import DownloadProgress
from canvas.request import GeneratedImage, ProgressUpdate
from tests.app_server import save_image, wait_until_finished

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


@pytest.fixture(scope="module")
def stored(served: Studio) -> GeneratedImage:
    return save_image(served, "local")


@pytest.fixture
def submitted(served: Studio, stored: GeneratedImage, monkeypatch: pytest.MonkeyPatch) -> list[GenerationRequest]:
    """The requests that are submitted; the stored image answers each at once."""
    requests: list[GenerationRequest] = []

    def submit(request: GenerationRequest, owner: str, client: str) -> Job:
        requests.append(request)
        job = Job(owner, "generate", request.model_key, request, client, images=[stored])
        job.update(status="done")
        return job

    monkeypatch.setattr(served, "submit", submit)
    return requests


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, {"width": None, "height": None, "seed": -1, "num_images": 1, "quality": 95, "image_format": "png"}),
        ({"size": "auto"}, {"width": None, "height": None}),
        ({"size": "512X256"}, {"width": 512, "height": 256}),
        ({"size": "512x256", "width": 128}, {"width": 128, "height": 256}),
        ({"height": 128}, {"width": None, "height": 128}),
        ({"seed": 0, "n": 16}, {"seed": 0, "num_images": 16}),
        ({"output_format": "webp", "output_compression": 1}, {"image_format": "webp", "quality": 1}),
        ({"output_compression": 100}, {"quality": 100}),
        ({"style": "natural"}, {"style": "none"}),
        ({"style": "anime"}, {"style": "anime"}),
        ({"negative_prompt": "fog"}, {"negative_prompt": "fog"}),
        ({}, {"scale_to_size": True}),
        ({"scale_to_size": False}, {"scale_to_size": False}),
        ({"model": "dall-e-3"}, {"model_key": "starter"}),
        ({"model": "openai/gpt-image-1"}, {"model_key": "starter"}),
        ({"model": "tiny"}, {"model_key": "tiny"}),
        ({"model": "gptx"}, {"model_key": "gptx"}),
        ({"partial_images": 3}, {}),
    ],
)
def test_fields_have_their_counterparts(
    url: str, submitted: list[GenerationRequest], values: dict[str, Any], expected: dict[str, Any]
) -> None:
    response = httpx.post(f"{url}/v1/images/generations", json={"prompt": "a fox", **values})
    assert response.status_code == 200, response.text
    [request] = submitted
    assert {name: getattr(request, name) for name in expected} == expected
    assert response.headers["x-canvas-model"] == "starter"


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("size", ("512", "512x", "x512", "5.5x512", "1" * 20 + "x" + "1" * 20)),
        ("n", (0, 17)),
        ("output_compression", (0, 101)),
        ("partial_images", (-1, 4)),
        ("output_format", ("bmp",)),
    ],
)
def test_values_out_of_range_are_refused(
    url: str, submitted: list[GenerationRequest], field: str, values: tuple[Any, ...]
) -> None:
    for value in values:
        response = httpx.post(f"{url}/v1/images/generations", json={"prompt": "a fox", field: value})
        assert response.status_code == 400, value
        assert response.json()["error"]["param"] == field
    assert submitted == []


def test_a_response_describes_the_image(
    url: str, submitted: list[GenerationRequest], served: Studio, stored: GeneratedImage
) -> None:
    body = httpx.post(f"{url}/v1/images/generations", json={"prompt": "a fox"}).json()
    [item] = body.pop("data")
    assert item["url"] == f"{url}/pictures/{stored.filename}"
    assert base64.b64decode(item["b64_json"]) == served.image_path(stored.filename).read_bytes()
    assert item["seed"] == stored.request.seed
    assert body["created"] == int(stored.created_at.timestamp())
    assert (body["size"], body["output_format"]) == ("256x256", "png")
    assert body["usage"] == {
        **{"input_tokens": 0, "output_tokens": 0, "total_tokens": 0},
        "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    }


def to_png(alpha: int = 255, hole: int = 255) -> bytes:
    image = Image.new("RGBA", (64, 64), (90, 120, 30, alpha))
    image.putpixel((5, 5), (0, 0, 0, hole))
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


@pytest.mark.parametrize(
    ("values", "files", "task", "masked"),
    [
        ({}, {"image": to_png()}, "image_to_image", False),
        ({}, {"image[]": to_png()}, "image_to_image", False),
        ({}, {"image": to_png(hole=0)}, "inpaint", True),
        ({}, {"image": to_png(), "mask": to_png(hole=0)}, "inpaint", True),
        ({"task": "inpaint"}, {"image": to_png(), "mask": to_png(hole=0)}, "inpaint", True),
        ({"task": "image_to_image"}, {"image": to_png(hole=0)}, "image_to_image", False),
        ({"task": "upscale", "scale": "4"}, {"image": to_png(), "mask": to_png(hole=0)}, "upscale", False),
        ({"outpaint": "[0, 0, 64, 0]"}, {"image": to_png()}, "inpaint", False),
        ({"outpaint": "[0, 0, 0, 0]"}, {"image": to_png()}, "image_to_image", False),
    ],
)
def test_an_edit_has_the_task_that_its_files_stand_for(
    url: str,
    submitted: list[GenerationRequest],
    values: dict[str, str],
    files: dict[str, bytes],
    task: str,
    masked: bool,
) -> None:
    sent = {name: ("a.png", content) for name, content in files.items()}
    response = httpx.post(f"{url}/v1/images/edits", data={"prompt": "a fox", **values}, files=sent)
    assert response.status_code == 200, response.text
    [request] = submitted
    assert (request.task, bool(request.mask_image)) == (task, masked)
    assert request.image


def test_further_images_of_an_edit_are_references(url: str, submitted: list[GenerationRequest]) -> None:
    files = [("image", ("a.png", to_png(alpha))) for alpha in (255, 254, 253)]
    assert httpx.post(f"{url}/v1/images/edits", data={"prompt": "a fox"}, files=files).status_code == 200
    [request] = submitted
    assert len({request.image, *(item.image for item in request.reference_images)}) == 3


@pytest.mark.parametrize(
    ("path", "files", "param", "message"),
    [
        ("edits", [("image", to_png()), ("mask", to_png())], "mask", "no transparent pixels"),
        ("edits", [("image", to_png()), *[("mask", to_png(hole=0))] * 2], "mask", "Send one mask (got 2)"),
        ("edits", [("other", to_png())], "image", "an image file"),
        ("edits", [("image", b"text")], "image", "not an image"),
        ("variations", [("image", to_png())] * 2, "image", "Send one image (got 2)"),
        ("variations", [("image", b"text")], "image", "(PNG, JPEG or WebP) (got '4 bytes')"),
    ],
)
def test_wrong_files_are_refused(
    url: str, submitted: list[GenerationRequest], path: str, files: list[tuple[str, bytes]], param: str, message: str
) -> None:
    sent = [(name, ("a.png", content)) for name, content in files]
    response = httpx.post(f"{url}/v1/images/{path}", data={"prompt": "a fox"}, files=sent)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
    assert message.lower() in response.json()["error"]["message"].lower()
    assert submitted == []


@pytest.mark.parametrize(("n", "status"), [("2", 200), ("17", 400), ("many", 400)])
def test_a_variation_of_a_file_without_a_prompt(
    url: str, submitted: list[GenerationRequest], n: str, status: int
) -> None:
    files = {"image": ("a.png", to_png(hole=0))}
    response = httpx.post(f"{url}/v1/images/variations", data={"n": n}, files=files)
    assert response.status_code == status
    assert [(request.prompt, request.task, request.num_images) for request in submitted] == (
        [("the same scene", "image_to_image", 2)] if status == 200 else []
    )


def test_unknown_paths_and_methods_are_error_objects(url: str) -> None:
    response = httpx.get(f"{url}/v1/nothing")
    assert response.status_code == 404
    assert (response.json()["error"]["code"], response.headers.get("allow")) == ("unknown_url", None)
    response = httpx.get(f"{url}/v1/images/generations")
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    assert "must be POST (got GET)" in response.json()["error"]["message"]


Script = Callable[..., list[tuple[str, dict[str, Any]]]]


@pytest.fixture
def events_of(url: str, submitted: list[GenerationRequest], monkeypatch: pytest.MonkeyPatch) -> Script:
    """The events of a stream, during which the job changes as given."""

    def stream(changes: list[dict[str, Any]], **values: Any) -> list[tuple[str, dict[str, Any]]]:
        async def scripted(job: Job) -> AsyncIterator[Job]:
            for change in changes:
                job.error = change.get("error")
                for name, value in change.items():
                    setattr(job, name, value)
                yield job

        monkeypatch.setattr(openai_images, "stream_job", scripted)
        body = {"prompt": "a fox", "stream": True, **values}
        response = httpx.post(f"{url}/v1/images/generations", json=body)
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-canvas-model"] == "starter"
        events = [part.split("\ndata: ") for part in response.text.removesuffix("\n\n").split("\n\n")]
        return [(name.removeprefix("event: "), json.loads(data)) for name, data in events]

    return stream


def running(step: int, preview: Image.Image | None = None) -> dict[str, Any]:
    return {"status": "running", "progress": ProgressUpdate(step, 12, preview=preview), "preview": preview}


PREVIEWS = [Image.new("RGB", (8, 8), color) for color in ("red", "green", "blue", "white", "black")]


def test_partial_images_are_spread_over_a_stream(events_of: Script, stored: GeneratedImage) -> None:
    red, green, blue, white, black = PREVIEWS
    changes = [
        {"status": "running"},
        {"status": "downloading", "progress": DownloadProgress(1, 2, 1.0, 1.0), "preview": red},
        *(running(3, red), running(4, green), running(5, green), running(7, blue), running(9, white)),
        running(11, black),
        {"status": "done"},
    ]
    *partial, (name, last) = events_of(changes, partial_images=2)
    assert [kind for kind, _ in partial] == ["image_generation.partial_image"] * 2
    assert [event["partial_image_index"] for _, event in partial] == [0, 1]
    colors = [decode(event["b64_json"]).getpixel((0, 0)) for _, event in partial]
    assert colors == [(0, 128, 0), (255, 255, 255)], "after a third and two thirds"
    assert (name, last["id"]) == ("image_generation.completed", stored.id)
    assert [name for name, _ in events_of(changes)] == ["image_generation.completed"]


def test_a_stream_may_have_an_event_per_step(events_of: Script) -> None:
    changes = [{"status": "queued"}, running(1, PREVIEWS[0]), running(2), {"status": "done"}]
    *progress, (name, _) = events_of(changes, progress=True)
    assert name == "image_generation.completed"
    assert [name for name, _ in progress] == ["progress"] * 3
    assert progress[0][1] == {"type": "progress", "status": "queued"}
    assert [(event["step"], event["num_steps"]) for _, event in progress[1:]] == [(1, 12), (2, 12)]


def test_an_error_ends_a_stream(events_of: Script) -> None:
    [(name, body)] = events_of([running(1), {"status": "failed", "error": StorageError("The disk is full.")}])
    assert name == "error"
    assert (body["error"]["type"], body["error"]["param"]) == ("server_error", None)
