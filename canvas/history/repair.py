"""Rebuilds a damaged database from the metadata in the image files."""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from canvas.errors import StorageError
from canvas.history.database import Database
from canvas.history.image_files import ImageStorage
from canvas.history.images import ImageRepository
from canvas.history.migrations import unused_path

SQLITE_SUFFIXES = ("", "-wal", "-shm")


@dataclass(frozen=True)
class RepairResult:
    """Where the damaged file was moved (None: it was not damaged), and how many images are back."""

    damaged: Path | None
    images: int
    owners: int = 0  # images whose owner could be read from the damaged file


def integrity_error(path: Path) -> str:
    """SQLite's message about a damaged database; "" for a sound or missing file."""
    if not path.is_file():
        return ""
    try:
        with closing(sqlite3.connect(path)) as connection:
            rows = connection.execute("PRAGMA integrity_check(1)").fetchall()
    except sqlite3.DatabaseError as error:
        return str(error)
    return "" if rows == [("ok",)] else str(rows[0][0])


def rebuild(path: Path, outputs: Path) -> RepairResult:
    """Move a damaged database aside and create a new one; a sound one is left alone.

    No other program may have it open. Owners and favourites, which the image files do not hold,
    are salvaged from the readable rows.
    """
    if not integrity_error(path):
        return RepairResult(None, 0)
    salvaged = _salvage_owners(path)
    aside = _move_aside(path)
    with closing(Database(path)) as database:
        # If this is interrupted here, the next start reconciles again.
        images = ImageRepository(database, ImageStorage(outputs)).reconcile().added
        with database.transaction() as connection:
            owners = connection.executemany(
                "UPDATE generated_images SET owner = ?, favourite = ? WHERE filename = ?",
                [(owner, favourite, filename) for filename, (owner, favourite) in salvaged.items()],
            ).rowcount
    return RepairResult(aside, images, owners)


def _salvage_owners(path: Path) -> dict[str, tuple[str, int]]:
    """Owner and favourite of the readable rows by file name."""
    salvaged: dict[str, tuple[str, int]] = {}
    query = "SELECT filename, owner, favourite FROM generated_images ORDER BY id {}"
    for order in ("ASC", "DESC"):  # from both ends up to the damaged pages
        with suppress(sqlite3.DatabaseError), closing(sqlite3.connect(path)) as connection:
            for filename, owner, favourite in connection.execute(query.format(order)):
                if isinstance(filename, str) and isinstance(owner, str):
                    salvaged[filename] = (owner, int(favourite == 1))
    return salvaged


def _move_aside(path: Path) -> Path:
    aside = unused_path(path, "damaged")
    try:
        # The write-ahead log first: beside a new database it would do harm.
        for suffix in reversed(SQLITE_SUFFIXES):
            with suppress(FileNotFoundError):
                path.with_name(path.name + suffix).replace(aside.with_name(aside.name + suffix))
    except OSError as error:
        raise StorageError(
            f"The database {path} cannot be moved aside ({error.strerror}). Close the programs "
            "that have it open, check the permissions of its folder, and try again."
        ) from error
    return aside
