"""Read-only and removed folders, real locks, a clock set back, two servers on one folder."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import time_machine

from canvas import GenerationRequest, Studio
from canvas.errors import StorageError
from canvas.settings import Settings
from tests.resilience.conftest import Tell
from tests.resilience.consistency import address_of, asked, assert_whole, ended, heard, program
from tests.resilience.programs import gallery_in, picture

QUICK = GenerationRequest("a fox", num_inference_steps=1)
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="these are rights of POSIX")


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Take away the right to write for the folder and all that is in it."""
    paths = [folder, *folder.rglob("*")]
    modes = {path: path.stat().st_mode for path in paths}
    for path, mode in modes.items():
        path.chmod(mode & ~0o222)
    try:
        yield
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_read_only_folder_is_said_at_the_start_and_left_alone(tmp_path: Path) -> None:
    data = tmp_path / "data"
    gallery = gallery_in(data)
    gallery.save(picture(1))
    gallery.database.close()
    before = contents(data)
    with read_only(data), program("weak", "studio", data) as child:
        told = heard(child)
        assert told.startswith("refused The database")
        assert "right to" in told
        assert "--data-dir" in told
        assert ended(child) == 0, "a sentence, and no crash"
        assert contents(data) == before
    assert assert_whole(data) == 1


def test_a_folder_that_becomes_read_only_is_said_and_the_next_picture_works(
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"
    with program("weak", "studio", data) as child:
        assert heard(child) == "ready"
        told = [asked(child, 1)]
        with read_only(data / "outputs"):
            before = contents(data / "outputs")
            refused = asked(child, 2)
            assert refused.startswith("failed The picture cannot be written")
            assert "right to write" in refused
            assert contents(data / "outputs") == before
        told.append(asked(child, 3))
        assert ended(child) == 0
    assert [line.split()[0] for line in told] == ["kept", "kept"]
    assert assert_whole(data, told) == 2


def test_a_folder_moved_away_under_way_is_said_and_may_come_back(tmp_path: Path) -> None:
    data, away = tmp_path / "data", tmp_path / "away"
    with program("studio", data) as child:
        assert heard(child) == "ready"
        told = [asked(child, 1)]
        data.rename(away)
        assert "was moved or removed while it was open" in asked(child, 2)
        shutil.rmtree(data, ignore_errors=True)
        away.rename(data)
        told.append(asked(child, 3))
        assert ended(child) == 0
    assert [line.split()[0] for line in told] == ["kept", "kept"]
    assert assert_whole(data, told) == 2


def test_pictures_removed_under_way_are_missed_and_new_ones_kept(tmp_path: Path) -> None:
    with program("studio", tmp_path / "data") as child:
        assert heard(child) == "ready"
        assert asked(child, 1).startswith("kept")
        shutil.rmtree(tmp_path / "data" / "outputs")
        assert asked(child, 2).startswith("kept")
        assert ended(child) == 0
    assert assert_whole(tmp_path / "data") == 1


def test_a_database_removed_under_way_takes_nothing_that_would_be_lost(settings: Settings) -> None:
    with Studio(settings) as studio:
        job = studio.submit(GenerationRequest("a fox", num_inference_steps=100))
        next(change for change in job.subscribe() if change.status == "running")
        settings.database_path.unlink()
        with pytest.raises(StorageError, match="found by their files"):
            job.wait()
        with pytest.raises(StorageError, match="moved or removed"):
            studio.generate(QUICK)
        assert len(list(settings.outputs_dir.glob("2*/*.png"))) == 1
    assert assert_whole(settings.data_dir) == 1, "the next start finds the picture"


@contextmanager
def locked(data: Path) -> Iterator[None]:
    """Another process writes to the database for as long as the block takes."""
    with program("lock", data) as child:
        assert heard(child) == "ready"
        yield
        assert ended(child) == 0


BUSY = [
    pytest.param(300, id="short"),
    pytest.param(None, id="30 s", marks=[pytest.mark.long, pytest.mark.timeout(600)]),
]


@pytest.mark.parametrize("patience", BUSY)
def test_a_database_locked_by_another_process_is_said(
    settings: Settings, report: Tell, patience: int | None
) -> None:
    """`patience` in ms in place of the 30 s that the program has."""
    with Studio(settings) as studio:
        studio.generate(QUICK)
        if patience is not None:
            studio.database.rows(f"PRAGMA busy_timeout = {patience}")
        job = studio.submit(GenerationRequest("a fox", num_inference_steps=100))
        next(change for change in job.subscribe() if change.status == "running")
        with locked(settings.data_dir):
            assert not job.finished
            with pytest.raises(StorageError, match="locked by another program"):
                job.wait()
            with pytest.raises(StorageError, match="locked by another program"):
                studio.submit(QUICK)
            assert len(studio.recent()) == 1, "reading goes on"
        studio.generate(QUICK)
        assert [one.status for one in studio.jobs("local")] == ["done", "failed", "done"]
    with Studio(settings) as studio:
        assert studio.interrupted_jobs("local") == [], "what ended while it was locked is known to"
        assert len(studio.recent()) == 3, "the picture made meanwhile was found"
    assert assert_whole(settings.data_dir) == 3
    report("a database locked for 60 s by another process while a picture was being made", 1)


def test_a_short_lock_is_waited_for(settings: Settings) -> None:
    with Studio(settings) as studio, ThreadPoolExecutor(1) as pool:
        with locked(settings.data_dir):
            waiting = pool.submit(studio.generate, QUICK)
            assert not waiting.done()
        assert len(waiting.result()) == 1


def test_a_clock_set_back_loses_nothing(settings: Settings) -> None:
    now = datetime.now(UTC)
    with Studio(settings) as studio:
        with time_machine.travel(now + timedelta(days=400), tick=True):
            early = [studio.generate(QUICK)[0] for _ in range(3)]
            token, _ = studio.image_repository.delete([early[0].id or 0], "local")
            running = studio.submit(GenerationRequest("an owl", num_inference_steps=150))
            part = settings.outputs_dir / ".half.png.part"
            part.write_bytes(b"half")
        late = [studio.generate(QUICK)[0] for _ in range(2)]
        running.wait()
        assert studio.image_repository.undo(token, "local") == 1
        with Studio(settings) as second:
            assert second.interrupted_jobs("local") == []
            assert {one.filename for one in second.recent()} >= {
                one.filename for one in (*early, *late)
            }
    with time_machine.travel(now - timedelta(days=4000), tick=True), Studio(settings) as studio:
        assert len(studio.recent()) == 6
        studio.generate(QUICK)
    assert assert_whole(settings.data_dir) == 7


def make(url: str, seed: int) -> str:
    """A picture over HTTP; its name."""
    body = {"prompt": "a fox", "model": "starter", "size": "128x128", "seed": seed}
    body |= {"num_inference_steps": 1, "response_format": "url"}
    answer = httpx.post(f"{url}/v1/images/generations", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["data"][0]["url"]).rpartition("/")[2]


def test_two_servers_in_processes_of_their_own_share_a_folder(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with program("serve", data) as one, program("serve", data) as two:
        urls = [address_of(child) for child in (one, two)]
        assert len(set(urls)) == 2
        with ThreadPoolExecutor(6) as pool:
            names = list(pool.map(make, urls * 3, range(6)))
        assert len(set(names)) == 6
        for url in urls:
            for name in names:
                assert httpx.get(f"{url}/pictures/{name}").status_code == 200
        one.kill()
        one.wait()
        names.append(make(urls[1], 7))
        assert ended(two) == 0
    assert {path.name for path in data.glob("outputs/2*/*")} == set(names)
    assert assert_whole(data) == 7
