"""kill -9 at random moments: the data folder is consistent after each restart."""

from __future__ import annotations

import random
import shutil
import sqlite3
import threading
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from canvas.catalog import ASSETS
from canvas.history.export_zip import export_zip
from canvas.history.import_zip import import_zip
from canvas.history.migrations import MIGRATIONS
from canvas.history.queries import Query
from canvas.models import download
from canvas.models.hub_client import Hub
from tests.conftest import make_spec, slow_params
from tests.history.test_migrations import OLD, build
from tests.hub_server import Fault, LocalHub
from tests.resilience.conftest import Report
from tests.resilience.consistency import assert_consistent, kill_at_random
from tests.resilience.fuzzing import small_png
from tests.resilience.programs import noise_image, open_repository


def rounds(few: int, many: int, *, slow: bool = False) -> pytest.MarkDecorator:
    first = slow_params(few) if slow else [few]
    long = pytest.param(many, marks=[pytest.mark.long, pytest.mark.timeout(3600)])
    return pytest.mark.parametrize("rounds", [*first, long])


@rounds(2, 80)
def test_kill_while_saving_images(tmp_path: Path, report: Report, rounds: int) -> None:
    lines: list[str] = []
    rng = random.Random(1)
    for number in range(rounds):
        lines += kill_at_random(rng, 0.5, "save", tmp_path, saved=number % 2 * 3)
        assert_consistent(tmp_path, lines)
    assert sum(line.startswith("saved") for line in lines) > rounds
    report("killed while saving and deleting images", rounds)


@rounds(2, 30, slow=True)
def test_kill_while_generating(tmp_path: Path, report: Report, rounds: int) -> None:
    lines: list[str] = []
    rng = random.Random(2)
    for number in range(rounds):
        status, max_seconds = (("loading", 0.3), ("running", 3.0))[number % 2]
        lines += kill_at_random(rng, max_seconds, "generate", tmp_path, status)
        assert_consistent(tmp_path, lines)
    assert any(line.startswith("saved") for line in lines)
    report("killed while loading the built-in model or generating", rounds)


@rounds(2, 40, slow=True)
def test_kill_while_migrating(tmp_path: Path, report: Report, rounds: int) -> None:
    old = build(tmp_path / "old.db", OLD)
    with closing(sqlite3.connect(old)) as connection, connection:
        connection.executemany(
            "INSERT INTO generated_images (filename, filepath, prompt, model_used) VALUES (?, '', 'an owl', 'tiny')",
            [(f"{number}.png",) for number in range(3000)],
        )
    rng = random.Random(3)
    interrupted = 0
    for number in range(rounds):
        data = tmp_path / str(number)
        data.mkdir()
        shutil.copy(old, data / "ai_images.db")
        interrupted += "done" not in kill_at_random(rng, 0.1, "migrate", data)
        assert_consistent(data)
        with closing(sqlite3.connect(data / "ai_images.db")) as connection:
            assert connection.execute("SELECT count(*) FROM generated_images").fetchone() == (3001,)
            assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        for backup in data.glob("*.backup-*.db"):
            with closing(sqlite3.connect(backup)) as connection:
                count = connection.execute("SELECT count(*) FROM generated_images").fetchone()
                assert count == (3001,), "a backup is complete"
    assert interrupted or rounds < 10
    report("killed while migrating a database", rounds)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data folder with 30 images; `expected.zip` has them and five of another program."""
    data = tmp_path_factory.mktemp("exported")
    repository = open_repository(data)
    for number in range(30):
        repository.save(noise_image(number))
    chunks = export_zip(repository.database, repository.storage, Query(owner="local"))
    (data / "expected.zip").write_bytes(b"".join(chunks))
    with zipfile.ZipFile(data / "expected.zip", "a") as archive:
        for number in range(5):
            archive.writestr(f"{number}.png", small_png(parameters=f"fox {number}\nSteps: 5"))
    repository.database.close()
    yield data


@rounds(1, 20, slow=True)
def test_kill_while_exporting(exported: Path, report: Report, rounds: int) -> None:
    rng = random.Random(4)
    for _ in range(rounds):
        kill_at_random(rng, 0.3, "export", exported)
        if (exported / "all.zip").exists():
            with zipfile.ZipFile(exported / "all.zip") as archive:
                assert archive.testzip() is None
                assert len(archive.namelist()) == 32
        assert assert_consistent(exported) == 30
    report("killed while exporting", rounds)


@rounds(1, 20, slow=True)
def test_kill_while_importing(exported: Path, tmp_path: Path, report: Report, rounds: int) -> None:
    rng = random.Random(5)
    for number in range(rounds):
        data = tmp_path / str(number)
        data.mkdir()
        kill_at_random(rng, 0.4, "import", data, exported / "expected.zip")
        assert_consistent(data)
        repository = open_repository(data)
        import_zip(repository.database, repository.storage, exported / "expected.zip", "local")
        repository.database.close()
        assert assert_consistent(data) == 35, "the second import completes the first"
    report("killed while importing", rounds)


@rounds(1, 20, slow=True)
def test_kill_while_downloading(tmp_path: Path, report: Report, rounds: int) -> None:
    folder = tmp_path / "model"
    shutil.copytree(ASSETS / "starter", folder)
    hub = LocalHub()
    try:
        hub.add("an/owner", folder)
        for file in folder.rglob("*.safetensors"):
            hub.faults[file.relative_to(folder).as_posix()] = Fault.slow(0.01)
        rng = random.Random(6)
        for number in range(rounds):
            cache = tmp_path / f"cache{number}"
            kill_at_random(rng, 1.5, "download", cache, hub.url, "an/owner")
            local_hub = Hub(endpoint=hub.url, cache_dir=cache, token="none")  # noqa: S106
            spec = make_spec("an/owner")
            found = download.find_local(spec, hub=local_hub)
            if found is None:  # recognized as incomplete; the next download uses its files
                plan = download.plan_download(spec, hub=local_hub)
                done = download.download(spec, plan, lambda _: None, threading.Event(), hub=local_hub)
                found = done.local
            for file in folder.rglob("*.safetensors"):
                fetched = found.path / file.relative_to(folder)
                assert fetched.read_bytes() == file.read_bytes()
    finally:
        hub.close()
    report("killed while downloading a model from a local server", rounds)
