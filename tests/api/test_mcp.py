from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from mcp import ClientSession
from PIL import Image

from canvas import GenerationRequest, Studio
from canvas.api.mcp import parse_progress
from canvas.jobs.job import Job
from tests.app_server import run_in_mcp_session, wait_until_finished


@pytest.fixture
def in_session(url: str) -> Callable[..., Any]:
    """Runs a coroutine function with a session of the official client."""
    return partial(run_in_mcp_session, url)


def test_tools_and_parameters_are_described(in_session: Callable[..., Any]) -> None:
    tools = {tool.name: tool for tool in in_session(lambda session: session.list_tools()).tools}
    assert {"generate", "models", "history", "status", "cancel"} <= set(tools)
    generate = tools["generate"]
    assert "models" in generate.description
    assert generate.inputSchema["required"] == ["prompt"]
    for name, parameter in generate.inputSchema["properties"].items():
        assert parameter["description"], name


def test_generate_returns_the_image_and_reports_progress(in_session: Callable[..., Any], served: Studio) -> None:
    notifications: list[tuple[float, float | None, str | None]] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        notifications.append((progress, total, message))

    arguments = {"prompt": "a red boat", "num_inference_steps": 30, "seed": 41}
    result = in_session(lambda session: session.call_tool("generate", arguments, progress_callback=on_progress))
    [image] = served.recent(limit=1)
    assert not result.isError
    returned = Image.open(io.BytesIO(base64.b64decode(result.content[0].data)))
    with Image.open(served.image_path(image.filename)) as stored:
        assert returned.tobytes() == stored.tobytes()
    assert image.filename in result.content[1].text
    [settings] = json.loads(result.content[2].text)["images"]
    assert settings["seed"] == 41
    assert notifications == sorted(notifications)
    assert any("of 30" in str(message) for _, _, message in notifications)
    assert all(total == 1.0 for _, total, _ in notifications)


def test_errors_are_explained(in_session: Callable[..., Any]) -> None:
    result = in_session(lambda session: session.call_tool("generate", {"prompt": "a", "width": 513}))
    assert result.isError
    assert "a multiple of 8" in result.content[0].text


@pytest.mark.parametrize("with_progress", [False, True])
def test_an_agent_that_disconnects_cancels_the_job(
    in_session: Callable[..., Any], served: Studio, with_progress: bool
) -> None:
    prompt = f"an agent disconnects, progress {with_progress}"

    async def on_progress(progress: float, total: float | None, message: str | None) -> None: ...

    async def call_and_cancel(session: ClientSession) -> Job:
        arguments = {"prompt": prompt, "num_inference_steps": 150}
        callback = on_progress if with_progress else None
        call = session.call_tool("generate", arguments, progress_callback=callback)
        task = asyncio.create_task(call)
        while True:
            jobs = [job for job in served.jobs("local") if job.request.prompt == prompt]
            if jobs and jobs[0].status == "running":
                task.cancel()
                return jobs[0]
            await asyncio.sleep(0.01)

    assert wait_until_finished(in_session(call_and_cancel)) == "cancelled"


def test_images_are_resources(in_session: Callable[..., Any], served: Studio) -> None:
    [image] = served.generate(GenerationRequest("a tree", num_inference_steps=1))

    async def read(session: ClientSession) -> tuple[Any, Any]:
        return (
            await session.read_resource("canvas://pictures"),
            await session.read_resource(f"canvas://pictures/{image.id}"),
        )

    listing, resource = in_session(read)
    assert json.loads(listing.contents[0].text)[0]["id"] == image.id
    content = base64.b64decode(resource.contents[0].blob)
    assert content == served.image_path(image.filename).read_bytes()


RUNNING = {"status": "running", "step": 1, "num_steps": 4}


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        (None, None),
        ([], None),
        ({}, None),
        ({"data": [None, "text"]}, None),
        ({"data": [None, {"seed": 1}]}, None),
        ({"data": [None, {**RUNNING, "fraction": 0.25}]}, (0.25, "running, step 1 of 4")),
        ([{"status": "downloading", "bytes_done": 1, "bytes_total": 4}], (0.25, "downloading")),
        ([{"status": "downloading", "bytes_done": 1, "bytes_total": 0}], (0.0, "downloading")),
        ([{"status": "queued", "queue_position": 1}], (0.0, "queued")),
    ],
)
def test_an_update_has_a_fraction_and_a_message(outputs: Any, expected: tuple[float, str] | None) -> None:
    assert parse_progress(outputs) == expected
