"""`generate` on a data folder with a running server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from canvas import Studio
from canvas.cli import main as cli
from canvas.history.api_keys import ApiKeyStore
from canvas.server.discovery import find_server, write_server_file
from tests.app_server import serving


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    with serving(tmp_path_factory.mktemp("served")) as studio:
        yield studio


@pytest.fixture(scope="module")
def server_with_login(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    with serving(tmp_path_factory.mktemp("guarded"), auth=("ann", "secret")) as studio:
        yield studio


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as raised:
        cli.main(list(arguments))
    return int(raised.value.code or 0)


def test_running_server_generates_the_images(
    server: Studio, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    # A second Studio would fail.
    monkeypatch.setattr("canvas.studio.Studio.__init__", lambda *_: pytest.fail("two studios"))
    output = tmp_path / "out.webp"
    command = ["generate", "a boat", "--steps", "2", "--seed", "5", "--width", "128", "--count", "2"]
    folder = ["--data-dir", str(server.settings.data_dir)]
    assert run(*command, *folder, "--output", str(output), "--json") == 0
    first, second = (json.loads(line) for line in capfd.readouterr().out.splitlines())
    assert (first["seed"], second["seed"]) == (5, 6)
    assert (first["width"], first["height"], first["image_format"]) == (128, 256, "webp")
    [job] = server.jobs("local")
    assert [image.id for image in job.images] == [first["id"], second["id"]]
    for image, number in ((first, 1), (second, 2)):
        written = tmp_path / f"out-{number}.webp"
        assert written.read_bytes() == Path(image["filepath"]).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [(["--model", "nope"], 2, "one of starter"), (["--width", "4096"], 2, "between 128 and 512")],
)
def test_server_errors_have_local_exit_codes(
    server: Studio, capfd: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    folder = ["--data-dir", str(server.settings.data_dir)]
    assert run("generate", "a boat", *arguments, *folder) == code
    assert message in capfd.readouterr().err


def test_server_of_another_folder_is_not_used(server: Studio, tmp_path: Path) -> None:
    assert find_server(server.settings.data_dir) == (server.url, False)
    assert find_server(tmp_path) is None
    write_server_file(tmp_path, server.url)
    assert find_server(tmp_path) is None


def test_stopped_server_is_not_used(tmp_path: Path) -> None:
    write_server_file(tmp_path, "http://127.0.0.1:9/")
    assert find_server(tmp_path) is None


@pytest.mark.parametrize("content", ["", "file:///etc/passwd", "nonsense\x00"])
def test_invalid_server_file_is_ignored(tmp_path: Path, content: str) -> None:
    write_server_file(tmp_path, content)
    assert find_server(tmp_path) is None


@pytest.mark.slow
@pytest.mark.parametrize("source", ["option", "environment"])
def test_api_key_is_sent_to_a_server_that_requires_one(
    server_with_login: Studio, capfd: pytest.CaptureFixture[str], monkeypatch: Any, source: str
) -> None:
    key = ApiKeyStore(server_with_login.database).create(source)
    if source == "environment":
        monkeypatch.setenv("CANVAS_API_KEY", key)
    monkeypatch.setattr("canvas.studio.Studio.__init__", lambda *_: pytest.fail("two studios"))
    command = ["generate", "a boat", "--steps", "1", "--json"]
    folder = ["--data-dir", str(server_with_login.settings.data_dir)]
    assert run(*command, *folder, *(["--key", key] if source == "option" else [])) == 0
    image = json.loads(capfd.readouterr().out)
    assert image["client"] == "cli"
    assert [stored.id for stored in server_with_login.recent(f"key-{source}")] == [image["id"]]
    assert Path(image["filepath"]).is_file()


@pytest.mark.parametrize("key", [[], ["--key", "mc-wrong"]])
def test_missing_or_invalid_key_exits_with_5(
    server_with_login: Studio, capfd: pytest.CaptureFixture[str], key: list[str]
) -> None:
    assert run("generate", "a boat", *key, "--data-dir", str(server_with_login.settings.data_dir)) == 5
    output = capfd.readouterr()
    assert output.out == ""
    assert len(output.err.splitlines()) == 1
    assert "keys create NAME" in output.err
    assert "--key KEY or set CANVAS_API_KEY" in output.err
