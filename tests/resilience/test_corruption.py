"""Full disks, locked and damaged databases, several programs on one data folder."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from canvas import GenerationRequest, Studio
from canvas.cli.main import app
from canvas.errors import StorageError
from canvas.history.database import Database
from canvas.history.repair import integrity_error, rebuild
from canvas.settings import Settings
from tests.history.conftest import make_image
from tests.resilience.consistency import assert_consistent, run_program
from tests.resilience.programs import noise_image, open_repository


def test_full_disk_raises_and_leaves_no_partial_file(tmp_path: Path) -> None:
    with run_program("fill-disk", tmp_path) as child:
        outcomes = json.loads(child.communicate()[0])
    failures = [outcome for outcome in outcomes if outcome != "saved"]
    assert len(failures) > 5
    assert all("space" in outcome for outcome in failures)
    assert outcomes[-1] == "saved"
    assert not list(tmp_path.rglob("*.part"))
    assert assert_consistent(tmp_path) > outcomes.count("saved"), "with the image saved at the end"


@pytest.mark.slow
def test_eight_programs_save_at_once(tmp_path: Path) -> None:
    with ExitStack() as stack:
        children = [stack.enter_context(run_program("save", tmp_path, 12)) for _ in range(8)]
        lines = [line for child in children for line in child.communicate()[0].splitlines()]
        assert [child.returncode for child in children] == [0] * 8
    assert sum(line.startswith("saved") for line in lines) == 96
    assert assert_consistent(tmp_path, lines) == 96, "one row per image"


def test_image_saved_while_the_database_is_locked_is_recovered(tmp_path: Path) -> None:
    repository = open_repository(tmp_path)
    repository.database.close()
    repository.database = Database(tmp_path / "ai_images.db", busy_timeout=0.1)
    with closing(sqlite3.connect(tmp_path / "ai_images.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match="locked by another program"):
            repository.save(noise_image(1))
        other.execute("ROLLBACK")
    repository.save(noise_image(2))
    repository.database.close()
    assert assert_consistent(tmp_path) == 2


@pytest.mark.slow
def test_two_studios_share_a_data_folder(settings: Settings) -> None:
    request = GenerationRequest("a fox", num_inference_steps=1)
    with Studio(settings) as first, Studio(settings) as second:
        jobs = [studio.submit(request) for studio in (first, second) for _ in range(3)]
        assert first.interrupted_jobs("local") == second.interrupted_jobs("local") == []
        names = {image.filename for job in jobs for image in job.wait()}
        for studio in (first, second):
            assert {image.filename for image in studio.recent()} == names
    assert assert_consistent(settings.data_dir) == 6


def make_damaged_database(data_dir: Path, damage: slice) -> None:
    """Save images of two owners and overwrite a part of the database with zeros."""
    repository = open_repository(data_dir)
    for number in range(12):
        repository.save(make_image(seed=number, owner="ann" if number % 2 else "bob"))
    filler = [make_image(prompt=f"{number} " * 200, image=None) for number in range(300)]
    repository.database.save_images(filler)
    repository.database.close()
    content = bytearray((data_dir / "ai_images.db").read_bytes())
    start, stop, _ = damage.indices(len(content))
    content[start:stop] = bytes(stop - start)
    (data_dir / "ai_images.db").write_bytes(content)


@pytest.mark.parametrize("damage", [slice(0, 100), slice(4096, 40_000), slice(60_000, None)])
def test_damaged_database_is_rebuilt_from_the_images(tmp_path: Path, damage: slice) -> None:
    make_damaged_database(tmp_path, damage)
    before = (tmp_path / "ai_images.db").read_bytes()
    assert integrity_error(tmp_path / "ai_images.db")
    result = rebuild(tmp_path / "ai_images.db", tmp_path / "outputs")
    assert result.images == 12
    assert result.damaged is not None
    assert result.damaged.read_bytes() == before, "the damaged file stays as it was"
    assert assert_consistent(tmp_path) == 12
    with closing(Database(tmp_path / "ai_images.db")) as database:
        owned = sum(len(database.recent(owner, 20)) for owner in ("ann", "bob"))
        assert owned == result.owners
        assert len(database.recent("local", 20)) == 12 - owned, "images of unknown owners are local"


def test_doctor_reports_and_rebuilds_a_damaged_database(tmp_path: Path) -> None:
    make_damaged_database(tmp_path, slice(4096, 40_000))
    options = ["--data-dir", str(tmp_path)]
    report = CliRunner().invoke(app, ["doctor", *options])
    assert report.exit_code == 1
    assert "--rebuild" in report.output
    result = CliRunner().invoke(app, ["doctor", "--rebuild", *options])
    assert "12 images" in result.output
    assert "damaged-1" in result.output
    again = CliRunner().invoke(app, ["doctor", "--rebuild", *options])
    assert "nothing to rebuild" in again.output
    assert not (tmp_path / "ai_images.damaged-2.db").exists()


def test_image_is_saved_after_the_outputs_folder_is_deleted(tmp_path: Path) -> None:
    repository = open_repository(tmp_path)
    repository.save(noise_image(1))
    shutil.rmtree(tmp_path / "outputs")
    repository.save(noise_image(2))
    assert repository.reconcile().missing == 1
    repository.database.close()
    assert assert_consistent(tmp_path) == 1
