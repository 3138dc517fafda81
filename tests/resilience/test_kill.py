"""kill -9 at random moments: after each restart everything is whole."""

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

from canvas.history.export_zip import export_zip
from canvas.history.import_zip import import_zip
from canvas.history.migrations import MIGRATIONS
from canvas.history.queries import Query
from canvas.models import download
from canvas.models.hub_client import Hub
from tests.conftest import make_spec
from tests.history.test_migrations import OLD, build
from tests.hub_server import Fault, LocalHub
from tests.resilience.conftest import Tell
from tests.resilience.consistency import assert_whole, killed
from tests.resilience.fuzzing import small_png
from tests.resilience.programs import gallery_in, picture


def times(few: int, many: int) -> pytest.MarkDecorator:
    long = pytest.param(many, marks=[pytest.mark.long, pytest.mark.timeout(3600)])
    return pytest.mark.parametrize("rounds", [few, long])


@times(5, 80)
def test_while_pictures_are_encoded_written_and_recorded(
    tmp_path: Path, report: Tell, rounds: int
) -> None:
    told: list[str] = []
    chance = random.Random(1)
    for _ in range(rounds):
        told += killed(chance, 0.5, "keep", tmp_path)
        assert_whole(tmp_path, told)
    assert sum(line.startswith("kept") for line in told) > rounds
    report("killed while it encoded, wrote and recorded pictures, and deleted some", rounds)


@times(2, 30)
def test_while_the_built_in_model_is_loaded_and_paints(
    tmp_path: Path, report: Tell, rounds: int
) -> None:
    told: list[str] = []
    chance = random.Random(2)
    for number in range(rounds):
        first, longest = (("loading", 0.3), ("running", 1.0))[number % 2]
        told += killed(chance, longest, "generate", tmp_path, first)
        assert_whole(tmp_path, told)
    assert any(line.startswith("kept") for line in told)
    report("killed while it loaded the built-in model (half of them) or painted with it", rounds)


@times(4, 40)
def test_while_an_older_database_is_migrated(tmp_path: Path, report: Tell, rounds: int) -> None:
    old = build(tmp_path / "old.db", OLD)
    with closing(sqlite3.connect(old)) as connection, connection:
        connection.executemany(
            "INSERT INTO generated_images (filename, filepath, prompt, model_used) "
            "VALUES (?, '', 'an owl', 'tiny')",
            [(f"{number}.png",) for number in range(3000)],
        )
    chance = random.Random(3)
    cut_short = 0
    for number in range(rounds):
        data = tmp_path / str(number)
        data.mkdir()
        shutil.copy(old, data / "ai_images.db")
        cut_short += "done" not in killed(chance, 0.1, "migrate", data)
        assert_whole(data)
        with closing(sqlite3.connect(data / "ai_images.db")) as connection:
            assert connection.execute("SELECT count(*) FROM generated_images").fetchone() == (3001,)
            assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        for backup in data.glob("*.backup-*.db"):
            with closing(sqlite3.connect(backup)) as connection:
                count = connection.execute("SELECT count(*) FROM generated_images").fetchone()
                assert count == (3001,), "a backup is whole or is none"
    assert cut_short or rounds < 10
    report("killed while it migrated a database", rounds)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data folder with pictures, and their ZIP."""
    data = tmp_path_factory.mktemp("pictures")
    gallery = gallery_in(data)
    for number in range(30):
        gallery.save(picture(number))
    pieces = export_zip(gallery.database, gallery.storage, Query(owner="local"))
    (data / "expected.zip").write_bytes(b"".join(pieces))
    with zipfile.ZipFile(data / "expected.zip", "a") as archive:  # and those of another program
        for number in range(5):
            archive.writestr(f"{number}.png", small_png(parameters=f"fox {number}\nSteps: 5"))
    gallery.database.close()
    yield data


@times(3, 20)
def test_while_pictures_are_exported(pictures: Path, report: Tell, rounds: int) -> None:
    chance = random.Random(4)
    for _ in range(rounds):
        killed(chance, 0.3, "export", pictures)
        if (pictures / "all.zip").exists():
            with zipfile.ZipFile(pictures / "all.zip") as archive:
                assert archive.testzip() is None
                assert len(archive.namelist()) == 32
        assert assert_whole(pictures) == 30
    report("killed while it exported", rounds)


@times(3, 20)
def test_while_pictures_are_imported(
    pictures: Path, tmp_path: Path, report: Tell, rounds: int
) -> None:
    chance = random.Random(5)
    for number in range(rounds):
        data = tmp_path / str(number)
        data.mkdir()
        killed(chance, 0.4, "import", data, pictures / "expected.zip")
        assert_whole(data)
        gallery = gallery_in(data)
        import_zip(gallery.database, gallery.storage, pictures / "expected.zip", "local")
        gallery.database.close()
        assert assert_whole(data) == 35, "the second import completes the first, and no more"
    report("killed while it imported", rounds)


@times(2, 20)
def test_while_a_model_is_downloaded(tmp_path: Path, report: Tell, rounds: int) -> None:
    folder = tmp_path / "model"
    shutil.copytree(make_starter(), folder)
    hub = LocalHub()
    try:
        hub.add("an/owner", folder)
        for file in folder.rglob("*.safetensors"):
            hub.faults[file.relative_to(folder).as_posix()] = Fault.slow(0.01)
        chance = random.Random(6)
        for number in range(rounds):
            cache = tmp_path / f"cache{number}"
            killed(chance, 1.5, "download", cache, hub.url, "an/owner")
            here = Hub(endpoint=hub.url, cache_dir=cache, token="none")  # noqa: S106
            spec = make_spec("an/owner")
            found = download.find_local(spec, hub=here)
            if found is None:  # cut short, and seen as such: what was fetched is used again
                plan = download.plan_download(spec, half_precision=False, hub=here)
                done = download.download(spec, plan, lambda _: None, threading.Event(), hub=here)
                found = done.local
            for file in folder.rglob("*.safetensors"):
                fetched = found.path / file.relative_to(folder)
                assert fetched.read_bytes() == file.read_bytes()
    finally:
        hub.close()
    report("killed while it downloaded a model from a local server", rounds)


def make_starter() -> Path:
    from canvas.catalog import ASSETS

    return ASSETS / "starter"
