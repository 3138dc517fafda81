"""What every family of clients is told when it asks wrongly, and what it costs when it leaves."""

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

ROOT = Path(__file__).resolve().parent.parent.parent
MUCH = 50_000_000  # bytes
JSON = {"content-type": "application/json"}
MCP = {**JSON, "accept": "application/json, text/event-stream"}


def openai_error(answer: httpx.Response) -> str:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    return str(error["message"])


def sdapi_error(answer: httpx.Response) -> str:
    error = answer.json()
    assert set(error) == {"error", "detail", "errors"}
    return str(error["detail"])


FAMILIES: dict[str, Callable[[httpx.Response], str]] = {
    "/v1/images/generations": openai_error,
    "/v1/images/edits": openai_error,
    "/v1/images/variations": openai_error,
    "/sdapi/v1/txt2img": sdapi_error,
    "/sdapi/v1/img2img": sdapi_error,
    "/sdapi/v1/extra-single-image": sdapi_error,
    "/sdapi/v1/png-info": sdapi_error,
}


@pytest.mark.parametrize("path", FAMILIES)
def test_fifty_megabytes_are_too_much(url: str, path: str) -> None:
    answer = httpx.post(url + path, content=b" " * MUCH, headers=JSON, timeout=60)
    assert answer.status_code == 413
    assert "20 MiB" in FAMILIES[path](answer)


@pytest.mark.parametrize("path", ["/v1/images/edits", "/v1/images/variations"])
def test_a_form_of_fifty_megabytes_is_too_much(url: str, path: str) -> None:
    answer = httpx.post(url + path, files={"image": b"x" * MUCH}, timeout=60)
    assert answer.status_code == 413
    assert "20 MiB" in openai_error(answer)


@pytest.mark.parametrize("path", FAMILIES)
@pytest.mark.parametrize("body", [None, b"", b"null", b"[]", b"{", b'"x"', b"\xff"])
def test_what_is_no_body_is_said(url: str, path: str, body: bytes | None) -> None:
    answer = httpx.post(url + path, content=body, headers=JSON if body is not None else {})
    assert answer.status_code == 400
    assert FAMILIES[path](answer)


@pytest.mark.parametrize(
    "body", [None, b"null", b"[]", b"{", b'{"data": 7}', b'{"data": ["' + b"x" * MUCH + b'"]}']
)
def test_gradio_takes_no_nonsense(url: str, served: Studio, body: bytes | None) -> None:
    before = served.recent()
    address = f"{url}/gradio_api/call/generate"
    answer = httpx.post(address, content=body, headers=JSON, timeout=60)
    if answer.status_code == 200:
        told = httpx.get(f"{address}/{answer.json()['event_id']}", timeout=60)
        assert "event: error" in told.text
    else:
        assert answer.status_code < 500
    assert served.recent() == before


@pytest.mark.parametrize(
    "arguments", [None, {}, {"prompt": 7}, {"prompt": "a", "colour": 1}, {"prompt": "x" * MUCH}]
)
def test_agents_are_told_in_words(url: str, served: Studio, arguments: Any) -> None:
    before = served.recent()
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}
    body = {**call, "params": {"name": "generate", "arguments": arguments}}
    address = f"{url}/gradio_api/mcp/"
    answer = httpx.post(address, json=body, headers=MCP, timeout=60)
    assert answer.status_code < 500
    if answer.status_code == 200:
        [line] = [line for line in answer.text.splitlines() if line.startswith("data: ")]
        told = json.loads(line.removeprefix("data: "))
        assert "error" in told or told["result"]["isError"]
    assert served.recent() == before


def job_of(served: Studio, prompt: str) -> Job | None:
    return next((job for job in served.jobs("local") if job.request.prompt == prompt), None)


def ended(job: Job | None) -> str:
    assert job is not None
    for _ in job.subscribe(timeout=60):
        if job.finished:
            break
    assert job.progress is None or job.progress.step < 150
    return job.status


def test_an_sdapi_client_that_hangs_up_stops_the_job(url: str, served: Studio) -> None:
    body = {"prompt": "given up by a client of sdapi", "steps": 150}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/sdapi/v1/txt2img", json=body, timeout=httpx.Timeout(30, read=0.2))
    assert ended(job_of(served, body["prompt"])) == "cancelled"


def test_the_command_line_that_is_stopped_stops_the_job(served: Studio) -> None:
    prompt = "given up at the terminal"
    line = ["generate", prompt, "--steps", "150", "--data-dir", str(served.settings.data_dir)]
    with subprocess.Popen(
        [sys.executable, "-m", "canvas", *line], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as program:
        while (job := job_of(served, prompt)) is None or job.status == "queued":
            assert program.poll() is None
        program.send_signal(signal.SIGINT)
        assert program.wait(60) == 130
        assert program.stderr is not None
        assert program.stderr.read() == "Stopped.\n"
    assert ended(job) == "cancelled"
