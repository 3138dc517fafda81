"""Full disks, locks, damage, and many programs on one data folder."""

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
from tests.resilience.consistency import assert_whole, program
from tests.resilience.programs import gallery_in, picture


def test_a_full_disk_is_said_and_leaves_nothing_half_done(tmp_path: Path) -> None:
    with program("fill", tmp_path) as child:
        outcomes = json.loads(child.communicate()[0])
    failures = [outcome for outcome in outcomes if outcome != "kept"]
    assert len(failures) > 5
    assert all("space" in outcome for outcome in failures)
    assert outcomes[-1] == "kept"
    assert not list(tmp_path.rglob("*.part"))
    assert assert_whole(tmp_path) > outcomes.count("kept"), "also the one kept afterwards"


def test_eight_programs_record_at_once(tmp_path: Path) -> None:
    with ExitStack() as stack:
        children = [stack.enter_context(program("keep", tmp_path, 12)) for _ in range(8)]
        told = [line for child in children for line in child.communicate()[0].splitlines()]
        assert [child.returncode for child in children] == [0] * 8
    assert sum(line.startswith("kept") for line in told) == 96
    assert assert_whole(tmp_path, told) == 96, "each once, though all reconcile at their start"


def test_a_locked_database_is_said_and_the_picture_is_found_again(tmp_path: Path) -> None:
    gallery = gallery_in(tmp_path)
    gallery.database.close()
    gallery.database = Database(tmp_path / "ai_images.db", busy_timeout=0.1)
    with closing(sqlite3.connect(tmp_path / "ai_images.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match="locked by another program"):
            gallery.save(picture(1))
        other.execute("ROLLBACK")
    gallery.save(picture(2))
    gallery.database.close()
    assert assert_whole(tmp_path) == 2


def test_two_servers_share_a_data_folder(settings: Settings) -> None:
    wish = GenerationRequest("a fox", num_inference_steps=1)
    with Studio(settings) as first, Studio(settings) as second:
        jobs = [studio.submit(wish) for studio in (first, second) for _ in range(3)]
        assert first.interrupted_jobs("local") == second.interrupted_jobs("local") == []
        names = {picture.filename for job in jobs for picture in job.wait()}
        for studio in (first, second):
            assert {picture.filename for picture in studio.recent()} == names
    assert assert_whole(settings.data_dir) == 6


def damaged(data: Path, pages: slice) -> list[str]:
    """Pictures of two owners, then zeros over a part of their database."""
    gallery = gallery_in(data)
    for number in range(12):
        gallery.save(make_image(seed=number, owner="ann" if number % 2 else "bob"))
    filler = [make_image(prompt=f"{number} " * 200, image=None) for number in range(300)]
    gallery.database.save_images(filler)
    names = [image.filename for image in gallery.database.recent("ann", 20)]
    gallery.database.close()
    content = bytearray((data / "ai_images.db").read_bytes())
    start, stop, _ = pages.indices(len(content))
    content[start:stop] = bytes(stop - start)
    (data / "ai_images.db").write_bytes(content)
    return [name for name in names if name]


@pytest.mark.parametrize("pages", [slice(0, 100), slice(4096, 40_000), slice(60_000, None)])
def test_a_damaged_database_is_made_anew_from_the_pictures(tmp_path: Path, pages: slice) -> None:
    damaged(tmp_path, pages)
    before = (tmp_path / "ai_images.db").read_bytes()
    assert integrity_error(tmp_path / "ai_images.db")
    done = rebuild(tmp_path / "ai_images.db", tmp_path / "outputs")
    assert done.images == 12
    assert done.damaged is not None
    assert done.damaged.read_bytes() == before, "kept, for whoever can read more of it"
    assert assert_whole(tmp_path) == 12
    with closing(Database(tmp_path / "ai_images.db")) as store:
        owned = sum(len(store.recent(owner, 20)) for owner in ("ann", "bob"))
        assert owned == done.owners
        assert len(store.recent("local", 20)) == 12 - owned, "no stranger gets what is unsure"


def test_the_doctor_says_it_and_does_it(tmp_path: Path) -> None:
    damaged(tmp_path, slice(4096, 40_000))
    where = ["--data-dir", str(tmp_path)]
    told = CliRunner().invoke(app, ["doctor", *where])
    assert told.exit_code == 1
    assert "--rebuild" in told.output
    done = CliRunner().invoke(app, ["doctor", "--rebuild", *where])
    assert "12 pictures" in done.output
    assert "damaged-1" in done.output
    again = CliRunner().invoke(app, ["doctor", "--rebuild", *where])
    assert "nothing to rebuild" in again.output
    assert not (tmp_path / "ai_images.damaged-2.db").exists()


def test_a_removed_folder_is_said_and_the_next_picture_works(tmp_path: Path) -> None:
    gallery = gallery_in(tmp_path)
    gallery.save(picture(1))
    shutil.rmtree(tmp_path / "outputs")
    gallery.save(picture(2))
    assert gallery.reconcile().missing == 1
    gallery.database.close()
    assert assert_whole(tmp_path) == 1
