"""Invalid requests and disconnecting clients, for every API."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from canvas import Studio
from canvas.jobs.job import Job
from tests.app_server import wait_until_finished

ROOT = Path(__file__).resolve().parent.parent.parent
TOO_LARGE = 50_000_000  # bytes
JSON = {"content-type": "application/json"}
MCP = {**JSON, "accept": "application/json, text/event-stream"}


def openai_error(response: httpx.Response) -> str:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    return str(error["message"])


def a1111_error(response: httpx.Response) -> str:
    error = response.json()
    assert set(error) == {"error", "detail", "errors"}
    return str(error["detail"])


# How each route reports an error.
ROUTES: dict[str, Callable[[httpx.Response], str]] = {
    "/v1/images/generations": openai_error,
    "/v1/images/edits": openai_error,
    "/v1/images/variations": openai_error,
    "/sdapi/v1/txt2img": a1111_error,
    "/sdapi/v1/img2img": a1111_error,
    "/sdapi/v1/extra-single-image": a1111_error,
    "/sdapi/v1/png-info": a1111_error,
    "/controlnet/detect": a1111_error,
}


@pytest.mark.parametrize("path", ROUTES)
def test_large_bodies_are_rejected(url: str, path: str) -> None:
    response = httpx.post(url + path, content=b" " * TOO_LARGE, headers=JSON, timeout=60)
    assert response.status_code == 413
    assert "20 MiB" in ROUTES[path](response)


def test_large_chunked_bodies_are_rejected(url: str) -> None:
    body = b'{"prompt": "' + b"x" * TOO_LARGE + b'"}'
    chunks = (body[i : i + 2**20] for i in range(0, len(body), 2**20))
    address = f"{url}/v1/images/generations"
    response = httpx.post(address, content=chunks, headers=JSON, timeout=60)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "body_too_large"


@pytest.mark.parametrize("path", ["/v1/images/edits", "/v1/images/variations"])
def test_large_forms_are_rejected(url: str, path: str) -> None:
    response = httpx.post(url + path, files={"image": b"x" * TOO_LARGE}, timeout=60)
    assert response.status_code == 413
    assert "20 MiB" in openai_error(response)


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("body", [None, b"", b"null", b"[]", b"{", b'"x"', b"\xff"])
def test_invalid_json_is_rejected(url: str, path: str, body: bytes | None) -> None:
    response = httpx.post(url + path, content=body, headers=JSON if body is not None else {})
    assert response.status_code == 400
    assert ROUTES[path](response)


@pytest.mark.parametrize(
    "body", [None, b"null", b"[]", b"{", b'{"data": 7}', b'{"data": ["' + b"x" * TOO_LARGE + b'"]}']
)
def test_gradio_rejects_invalid_bodies(url: str, served: Studio, body: bytes | None) -> None:
    before = served.recent()
    address = f"{url}/gradio_api/call/generate"
    response = httpx.post(address, content=body, headers=JSON, timeout=60)
    if response.status_code == 200:
        events = httpx.get(f"{address}/{response.json()['event_id']}", timeout=60)
        assert "event: error" in events.text
    else:
        assert response.status_code < 500
    assert served.recent() == before


@pytest.mark.parametrize(
    "arguments", [None, {}, {"prompt": 7}, {"prompt": "a", "colour": 1}, {"prompt": "x" * TOO_LARGE}]
)
def test_mcp_reports_invalid_arguments(url: str, served: Studio, arguments: Any) -> None:
    before = served.recent()
    params = {"name": "generate", "arguments": arguments}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    response = httpx.post(f"{url}/gradio_api/mcp/", json=body, headers=MCP, timeout=60)
    assert response.status_code < 500
    if response.status_code == 200:
        [line] = [line for line in response.text.splitlines() if line.startswith("data: ")]
        message = json.loads(line.removeprefix("data: "))
        assert "error" in message or message["result"]["isError"]
    assert served.recent() == before


def find_job(served: Studio, prompt: str) -> Job | None:
    return next((job for job in served.jobs("local") if job.request.prompt == prompt), None)


def assert_cancelled_early(job: Job | None) -> None:
    assert job is not None
    assert wait_until_finished(job) == "cancelled"
    assert job.progress is None or job.progress.step < 150


def test_an_a1111_client_that_disconnects_cancels_the_job(url: str, served: Studio) -> None:
    body = {"prompt": "aborted by an a1111 client", "steps": 150}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/sdapi/v1/txt2img", json=body, timeout=httpx.Timeout(30, read=0.2))
    assert_cancelled_early(find_job(served, body["prompt"]))


@pytest.mark.slow
def test_interrupting_the_command_line_cancels_the_job(served: Studio) -> None:
    prompt = "aborted in the terminal"
    options = ["--steps", "150", "--data-dir", str(served.settings.data_dir)]
    command = [sys.executable, "-m", "canvas", "generate", prompt, *options]
    # A shell starts its background jobs, this test perhaps, with SIGINT ignored.
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as process:
        while (job := find_job(served, prompt)) is None or job.status == "queued":
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr is not None
        assert process.stderr.read() in ("Stopped.\n", "Cancelled.\n")
    assert_cancelled_early(job)
