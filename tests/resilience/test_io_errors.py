"""Read-only and deleted folders, locks, clock changes, two servers on one data folder."""

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
from tests.resilience.conftest import Report
from tests.resilience.consistency import assert_consistent, read_line, read_url, run_program, send_line, wait_for_exit
from tests.resilience.programs import noise_image, open_repository

REQUEST = GenerationRequest("a fox", num_inference_steps=1)
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="uses POSIX permissions")


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Remove write permission from a folder and everything in it during the block."""
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


@pytest.mark.slow
def test_read_only_folder_is_refused_at_start_and_not_changed(tmp_path: Path) -> None:
    data = tmp_path / "data"
    repository = open_repository(data)
    repository.save(noise_image(1))
    repository.database.close()
    before = contents(data)
    with read_only(data), run_program("unprivileged", "studio", data) as child:
        message = read_line(child)
        assert message.startswith("refused The database")
        assert "permissions of" in message
        assert "--data-dir" in message
        assert wait_for_exit(child) == 0, "an error, not a crash"
        assert contents(data) == before
    assert assert_consistent(data) == 1


@pytest.mark.slow
def test_folder_that_becomes_read_only_fails_one_job(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with run_program("unprivileged", "studio", data) as child:
        assert read_line(child) == "ready"
        lines = [send_line(child, 1)]
        with read_only(data / "outputs"):
            before = contents(data / "outputs")
            failure = send_line(child, 2)
            assert failure.startswith("failed The image cannot be written")
            assert "permissions of" in failure
            assert contents(data / "outputs") == before
        lines.append(send_line(child, 3))
        assert wait_for_exit(child) == 0
    assert [line.split()[0] for line in lines] == ["saved", "saved"]
    assert assert_consistent(data, lines) == 2


@pytest.mark.long
def test_moved_data_folder_fails_jobs_until_it_is_moved_back(tmp_path: Path) -> None:
    data, away = tmp_path / "data", tmp_path / "away"
    with run_program("studio", data) as child:
        assert read_line(child) == "ready"
        lines = [send_line(child, 1)]
        data.rename(away)
        assert "was moved or deleted while it was open" in send_line(child, 2)
        shutil.rmtree(data, ignore_errors=True)
        away.rename(data)
        lines.append(send_line(child, 3))
        assert wait_for_exit(child) == 0
    assert [line.split()[0] for line in lines] == ["saved", "saved"]
    assert assert_consistent(data, lines) == 2


@pytest.mark.long
def test_deleted_images_are_marked_missing(tmp_path: Path) -> None:
    with run_program("studio", tmp_path / "data") as child:
        assert read_line(child) == "ready"
        assert send_line(child, 1).startswith("saved")
        shutil.rmtree(tmp_path / "data" / "outputs")
        assert send_line(child, 2).startswith("saved")
        assert wait_for_exit(child) == 0
    assert assert_consistent(tmp_path / "data") == 1


@pytest.mark.slow
def test_deleted_database_refuses_new_images(settings: Settings) -> None:
    with Studio(settings) as studio:
        job = studio.submit(GenerationRequest("a fox", num_inference_steps=100))
        next(change for change in job.subscribe() if change.status == "running")
        settings.database_path.unlink()
        with pytest.raises(StorageError, match="found by their files"):
            job.wait()
        with pytest.raises(StorageError, match="moved or deleted"):
            studio.generate(REQUEST)
        assert len(list(settings.outputs_dir.glob("2*/*.png"))) == 1
    assert assert_consistent(settings.data_dir) == 1, "the next start recovers the image"


@contextmanager
def locked(data: Path) -> Iterator[None]:
    """Another process holds the write lock of the database during the block."""
    with run_program("lock", data) as child:
        assert read_line(child) == "ready"
        yield
        assert wait_for_exit(child) == 0


LOCK_TIMEOUTS = [
    pytest.param(300, id="short"),
    pytest.param(None, id="30 s", marks=[pytest.mark.long, pytest.mark.timeout(600)]),
]


@pytest.mark.slow
@pytest.mark.parametrize("busy_timeout", LOCK_TIMEOUTS)
def test_database_locked_by_another_process_raises(
    settings: Settings, report: Report, busy_timeout: int | None
) -> None:
    """`busy_timeout` in ms; None for the default of 30 s."""
    with Studio(settings) as studio:
        studio.generate(REQUEST)
        if busy_timeout is not None:
            with studio.database.transaction() as connection:
                connection.execute(f"PRAGMA busy_timeout = {busy_timeout}")
        job = studio.submit(GenerationRequest("a fox", num_inference_steps=100))
        next(change for change in job.subscribe() if change.status == "running")
        with locked(settings.data_dir):
            assert not job.finished
            with pytest.raises(StorageError, match="locked by another program"):
                job.wait()
            with pytest.raises(StorageError, match="locked by another program"):
                studio.submit(REQUEST)
            assert len(studio.recent()) == 1, "reading works"
        studio.generate(REQUEST)
        assert [job.status for job in studio.jobs("local")] == ["done", "failed", "done"]
    with Studio(settings) as studio:
        assert studio.interrupted_jobs("local") == [], "the failed job is not offered again"
        assert len(studio.recent()) == 3, "the image made during the lock is recovered"
    assert assert_consistent(settings.data_dir) == 3
    report("database locked for 60 s by another process during generation", 1)


@pytest.mark.slow
def test_short_lock_is_waited_for(settings: Settings) -> None:
    with Studio(settings) as studio, ThreadPoolExecutor(1) as pool:
        with locked(settings.data_dir):
            future = pool.submit(studio.generate, REQUEST)
            assert not future.done()
        assert len(future.result()) == 1


@pytest.mark.long
def test_clock_changes_lose_nothing(settings: Settings) -> None:
    now = datetime.now(UTC)
    with Studio(settings) as studio:
        with time_machine.travel(now + timedelta(days=400), tick=True):
            early = [studio.generate(REQUEST)[0] for _ in range(3)]
            token, _ = studio.image_repository.trash.delete([early[0].id or 0], "local")
            running = studio.submit(GenerationRequest("an owl", num_inference_steps=150))
            part = settings.outputs_dir / ".half.png.part"
            part.write_bytes(b"half")
        late = [studio.generate(REQUEST)[0] for _ in range(2)]
        running.wait()
        assert studio.image_repository.trash.undo(token, "local") == 1
        with Studio(settings) as second:
            assert second.interrupted_jobs("local") == []
            assert {image.filename for image in second.recent()} >= {image.filename for image in (*early, *late)}
    with time_machine.travel(now - timedelta(days=4000), tick=True), Studio(settings) as studio:
        assert len(studio.recent()) == 6
        studio.generate(REQUEST)
    assert assert_consistent(settings.data_dir) == 7


def generate(url: str, seed: int) -> str:
    """Generate an image over HTTP; returns its file name."""
    body = {"prompt": "a fox", "model": "starter", "size": "128x128", "seed": seed}
    body |= {"num_inference_steps": 1, "response_format": "url"}
    response = httpx.post(f"{url}/v1/images/generations", json=body, timeout=120)
    assert response.status_code == 200, response.text
    return str(response.json()["data"][0]["url"]).rpartition("/")[2]


@pytest.mark.long
def test_two_server_processes_share_a_data_folder(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with run_program("serve", data) as one, run_program("serve", data) as two:
        urls = [read_url(child) for child in (one, two)]
        assert len(set(urls)) == 2
        with ThreadPoolExecutor(6) as pool:
            names = list(pool.map(generate, urls * 3, range(6)))
        assert len(set(names)) == 6
        for url in urls:
            for name in names:
                assert httpx.get(f"{url}/pictures/{name}").status_code == 200
        one.kill()
        one.wait()
        names.append(generate(urls[1], 7))
        assert wait_for_exit(two) == 0
    assert {path.name for path in data.glob("outputs/2*/*")} == set(names)
    assert assert_consistent(data) == 7
