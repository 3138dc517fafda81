from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client
from PIL import Image

from canvas import GenerationRequest, Studio
from canvas.jobs.job import Job

Answer = TypeVar("Answer")


@pytest.fixture
def ask(url: str) -> Callable[[Callable[[ClientSession], Awaitable[Any]]], Any]:
    """Runs a coroutine function with a session of the official client."""

    async def connect(talk: Callable[[ClientSession], Awaitable[Answer]]) -> Answer:
        address = f"{url}/gradio_api/mcp/"
        async with (
            streamablehttp_client(address) as (reading, writing, _),
            ClientSession(reading, writing) as session,
        ):
            await session.initialize()
            return await talk(session)

    return lambda talk: asyncio.run(connect(talk))


def test_the_tools_tell_an_agent_what_to_do(ask: Callable[..., Any]) -> None:
    tools = {tool.name: tool for tool in ask(lambda session: session.list_tools()).tools}
    assert {"generate", "models", "history", "status", "cancel"} <= set(tools)
    generate = tools["generate"]
    assert "models" in generate.description
    assert generate.inputSchema["required"] == ["prompt"]
    for name, parameter in generate.inputSchema["properties"].items():
        assert parameter["description"], name


def test_the_picture_is_in_the_answer(ask: Callable[..., Any], served: Studio) -> None:
    told: list[tuple[float, float | None, str | None]] = []

    async def progress(done: float, total: float | None, message: str | None) -> None:
        told.append((done, total, message))

    result = ask(
        lambda session: session.call_tool(
            "generate",
            {"prompt": "a red boat", "num_inference_steps": 30, "seed": 41},
            progress_callback=progress,
        )
    )
    [kept] = served.recent(limit=1)
    assert not result.isError
    picture = Image.open(io.BytesIO(base64.b64decode(result.content[0].data)))
    with Image.open(served.image_path(kept.filename)) as original:
        assert picture.tobytes() == original.tobytes()
    assert kept.filename in result.content[1].text
    assert "'seed': 41" in result.content[2].text
    assert told == sorted(told)
    assert any("of 30" in str(message) for _, _, message in told)
    assert all(total == 1.0 for _, total, _ in told)


def test_an_error_is_the_sentence(ask: Callable[..., Any]) -> None:
    result = ask(lambda session: session.call_tool("generate", {"prompt": "a", "width": 513}))
    assert result.isError
    assert "512 or 520" in result.content[0].text


@pytest.mark.parametrize("watched", [False, True])
def test_an_agent_that_hangs_up_stops_the_job(
    ask: Callable[..., Any], served: Studio, watched: bool
) -> None:
    prompt = f"an agent leaves, watched {watched}"

    async def look(done: float, total: float | None, message: str | None) -> None: ...

    async def leave(session: ClientSession) -> Job:
        wish = {"prompt": prompt, "num_inference_steps": 150}
        callback = look if watched else None
        call = asyncio.create_task(session.call_tool("generate", wish, progress_callback=callback))
        while True:
            found = [job for job in served.jobs("local") if job.request.prompt == prompt]
            if found and found[0].status == "running":
                call.cancel()
                return found[0]
            await asyncio.sleep(0.01)

    job = ask(leave)
    for _ in job.subscribe(timeout=60):
        if job.finished:
            break
    assert job.status == "cancelled"


def test_recent_pictures_are_resources(ask: Callable[..., Any], served: Studio) -> None:
    [made] = served.generate(GenerationRequest("a tree", num_inference_steps=1))

    async def read(session: ClientSession) -> tuple[Any, Any]:
        return (
            await session.read_resource("canvas://pictures"),
            await session.read_resource(f"canvas://pictures/{made.id}"),
        )

    listing, picture = ask(read)
    assert json.loads(listing.contents[0].text)[0]["id"] == made.id
    content = base64.b64decode(picture.contents[0].blob)
    assert content == served.image_path(made.filename).read_bytes()
