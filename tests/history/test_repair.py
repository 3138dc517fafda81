"""A damaged database is moved aside and rebuilt from the image files."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from canvas.errors import StorageError
from canvas.history.database import Database
from canvas.history.image_files import ImageStorage
from canvas.history.images import ImageRepository
from canvas.history.repair import RepairResult, integrity_error, rebuild

from .conftest import make_image


def make_damaged(path: Path, *owners: str) -> None:
    """A database with images, favourites of "ann", and pages that belong to nothing."""
    with closing(Database(path)) as database:
        repository = ImageRepository(database, ImageStorage(path.parent / "outputs"))
        for owner in owners:
            repository.save(make_image(owner=owner, favourite=owner == "ann"))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("DELETE FROM sqlite_master WHERE name = 'images_by_filename'")
        connection.commit()


def test_a_missing_or_sound_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "ai_images.db"
    assert integrity_error(path) == ""
    assert rebuild(path, tmp_path / "outputs") == RepairResult(None, 0)
    assert not path.exists()
    Database(path).close()
    assert integrity_error(path) == ""
    assert rebuild(path, tmp_path / "outputs") == RepairResult(None, 0, 0)


def test_owners_and_favourites_are_salvaged(tmp_path: Path) -> None:
    path = tmp_path / "ai_images.db"
    make_damaged(path, "ann", "bob", "cid")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE generated_images SET owner = x'00' WHERE owner = 'cid'")
        connection.commit()
    (tmp_path / "ai_images.db-wal").write_bytes(b"")
    assert "never used" in integrity_error(path)
    aside = tmp_path / "ai_images.damaged-1.db"
    assert rebuild(path, tmp_path / "outputs") == RepairResult(aside, 3, 2)
    assert integrity_error(aside)
    with closing(Database(path)) as database:
        found = sorted((image.owner, image.favourite) for image in database.recent(None))
    assert found == [("ann", True), ("bob", False), ("local", False)]
    path.write_bytes(b"no database" * 100)
    assert rebuild(path, tmp_path / "outputs") == RepairResult(tmp_path / "ai_images.damaged-2.db", 3, 0)


def test_a_database_that_cannot_be_moved_is_reported(plain_user: Path) -> None:
    (plain_user / "ai_images.db").write_bytes(b"no database" * 100)
    plain_user.chmod(0o500)
    with pytest.raises(StorageError, match="cannot be moved aside"):
        rebuild(plain_user / "ai_images.db", plain_user / "outputs")
