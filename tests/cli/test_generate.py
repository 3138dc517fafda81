"""`generate`, `edit` and `upscale`: the requests that they make, and where their images go."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from PIL import Image

from canvas import MODELS, GenerationRequest
from canvas.cli import generate
from canvas.cli import main as cli
from canvas.cli.generate import InputFiles
from canvas.errors import CanvasError, InvalidInput, MissingApiKey, NotFound
from canvas.request import GeneratedImage
from canvas.settings import Settings

REQUEST = GenerationRequest("a fox").with_defaults(MODELS["starter"])


class Calls:
    """In place of the generation: what the commands asked for; each image is the file `stored`."""

    def __init__(self, stored: Path) -> None:
        self.stored = stored
        self.requests: list[GenerationRequest] = []
        self.files = InputFiles()
        self.accept_terms: list[bool] = []

    def __call__(
        self, settings: Settings, requests: list[GenerationRequest], files: InputFiles, *, accept_terms: bool
    ) -> Iterator[tuple[GeneratedImage, Path]]:
        self.requests += requests
        self.files = files
        self.accept_terms.append(accept_terms)
        for request in requests:
            complete = replace(REQUEST, prompt=request.prompt or "a fox")
            for number in range(request.num_images):
                yield GeneratedImage(complete, request.prompt, 1.0, "cpu", "float32", id=number), self.stored


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Calls:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64), "red").save("photo.png")
    Path("stored.png").write_bytes(b"pixels")
    calls = Calls(tmp_path / "stored.png")
    monkeypatch.setattr(generate, "_generate_local", calls)
    return calls


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as raised:
        cli.main(list(arguments))
    return int(raised.value.code or 0)


@pytest.mark.parametrize(
    ("arguments", "task"),
    [
        (["generate", "a fox"], "text_to_image"),
        (["edit", "photo.png", "a fox"], "image_to_image"),
        (["edit", "photo.png", "a fox", "--outpaint", "0,0,0,0"], "image_to_image"),
        (["edit", "photo.png", "a fox", "--outpaint", "0,0,8,0"], "inpaint"),
        (["edit", "photo.png", "a fox", "--mask", "photo.png"], "inpaint"),
        (["upscale", "photo.png"], "upscale"),
    ],
)
def test_the_task_follows_from_the_command_and_its_files(calls: Calls, arguments: list[str], task: str) -> None:
    assert run(*arguments) == 0
    [request] = calls.requests
    assert request.task == task
    assert (calls.files.image is None) == (task == "text_to_image")
    assert (calls.files.mask is None) == ("--mask" not in arguments)
    assert calls.accept_terms == [False]


@pytest.mark.parametrize(
    ("arguments", "output", "written"),
    [
        ([], ["{stored}"], []),
        (["--count", "2"], ["{stored}", "{stored}"], []),
        (["--output", "fox.webp"], ["fox.webp"], ["fox.webp"]),
        (["--output", "fox.png", "--count", "3"], ["fox-1.png", "fox-2.png", "fox-3.png"],
         ["fox-1.png", "fox-2.png", "fox-3.png"]),
        (["--output", "-"], ["pixels"], []),
    ],
)  # fmt: skip
def test_images_are_written_where_they_are_asked_for(
    calls: Calls, capfd: pytest.CaptureFixture[str], arguments: list[str], output: list[str], written: list[str]
) -> None:
    assert run("generate", "a fox", *arguments) == 0
    captured = capfd.readouterr()
    assert captured.out.splitlines() == [line.format(stored=calls.stored) for line in output]
    assert captured.err == ""
    assert sorted(path.name for path in Path().glob("fox*")) == written
    assert all(Path(name).read_bytes() == b"pixels" for name in written)
    assert calls.requests[0].image_format == ("webp" if "fox.webp" in arguments else "png")


def test_json_has_the_paths_of_both_files(calls: Calls, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("generate", "a fox", "--json") == run("generate", "a fox", "--json", "--output", "fox.png") == 0
    first, second = map(json.loads, capfd.readouterr().out.splitlines())
    assert first["filepath"] == second["filepath"] == str(calls.stored)
    assert "output" not in first
    assert second["output"] == "fox.png"


@pytest.mark.parametrize("arguments", [["-"], ["--prompts", "-"], ["--prompts", "prompts.txt"]])
def test_prompts_are_the_lines_of_a_file(calls: Calls, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    content = b"a boat\n\n  a {red|blue} tree \n"
    Path("prompts.txt").write_bytes(content)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    assert run("generate", *arguments, "--negative", "fog", "--accept-terms") == 0
    assert [request.prompt for request in calls.requests] == ["a boat", "a red tree", "a blue tree"]
    assert {request.negative_prompt for request in calls.requests} == {"fog"}
    assert calls.accept_terms == [True]


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_stdin_without_a_prompt_is_an_error(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], content: bytes
) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    assert run("generate", "-") == 2
    assert "a text with one prompt per line (got '-')" in capfd.readouterr().err


def test_guiding_files_are_named_by_their_content(calls: Calls) -> None:
    assert run("generate", "a fox", "--control", "photo.png,kind=canny", "--reference", "photo.png") == 0
    [request] = calls.requests
    [(name, content)] = calls.files.guiding
    assert content == Path("photo.png").read_bytes()
    assert [item.image for item in (*request.control_images, *request.reference_images)] == [name] * 2


def test_lists_are_printed_as_text_unless_json_is_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    for command in ("styles", "schedulers"):
        assert run(command) == 0
        assert "{" not in capfd.readouterr().out


def test_several_prompts_are_numbered() -> None:
    titles = [title for title, _ in generate._with_titles([REQUEST, replace(REQUEST, prompt="a boat")])]
    assert titles == ["1 of 2: a fox", "2 of 2: a boat"]
    assert [title for title, _ in generate._with_titles([REQUEST])] == ["a fox"]


class Response:
    """A response with events, or with an error."""

    def __init__(self, lines: list[str], is_error: bool = False) -> None:
        self.lines = lines
        self.is_error = is_error
        self.sent: dict[str, Any] = {}

    @contextmanager
    def __call__(self, method: str, address: str, **options: Any) -> Iterator[Response]:
        self.sent = {"address": address, **options}
        yield self

    def read(self) -> str:
        return self.lines[0]

    def iter_lines(self) -> list[str]:
        return self.lines


EVENTS = [
    'data: {"type": "progress", "status": "queued"}',
    ": a comment",
    'data: {"type": "progress", "status": "running", "step": 1, "num_steps": 2}',
    'data: {"type": "image_generation.partial_image", "id": 5}',
    'data: {"type": "image_generation.completed", "id": 7}',
]


def test_the_ids_of_the_servers_images_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    response = Response(EVENTS)
    monkeypatch.setattr(httpx, "stream", response)
    body = {"prompt": "a fox", "seed": None, "n": 2, "stream": True}
    assert generate._stream_image_ids("http://canvas", "mc-key", body, "a fox", None) == [7]
    assert response.sent["address"] == "http://canvas/v1/images/generations"
    assert response.sent["json"] == body
    assert response.sent["headers"] == {"Authorization": "Bearer mc-key"}
    files = {"image": ("image", b"pixels")}
    assert generate._stream_image_ids("http://canvas", None, body, "a fox", files) == [7]
    assert response.sent["address"] == "http://canvas/v1/images/edits"
    assert response.sent["data"] == {"prompt": "a fox", "n": "2", "stream": "true"}
    assert response.sent["files"] == files
    assert response.sent["headers"] == {}


@pytest.mark.parametrize("is_error", [True, False])
@pytest.mark.parametrize(
    ("code", "expected", "message"),
    [("invalid_api_key", MissingApiKey, "--key KEY"), ("invalid_input", CanvasError, "Steps are wrong")],
)
def test_an_error_of_the_server_is_raised(
    monkeypatch: pytest.MonkeyPatch, is_error: bool, code: str, expected: type[CanvasError], message: str
) -> None:
    event = json.dumps({"error": {"code": code, "message": "Steps are wrong."}})
    lines = [event, EVENTS[-1]] if is_error else [f"data: {event}"]
    monkeypatch.setattr(httpx, "stream", Response(lines, is_error))
    with pytest.raises(expected, match=message):
        generate._stream_image_ids("http://canvas", None, {}, "a fox", None)


def test_only_the_error_of_a_failed_response_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(httpx, "stream", Response(['{"error": 1}', EVENTS[-1]], is_error=True))
    assert list(generate._stream_events("http://canvas", {}, {}, None)) == [{"error": 1}]


def test_a_lost_connection_to_the_server_is_an_error() -> None:
    with pytest.raises(CanvasError, match=r"The connection to http://127\.0\.0\.1:9 was lost"):
        list(generate._stream_events("http://127.0.0.1:9", {}, {}, None))


def test_the_body_of_a_request_has_the_names_of_the_api() -> None:
    request = replace(REQUEST, prompt="a {b}", num_images=2)
    body = generate._request_body(request, accept_terms=True)
    assert (body["model"], body["n"], body["output_format"]) == ("starter", 2, "png")
    assert (body["stream"], body["progress"], body["client"], body["accept_terms"]) == (True, True, "cli", True)
    assert body["num_inference_steps"] == request.num_inference_steps
    assert not {"model_key", "num_images", "image_format", "image", "mask_image"} & set(body)
    assert body["prompt"] != request.prompt, "it is not expanded again"


@pytest.mark.parametrize("requires_api_key", [True, False])
def test_the_server_is_asked_only_with_the_key_that_it_requires(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, requires_api_key: bool
) -> None:
    server: Any = SimpleNamespace(url="http://canvas", requires_api_key=requires_api_key)
    monkeypatch.setattr(generate, "_stream_image_ids", lambda *_: [7])
    for key in (None, "mc-key"):
        changed = settings.model_copy(update={"api_key": key})
        images = generate._generate_via_server(server, changed, [REQUEST], InputFiles(), accept_terms=False)
        with pytest.raises(MissingApiKey if requires_api_key and key is None else NotFound, match=r"--key|Image 7 has"):
            next(images)


@pytest.mark.parametrize(("output", "name"), [(None, "png"), ("-", "png"), ("fox.JPG", "jpeg"), ("fox.webp", "webp")])
def test_the_format_is_that_of_the_output(output: str | None, name: str) -> None:
    assert generate._format_of(output) == name


def test_a_file_that_cannot_be_read_is_named() -> None:
    with pytest.raises(InvalidInput, match=r"Mask 'no\.png' cannot be read \(No such file or directory\)"):
        generate._read_image("no.png", "mask")
