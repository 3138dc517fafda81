"""No answer or export holds a path of the machine, and no log of a public server a request body."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from canvas import GenerationRequest, Studio
from canvas.errors import StorageError, without_paths
from tests.app_server import serving
from tests.visitors import Visitor

ROOT = Path(__file__).resolve().parent.parent.parent
MARKER = "wolpertinger"
PARAMETER = re.compile(r"\{\w+(?::\w+)?\}")


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    with serving(tmp_path_factory.mktemp("data")) as studio:
        yield studio


def break_outputs(studio: Studio) -> None:
    """Replace the image folder by a file, which fails for root as well."""
    shutil.rmtree(studio.settings.outputs_dir, ignore_errors=True)
    studio.settings.outputs_dir.write_text("not a folder")


def answers(studio: Studio) -> Iterator[tuple[str, str]]:
    """What the APIs and the page answer to requests that fail."""
    url = studio.url  # type: ignore[attr-defined]
    prompt = {"prompt": "a fox"}
    posts: dict[str, dict[str, Any]] = {
        "/v1/images/generations": prompt,
        "/v1/images/edits": {**prompt, "image": "/etc/passwd"},
        "/sdapi/v1/txt2img": {**prompt, "steps": 1},
        "/sdapi/v1/img2img": {**prompt, "init_images": ["/etc/passwd"]},
    }
    for path, body in posts.items():
        yield path, httpx.post(url + path, json=body, timeout=60).text
    client = Client(url, verbose=False, download_files=False)
    for function, arguments in (("/generate", {**prompt, "num_inference_steps": 1}), ("/image", {"image_id": 1})):
        try:
            yield function, str(client.predict(**arguments, api_name=function))
        except AppError as error:
            yield function, str(error)
    for path in ("/pictures/x.png", "/downloads/x.png", "/thumbnails/x.png", "/export.zip?ids=9"):
        yield path, httpx.get(url + path).text
    visitor = Visitor(url)
    for name in ("page_generate", "poll", "show_2"):
        event = visitor.event(name)
        yield name, visitor.call(event, visitor.inputs_of(event, Prompt="a fox", Steps=1)).decode()
    visitor.close()


def test_no_answer_holds_a_path(tmp_path: Path) -> None:
    seen = ""
    with serving(tmp_path) as studio:
        break_outputs(studio)
        for what, answer in answers(studio):
            for secret in (str(tmp_path), str(ROOT), str(Path.home()) + "/"):
                assert secret not in answer, f"{what}: {answer[:500]}"
            seen += answer
        for job in studio.jobs(None):
            if job.error:
                assert str(tmp_path) not in str(job.error)
    assert "cannot be written" in seen, "the images could not be stored"


def test_an_export_names_no_path(studio: Studio) -> None:
    images = [studio.generate(GenerationRequest("a fox", num_inference_steps=1, seed=seed))[0] for seed in (1, 2)]
    studio.image_path(images[0].filename).write_bytes(b"no image")
    studio.image_path(images[1].filename).unlink()
    content = httpx.get(f"{studio.url}/export.zip?image_format=webp", timeout=60).content  # type: ignore[attr-defined]
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        errors = archive.read("not-exported.txt").decode()
    assert all(image.filename in errors for image in images)
    assert str(studio.settings.data_dir) not in errors
    assert "/" not in errors


def test_invalid_qualities_are_explained(studio: Studio) -> None:
    for quality in ("9" * 5000, "0", "101", "-1", "x", "1e3", "٣" * 5000):
        response = httpx.get(f"{studio.url}/export.zip", params={"quality": quality})  # type: ignore[attr-defined]
        assert response.status_code == 400, quality[:9]
        message = response.json()["error"]["message"]
        assert message.startswith("Quality must be a whole number between 1 and 100"), quality[:9]


def test_paths_are_removed_from_messages() -> None:
    folder = str(ROOT / "canvas")
    assert without_paths(f"[Errno 2] No such file: '{folder}/x.py'") == "[Errno 2] No such file: 'x.py'"
    assert without_paths("Send it to /v1/images/edits") == "Send it to /v1/images/edits"
    assert without_paths("https://example.com/tmp/x.png") == "https://example.com/tmp/x.png"
    error = StorageError(f"The file {folder}/x.db is locked.")
    assert str(error) == "The file x.db is locked."
    assert folder in error.full_text


def test_wrong_arguments_are_answered_in_a_sentence(studio: Studio) -> None:
    url = f"{studio.url}/gradio_api/call"  # type: ignore[attr-defined]
    calls = {"generate": [], "image": [], "history": ["x"], "upscale": [7, None, 2, "lanczos"]}
    calls["edit"] = ["a fox", {"path": 7}, None, None, 0.5, "", "starter", 2, None, -1, "none", 1]
    for name, data in calls.items():
        event = httpx.post(f"{url}/{name}", json={"data": data}).json()["event_id"]
        answer = httpx.get(f"{url}/{name}/{event}", timeout=30).text
        assert "event: error" in answer, name
        assert '"error": null' not in answer
        assert re.search("inputs|uploaded|must", answer), answer


# The log of a public server


@pytest.mark.parametrize(
    ("stream", "start"),
    [
        (f"call/generate/{MARKER}", 'event: error\ndata: "404: Not Found"\n\n'),
        (f"queue/data?session_hash={MARKER}", 'data: {"msg":"unexpected_error"'),
    ],
)
def test_an_unknown_event_is_no_error_of_the_server(
    studio: Studio, caplog: pytest.LogCaptureFixture, stream: str, start: str
) -> None:
    answer = httpx.get(f"{studio.url}/gradio_api/{stream}", timeout=30).text  # type: ignore[attr-defined]
    assert answer.startswith(start)
    assert answer.count("data: ") == 1
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_unexpected_errors_are_logged_without_their_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(MARKER)

    with serving(tmp_path, public=True) as studio:
        visitor = Visitor(studio.url)  # type: ignore[attr-defined]
        monkeypatch.setattr(studio, "submit", fail)
        monkeypatch.setattr(studio, "user_gallery", fail)
        event = visitor.event("page_generate")
        answers = [visitor.client.get("/export.zip").text]
        answers += [visitor.call(event, visitor.inputs_of(event, Prompt="a fox")).decode()]
        visitor.close()
    assert MARKER not in caplog.text.join(answers)
    assert caplog.text.count(": RuntimeError\n") == 2, "the log says what happened, and where"


@dataclass
class Program:
    """A public server in a process of its own, whose output is collected."""

    url: str
    routes: set[str]  # those that take a POST
    process: subprocess.Popen[str]
    log: Path


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    code = (
        "import json, time; from pathlib import Path\n"
        "from tests.app_server import serving; from tests.visitors import routes_of\n"
        f"with serving(Path({str(tmp_path / 'data')!r}), public=True) as studio:\n"
        "    posts = sorted(path for method, path in routes_of(studio.page.app) if method == 'POST')\n"
        "    print('SERVES', json.dumps([studio.url, posts]), flush=True); time.sleep(600)\n"
    )
    log = tmp_path / "log"
    with log.open("w") as out:
        environ = {**os.environ, "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdout=out, stderr=out, text=True, env=environ
        )
        while not (lines := [line for line in log.read_text().splitlines() if line.startswith("SERVES ")]):
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
            assert process.poll() is None, log.read_text()
        url, routes = json.loads(lines[0].removeprefix("SERVES "))
        yield Program(url, {PARAMETER.sub("generate", route) for route in routes}, process, log)
        process.terminate()
        process.wait(30)


def bodies() -> Iterator[dict[str, Any]]:
    """Request bodies with the marker, most of them malformed."""
    json_type = {"content-type": "application/json"}
    deep = [MARKER]
    for _ in range(100):
        deep = [deep]  # type: ignore[list-item]
    for value in (MARKER, [MARKER], {"path": MARKER}, deep, {MARKER: MARKER}):
        yield {"json": {"data": [value] * 19, "fn_index": 9, "session_hash": "s", "prompt": value, "username": value}}
        yield {"json": {"data": value, "fn_index": MARKER, "session_hash": "s"}}
        yield {"json": {"data": [value], "fn_index": 37, "session_hash": "s", "event_data": value, "trigger_id": 9}}
    yield {"content": f'{{"data": ["{MARKER}"', "headers": json_type}
    yield {"content": f'"{MARKER}"', "headers": json_type}
    yield {"content": b'{"data": ["\xff' + MARKER.encode() + b'"]}', "headers": json_type}
    yield {"content": f'{{"data": ["{MARKER}' + "x" * 3_000_000 + '"]}', "headers": json_type}
    yield {"content": MARKER, "headers": {"content-type": "multipart/form-data; boundary=b"}}
    yield {"files": {"files": (MARKER, MARKER.encode())}, "data": {"component_id": MARKER, "id": MARKER}}
    yield {"data": {"username": MARKER, "password": MARKER}}


def test_no_body_is_in_the_log_of_a_public_server(program: Program, tmp_path: Path) -> None:
    assert len(program.routes) > 30
    visitor = Visitor(program.url)
    requests = [httpx.Request("POST", program.url, **body) for body in bodies()]
    contents = [(request.read(), request.headers["content-type"]) for request in requests]
    for path in sorted(program.routes):
        for content, media_type in contents:
            status, *_ = visitor.send("POST", path, content, media_type)
            if status == 404:  # not one of our routes
                break
            assert status < 500 or path.startswith("/gradio_api/"), path
    click = {"action": MARKER, "image": MARKER}
    events = [event for event in visitor.config["dependencies"] if event["backend_fn"]]
    answers = visitor.call_all((event, [MARKER] * len(event["inputs"]), click) for event in events)
    assert all(answers)
    visitor.close()
    log = program.log.read_text()
    at = log.find(MARKER)
    assert at < 0, log[max(0, at - 2000) : at + 200]
    assert str(tmp_path) not in log.partition("SERVES ")[2], "no path of the data folder"
