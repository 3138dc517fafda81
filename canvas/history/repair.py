"""Makes a new database from the pictures' own metadata when the old one is damaged."""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from canvas.errors import StorageError
from canvas.history.database import Database
from canvas.history.image_files import ImageStorage
from canvas.history.images import ImageRepository

SQLITE_SUFFIXES = ("", "-wal", "-shm")  # SQLite's files by their ends


@dataclass(frozen=True)
class RepairResult:
    """Where the damaged file was kept (None: nothing was done), and how many pictures are back."""

    damaged: Path | None
    pictures: int
    owners: int = 0  # pictures whose owner could still be read


def integrity_error(path: Path) -> str:
    """What is wrong with the database in SQLite's words; nothing when it is well or not there."""
    if not path.is_file():
        return ""
    try:
        with closing(sqlite3.connect(path)) as connection:
            rows = connection.execute("PRAGMA integrity_check(1)").fetchall()
    except sqlite3.DatabaseError as error:
        return str(error)
    return "" if rows == [("ok",)] else str(rows[0][0])


def rebuild(path: Path, outputs: Path) -> RepairResult:
    """Move a damaged database aside and make a new one; a sound one is left as it is.

    No other program may have it open. Owner and favourite are not in a picture's file: they
    are taken from what can still be read of the rows.
    """
    if not integrity_error(path):
        return RepairResult(None, 0)
    known = _salvage_owners(path)
    aside = _move_aside(path)
    store = Database(path)
    try:
        gallery = ImageRepository(store, ImageStorage(outputs))
        # Were this to end here, the next start would do the same.
        pictures = gallery.reconcile().added
        owners = _restore_owners(store, known)
    finally:
        store.close()
    return RepairResult(aside, pictures, owners)


def _salvage_owners(path: Path) -> dict[str, tuple[str, int]]:
    """Owner and favourite by filename, as far as the pages are whole."""
    known: dict[str, tuple[str, int]] = {}
    query = "SELECT filename, owner, favourite FROM generated_images ORDER BY id {}"
    for order in ("ASC", "DESC"):  # from both ends up to the damage
        with suppress(sqlite3.DatabaseError), closing(sqlite3.connect(path)) as connection:
            for filename, owner, favourite in connection.execute(query.format(order)):
                if isinstance(filename, str) and isinstance(owner, str):
                    known[filename] = (owner, int(favourite == 1))
    return known


def _restore_owners(store: Database, known: dict[str, tuple[str, int]]) -> int:
    with store.transaction() as connection:
        changes: list[dict[str, Any]] = [
            {"filename": filename, "owner": owner, "favourite": favourite}
            for filename, (owner, favourite) in known.items()
        ]
        return connection.executemany(
            "UPDATE generated_images SET owner = :owner, favourite = :favourite "
            "WHERE filename = :filename",
            changes,
        ).rowcount


def _move_aside(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.stem}.damaged-{number}.db")).exists():
        number += 1
    try:
        # The log first: without its database it is nothing, beside a new one it would harm.
        for end in reversed(SQLITE_SUFFIXES):
            with suppress(FileNotFoundError):
                path.with_name(path.name + end).replace(aside.with_name(aside.name + end))
    except OSError as error:
        raise StorageError(
            f"The database {path} cannot be moved aside ({error.strerror}). Close what has it "
            "open, give yourself the right to write there, and try again."
        ) from error
    return aside
