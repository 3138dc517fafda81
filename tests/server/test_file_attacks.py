"""No event reads, moves, deletes or returns a file that its caller did not upload.

The events and their inputs are those of the running app, so that a new one is attacked as well.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from gradio.utils import get_upload_folder

from canvas import GenerationRequest, Studio
from canvas.history.export_zip import export_zip
from canvas.history.queries import Query
from canvas.jobs.job import Job
from tests.app_server import run_in_mcp_session, serving
from tests.visitors import Visitor

PROMPT = "quetzalfinch in a velvet fjord"
FILE_COMPONENTS = ("uploadbutton", "imageeditor", "image", "file")


@dataclass
class Target:
    """A public server with the files of one visitor, whose path an attacker knows."""

    studio: Studio
    ann: Visitor
    files: dict[str, Path]

    @property
    def url(self) -> str:
        return str(self.studio.url)  # type: ignore[attr-defined]

    def contents(self) -> dict[str, bytes]:
        return {name: path.read_bytes() for name, path in self.files.items() if name != "database"}

    def attacker(self, with_key: bool) -> Visitor:
        visitor = Visitor(self.url)
        if with_key:
            visitor.client.headers["authorization"] = f"Bearer {self.studio.api_keys.create('mallory')}"
        return visitor


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("attacked")
    with serving(folder, public=True) as studio:
        ann = Visitor(studio.url)  # type: ignore[attr-defined]
        [image] = studio.generate(GenerationRequest(PROMPT, num_inference_steps=1), "visitor-ann")
        path = studio.image_path(image.filename)
        chunks = export_zip(studio.database, studio.image_repository.storage, Query())
        uploads = {"image.png": path.read_bytes(), "export.zip": b"".join(chunks)}
        (folder / "server.log").write_text(PROMPT)
        files = {
            "image": path,
            "thumbnail": studio.image_path(image.filename, thumbnail=True),
            "database": studio.settings.database_path,
            "log": folder / "server.log",
            **{f"upload {name}": Path(upload(ann, name, content)) for name, content in uploads.items()},
        }
        yield Target(studio, ann, files)
        ann.close()


def upload(visitor: Visitor, name: str, content: bytes) -> str:
    [path] = visitor.client.post("/gradio_api/upload", files={"files": (name, content)}).json()
    return str(path)


def disguises(path: Path, suffix: str = "") -> Iterator[Any]:
    """The path in everything that a client can send."""
    for text in (f"{path}{suffix}", f"{path.parent}/./{path.name}", f"{path.parent}/../{path.parent.name}/{path.name}"):
        file = {"path": text, "meta": {"_type": "gradio.FileData"}}
        yield text
        yield file
        yield {"path": text}
        yield {**file, "url": text, "orig_name": path.name, "is_stream": False}
        yield [file]
        yield [text]
        yield {"background": file, "layers": [file], "composite": file}
        yield {"background": text, "layers": [], "composite": None}
        yield {"image": {"value": [{"file": file}]}}
    yield {"path": f"file://{path}", "meta": {"_type": "gradio.FileData"}}


def file_inputs(visitor: Visitor, event: dict[str, Any]) -> list[int]:
    """The positions of the inputs that may hold files: all of the API's, some of the page's."""
    components = {one["id"]: one for one in visitor.config["components"]}
    is_api = not event["targets"]
    return [
        position
        for position, number in enumerate(event["inputs"])
        if is_api or components.get(number, {}).get("type") in FILE_COMPONENTS
    ]


def attacks(visitor: Visitor, event: dict[str, Any], value: Any) -> Iterator[list[Any]]:
    """The inputs of an event with a value in each input for files, and in all inputs."""
    inputs = visitor.inputs_of(event)
    for position in file_inputs(visitor, event):
        yield [value if number == position else other for number, other in enumerate(inputs)]
    if inputs:
        yield [value] * len(inputs)


def temp_contents() -> set[bytes]:
    folder = Path(get_upload_folder())
    return {path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_no_content(answer: bytes, what: object) -> None:
    assert b"quetzalfinch" not in answer, what
    assert b"SQLite" not in answer, what


def assert_files_are_unchanged(target: Target, before: dict[str, bytes], what: object) -> None:
    for name, path in target.files.items():
        assert path.is_file(), f"{what} has deleted {name}"
    assert target.contents() == before, what


def attack_events(target: Target, visitor: Visitor, *, of_api: bool) -> int:
    """Attack all events of the page, or of the API; returns the number of calls."""
    before, calls = target.contents(), 0
    for event in visitor.config["dependencies"]:
        if bool(event["targets"]) == of_api or not event["backend_fn"]:
            continue
        has_files = bool(file_inputs(visitor, event))
        for start, (name, path) in enumerate(target.files.items()):
            # Every disguise for one file of the page's uploads, other ones for each other file. Gradio handles
            # files in the inputs of any component, so that events without files get one.
            step = (1 if name == "image" else 7) if has_files and event["targets"] else 14 if has_files else 28
            values = list(disguises(path))[start::step]
            sent = [inputs for value in values for inputs in attacks(visitor, event, value)]
            for inputs, answer in zip(sent, visitor.call_all((event, inputs, None) for inputs in sent), strict=True):
                calls += 1
                assert_no_content(answer.replace(str(inputs).encode(), b""), (event["api_name"], name, inputs))
            assert_files_are_unchanged(target, before, (event["api_name"], name, sent))
    return calls


def test_no_event_of_the_page_uses_a_file_of_another_visitor(target: Target) -> None:
    visitor, temporary = target.attacker(with_key=False), temp_contents()
    assert attack_events(target, visitor, of_api=False) > 300
    assert not temp_contents() - temporary - {b""}, "no copies"
    visitor.close()


def test_no_function_of_the_api_uses_a_file_of_another_owner(target: Target) -> None:
    visitor, temporary = target.attacker(with_key=True), temp_contents()
    assert attack_events(target, visitor, of_api=True) > 300
    assert not temp_contents() - temporary - {b""}, "no copies"
    jobs: list[Job] = target.studio.jobs(None)
    assert all(job.request is None or not job.request.image for job in jobs)
    for job in jobs:
        job.cancel()
    visitor.close()


def test_relative_paths_do_not_work_either(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(target.studio.settings.data_dir)
    visitor, before = target.attacker(with_key=False), target.contents()
    path = target.files["image"].relative_to(target.studio.settings.data_dir)
    for name in ("load_settings", "import_files"):
        event = visitor.event(name)
        for value in disguises(path):
            for inputs in attacks(visitor, event, value):
                assert_no_content(visitor.call(event, inputs), (name, value))
                assert_files_are_unchanged(target, before, (name, value))
    visitor.close()


def test_an_upload_serves_its_owner_once(target: Target) -> None:
    visitor = target.attacker(with_key=False)
    path = upload(visitor, "own.png", target.files["image"].read_bytes())
    event, file = visitor.event("load_settings"), {"path": path, "meta": {"_type": "gradio.FileData"}}
    assert b"quetzalfinch" in visitor.call(event, [file])
    assert not Path(path).exists(), "deleted after use"
    assert target.files["upload image.png"].is_file(), "although it has the same content"
    assert b"was not uploaded by you" in visitor.call(event, [file])
    visitor.close()


def test_the_same_upload_of_two_visitors_is_deleted_with_the_second(target: Target) -> None:
    first, second = target.attacker(with_key=False), target.attacker(with_key=False)
    content = target.files["image"].read_bytes()
    path = upload(first, "same.png", content)
    assert upload(second, "same.png", content) == path
    for visitor, left in ((first, True), (second, False)):
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        assert b"quetzalfinch" in visitor.call(visitor.event("load_settings"), [file])
        assert Path(path).exists() == left
        visitor.close()


def test_agents_cannot_name_files_of_the_server(target: Target) -> None:
    key = target.studio.api_keys.create("agent")
    headers = {"authorization": f"Bearer {key}"}
    for value in itertools.islice(disguises(target.files["image"]), 9):
        arguments = {"prompt": "a cat", "image": value}
        result = run_in_mcp_session(target.url, lambda session: session.call_tool("edit", arguments), headers)  # noqa: B023
        assert result.isError
        assert "quetzalfinch" not in json.dumps([part.model_dump(mode="json") for part in result.content])
