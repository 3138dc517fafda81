"""Launches the real app on a free port, and helpers of its clients' tests."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from PIL import Image

from canvas import GenerationRequest, Studio
from canvas.catalog import get_model
from canvas.engine.step_callback import StepCallback
from canvas.jobs.job import Job
from canvas.models.hub_client import Hub
from canvas.request import GeneratedImage
from canvas.server.launch import launch
from canvas.settings import Settings

T = TypeVar("T")
MCP_TIMEOUT = 300.0  # seconds


@contextmanager
def serving(data_dir: Path, hub: Hub | None = None, **options: Any) -> Iterator[Studio]:
    """A served studio with these settings; its address is `url`, its Blocks are `page`."""
    fixed: dict[str, Any] = {"device": "cpu", "dtype": "float32", "engine": os.environ["CANVAS_ENGINE"], "port": 0}
    settings = Settings(data_dir=data_dir, cache_dir=data_dir / "cache", **{**fixed, **options})
    with Studio(settings, hub=hub) as studio:
        page = launch(studio, block=False)
        # Gradio leaves event loops open. Python 3.11 cannot have their finalizers run while it
        # parses a module (gh-106905), so they run here, and again at the end.
        gc.collect()
        studio.url = page.local_url.rstrip("/")  # type: ignore[attr-defined]
        studio.page = page  # type: ignore[attr-defined]
        yield studio
        page.close()
    gc.collect()


def save_image(studio: Studio, owner: str) -> GeneratedImage:
    """Store an image of an owner without generating it."""
    request = GenerationRequest(f"a secret of {owner}", seed=1, num_inference_steps=1)
    resolved = request.with_defaults(get_model("starter", studio.models))
    pixels = Image.effect_noise((128, 128), 90).convert("RGB")
    image = GeneratedImage(resolved, "", 1.0, "cpu", "float32", image=pixels, owner=owner)
    return studio.image_repository.save(image)


def slow_down_steps(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Have each denoising step of this process end later, so that a job runs for long but leaves the cores alone."""
    finish_step = StepCallback.__call__

    def finish_late(*step: Any) -> dict[str, Any]:
        time.sleep(seconds)
        return finish_step(*step)

    monkeypatch.setattr(StepCallback, "__call__", finish_late)


def run_in_mcp_session(
    url: str, function: Callable[[ClientSession], Awaitable[T]], headers: dict[str, str] | None = None
) -> T:
    """The result of a coroutine function of a session of the official MCP client."""

    async def run() -> T:
        async with (
            httpx.AsyncClient(headers=headers, timeout=MCP_TIMEOUT) as client,
            streamable_http_client(f"{url}/gradio_api/mcp/", http_client=client) as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            return await function(session)

    return asyncio.run(run())


def wait_until_finished(job: Job) -> str:
    """The final status of a job."""
    for _ in job.subscribe(timeout=60):
        if job.finished:
            break
    return job.status
