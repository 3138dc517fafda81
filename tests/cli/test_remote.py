from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from canvas import Studio
from canvas.api.presence import announce, server_of
from canvas.cli import main as cli
from canvas.serve import launch
from canvas.settings import Settings


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    folder = tmp_path_factory.mktemp("served")
    settings = Settings(
        data_dir=folder, cache_dir=folder / "cache", port=0, device="cpu", dtype="float32"
    )
    with Studio(settings) as studio:
        page = launch(studio, block=False)
        gc.collect()  # see tests/api/conftest.py
        yield studio
        page.close()
    gc.collect()


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
    line = ["generate", "a boat", "--steps", "2", "--seed", "5", "--width", "64", "--count", "2"]
    folder = ["--data-dir", str(served.settings.data_dir)]
    assert run(*line, *folder, "--output", str(output), "--json") == 0
    first, second = (json.loads(line) for line in capfd.readouterr().out.splitlines())
    assert (first["seed"], second["seed"]) == (5, 6)
    assert (first["width"], first["height"], first["image_format"]) == (64, 128, "webp")
    [job] = served.jobs("local")
    assert [image.id for image in job.images] == [first["id"], second["id"]]
    for picture, number in ((first, 1), (second, 2)):
        written = tmp_path / f"out-{number}.webp"
        assert written.read_bytes() == Path(picture["filepath"]).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--model", "nope"], 2, "one of starter"),
        (["--width", "4096"], 2, "64 to 256"),
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
    url = server_of(served.settings.data_dir)
    assert url is not None
    assert server_of(tmp_path) is None
    announce(tmp_path, url)
    assert server_of(tmp_path) is None


def test_a_server_that_has_ended_is_not_waited_for(tmp_path: Path) -> None:
    announce(tmp_path, "http://127.0.0.1:9/")
    assert server_of(tmp_path) is None


@pytest.mark.parametrize("note", ["", "file:///etc/passwd", "nonsense\x00"])
def test_a_spoilt_note_is_no_server(tmp_path: Path, note: str) -> None:
    announce(tmp_path, note)
    assert server_of(tmp_path) is None
