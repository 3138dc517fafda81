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
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    with serving(tmp_path_factory.mktemp("served")) as studio:
        yield studio


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    with serving(tmp_path_factory.mktemp("guarded"), auth=("ann", "secret")) as studio:
        yield studio


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as leaving:
        cli.main(list(arguments))
    return int(leaving.value.code or 0)


def test_the_server_makes_the_picture(
    served: Studio, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    # No way around it: a second studio could not even begin.
    monkeypatch.setattr("canvas.studio.Studio.__init__", lambda *_: pytest.fail("two studios"))
    output = tmp_path / "out.webp"
    line = ["generate", "a boat", "--steps", "2", "--seed", "5", "--width", "128", "--count", "2"]
    folder = ["--data-dir", str(served.settings.data_dir)]
    assert run(*line, *folder, "--output", str(output), "--json") == 0
    first, second = (json.loads(line) for line in capfd.readouterr().out.splitlines())
    assert (first["seed"], second["seed"]) == (5, 6)
    assert (first["width"], first["height"], first["image_format"]) == (128, 256, "webp")
    [job] = served.jobs("local")
    assert [image.id for image in job.images] == [first["id"], second["id"]]
    for picture, number in ((first, 1), (second, 2)):
        written = tmp_path / f"out-{number}.webp"
        assert written.read_bytes() == Path(picture["filepath"]).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--model", "nope"], 2, "one of starter"),
        (["--width", "4096"], 2, "128 to 512"),
    ],
)
def test_what_it_refuses_is_told_as_at_home(
    served: Studio,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    sentence: str,
) -> None:
    folder = ["--data-dir", str(served.settings.data_dir)]
    assert run("generate", "a boat", *arguments, *folder) == code
    assert sentence in capfd.readouterr().err


def test_a_server_of_another_folder_is_left_alone(served: Studio, tmp_path: Path) -> None:
    server = find_server(served.settings.data_dir)
    assert server == (served.url, False)
    assert find_server(tmp_path) is None
    write_server_file(tmp_path, server.url)
    assert find_server(tmp_path) is None


def test_a_server_that_has_ended_is_not_waited_for(tmp_path: Path) -> None:
    write_server_file(tmp_path, "http://127.0.0.1:9/")
    assert find_server(tmp_path) is None


@pytest.mark.parametrize("note", ["", "file:///etc/passwd", "nonsense\x00"])
def test_a_spoilt_note_is_no_server(tmp_path: Path, note: str) -> None:
    write_server_file(tmp_path, note)
    assert find_server(tmp_path) is None


@pytest.mark.parametrize("way", ["option", "environment"])
def test_a_server_that_asks_for_keys_gets_one(
    guarded: Studio, capfd: pytest.CaptureFixture[str], monkeypatch: Any, way: str
) -> None:
    key = ApiKeyStore(guarded.database).create(way)
    if way == "environment":
        monkeypatch.setenv("CANVAS_KEY", key)
    monkeypatch.setattr("canvas.studio.Studio.__init__", lambda *_: pytest.fail("two studios"))
    line = ["generate", "a boat", "--steps", "1", "--json"]
    folder = ["--data-dir", str(guarded.settings.data_dir)]
    assert run(*line, *folder, *(["--key", key] if way == "option" else [])) == 0
    made = json.loads(capfd.readouterr().out)
    assert made["client"] == "cli"
    assert [image.id for image in guarded.recent(f"key-{way}")] == [made["id"]]
    assert Path(made["filepath"]).is_file()


@pytest.mark.parametrize("key", [[], ["--key", "mc-wrong"]])
def test_without_a_key_that_counts_it_says_what_to_do(
    guarded: Studio, capfd: pytest.CaptureFixture[str], key: list[str]
) -> None:
    assert run("generate", "a boat", *key, "--data-dir", str(guarded.settings.data_dir)) == 5
    shown = capfd.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    assert "keys make NAME" in shown.err
    assert "--key KEY or in CANVAS_KEY" in shown.err
