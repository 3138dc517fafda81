"""Requests that wait for the database do not block the event loop."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import Any

import httpx
import pytest
from gradio_client import Client

from canvas import GenerationRequest, Studio
from canvas.api.base import DATABASE_THREADS
from canvas.errors import QueueFull
from tests.app_server import wait_until_finished

PROMPT = "a fox behind a lock"
MAX_SECONDS = 10.0  # for six responses; a blocked event loop waits for the lock, up to 30 s


def post_openai(url: str) -> Any:
    body = {"prompt": PROMPT, "num_inference_steps": 1}
    return httpx.post(f"{url}/v1/images/generations", json=body, timeout=60).raise_for_status()


def post_a1111(url: str) -> Any:
    body = {"prompt": PROMPT, "steps": 1}
    return httpx.post(f"{url}/sdapi/v1/txt2img", json=body, timeout=60).raise_for_status()


def post_gradio(url: str) -> Any:
    with closing(Client(url, verbose=False, download_files=False)) as client:
        return client.predict(PROMPT, num_inference_steps=1, api_name="/generate")


@contextmanager
def write_lock(studio: Studio) -> Iterator[None]:
    """Another program that has the database locked for writing."""
    connection = sqlite3.connect(studio.settings.database_path, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")
    finally:
        connection.close()


@pytest.mark.parametrize("post", [post_openai, post_a1111, post_gradio])
def test_other_routes_respond_while_the_database_is_locked(
    served: Studio, url: str, post: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = len(served.recent(limit=1000))
    submit, submitting = served.submit, threading.Event()

    def observed_submit(*args: Any) -> Any:
        submitting.set()
        return submit(*args)

    monkeypatch.setattr(served, "submit", observed_submit)
    with ThreadPoolExecutor(1) as pool:
        with write_lock(served):
            response = pool.submit(post, url)
            assert submitting.wait(60)
            assert seconds_for(url, "/healthz", "/docs") < MAX_SECONDS
            assert not response.done(), "it waits for the lock"
        response.result(60)
    image = served.recent(limit=1)[0]
    assert image.request.prompt == PROMPT
    assert len(served.recent(limit=1000)) == before + 1


@pytest.mark.slow
@pytest.mark.parametrize("api", ["v1", "sdapi", "gradio"])
def test_many_waiting_requests_leave_threads_for_other_routes(
    served: Studio, url: str, api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Starlette's routes share 40 threads, and so do Gradio's events by default."""
    count, waiting = 45, threading.Semaphore(0)

    def wait_and_fail(*args: Any) -> Any:  # 135 images would take a minute
        waiting.release()
        with served.database.transaction():
            raise QueueFull("Not queued.")

    monkeypatch.setattr(served, "submit", wait_and_fail)
    with (
        closing(Client(url, verbose=False, download_files=False, max_workers=count)) as client,
        ThreadPoolExecutor(count) as pool,
    ):
        post = {
            "v1": partial(pool.submit, post_openai, url),
            "sdapi": partial(pool.submit, post_a1111, url),
            "gradio": partial(client.submit, PROMPT, api_name="/generate"),
        }[api]
        running = client.pending_event_ids if api == "gradio" else served.page.server.server_state.tasks  # type: ignore[attr-defined]
        with write_lock(served):
            responses = [post() for _ in range(count)]
            assert all(waiting.acquire(timeout=60) for _ in range(DATABASE_THREADS))
            while len(running) < count:
                time.sleep(0.01)
            assert seconds_for(url, "/healthz", "/docs", "/", "/sdapi/v1/memory") < MAX_SECONDS
            assert not any(response.done() for response in responses)
            started_reading = time.monotonic()
            served.recent()
            assert time.monotonic() - started_reading < 1, "reading does not wait"
        for response in responses:
            assert response.exception(60) is not None


def test_a_disconnect_does_not_block_the_event_loop(served: Studio, url: str) -> None:
    """It cancels the job of the client, which deletes a row of the database."""
    running = served.submit(GenerationRequest("runs", num_inference_steps=150, num_images=4))
    body = {"prompt": "disconnects", "num_inference_steps": 1, "stream": True}
    with ExitStack() as stack:
        address = f"{url}/v1/images/generations"
        with httpx.stream("POST", address, json=body, timeout=60):
            [job] = [job for job in served.jobs("local") if job.request.prompt == "disconnects"]
            stack.enter_context(write_lock(served))
        assert job.cancelled.wait(60)
        assert seconds_for(url, "/healthz", "/docs") < MAX_SECONDS
    running.cancel()
    assert wait_until_finished(job) == "cancelled"
    wait_until_finished(running)


def seconds_for(url: str, *paths: str) -> float:
    started = time.monotonic()
    for path in 3 * paths:
        assert httpx.get(url + path, timeout=60).status_code == 200
    return time.monotonic() - started
