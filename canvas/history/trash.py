"""Deleted pictures, kept aside for a while so that deleting can be undone."""

from __future__ import annotations

import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from canvas.errors import LazyMessage, NotFound, StorageError
from canvas.history.database import Database
from canvas.history.image_files import TRASH, ImageStorage

UNDO_SECONDS = 3600
BATCH_SIZE = 500  # pictures a transaction, so that others wait only for moments


@dataclass(frozen=True)
class _Deleted:
    owner: str | None
    at: float
    folder: Path
    moves: list[tuple[Path, Path]]
    rows: list[dict[str, Any]]


class Trash:
    """Takes pictures away, rows and files at once, and gives them back within the session.

    The rows are remembered only by this process; what a session leaves is removed by a later
    one. `clock` counts seconds.
    """

    def __init__(
        self, store: Database, folder: ImageStorage, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._folder = folder
        self._clock = clock
        self._lock = threading.Lock()
        self._deleted: dict[str, _Deleted] = {}

    def delete(self, ids: Iterable[int], owner: str | None) -> tuple[str, int]:
        """Remove an owner's (None: anybody's) pictures; the token for `undo`, and their number."""
        self.purge(UNDO_SECONDS)
        token = secrets.token_urlsafe(16)
        place = self._folder.root / TRASH / token
        deleted = _Deleted(owner, self._clock(), place, [], [])
        try:
            for part in _parts(list(ids)):
                self._delete_part(part, deleted)
        except BaseException:
            self._bring_back(deleted)
            raise
        with self._lock:
            self._deleted[token] = deleted
        return token, len(deleted.rows)

    def undo(self, token: str, owner: str | None) -> int:
        """Bring back what was deleted under the token; the number of pictures."""
        with self._lock:
            deleted = self._deleted.get(token)
            if deleted is None or (owner is not None and deleted.owner != owner):
                raise NotFound(LazyMessage("This can no longer be undone: the pictures are gone."))
            self._bring_back(deleted)
            del self._deleted[token]
        return len(deleted.rows)

    def purge(self, older_than: float = 0, owner: str | None = None) -> None:
        """Remove for good what was deleted so many seconds ago, of one owner or of all."""
        with self._lock:
            limit = self._clock() - older_than
            gone = [
                token
                for token, deleted in self._deleted.items()
                if deleted.at <= limit and owner in (None, deleted.owner)
            ]
            folders = [self._deleted.pop(token).folder for token in gone]
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)

    def purge_old_sessions(self) -> None:
        """Remove what earlier sessions left; that of one still running in another process stays."""
        place = self._folder.root / TRASH
        for folder in place.iterdir() if place.is_dir() else ():
            with suppress(FileNotFoundError):  # the other process was quicker
                if folder.stat().st_mtime < time.time() - UNDO_SECONDS:
                    shutil.rmtree(folder, ignore_errors=True)

    def _bring_back(self, deleted: _Deleted) -> None:
        with self._store.transaction():
            self._store.insert_rows(deleted.rows)
            _move((new, old) for old, new in deleted.moves)
        shutil.rmtree(deleted.folder, ignore_errors=True)

    def _delete_part(self, ids: list[int], deleted: _Deleted) -> None:
        moves: list[tuple[Path, Path]] = []
        with self._store.transaction():
            rows = self._store.delete_returning(ids, deleted.owner)
            for row in rows:
                path = self._folder.path_for_row(row)
                if path is not None:
                    moves.append((path, deleted.folder / f"{row['id']}{path.suffix}"))
            deleted.folder.mkdir(parents=True, exist_ok=True)
            # Before the commit: had the rows gone first, another process would find the files
            # without rows and record them again.
            _move(moves)
        deleted.rows.extend(rows)
        deleted.moves.extend(moves)
        for path, _ in moves:
            self._folder.delete_thumbnail(path)


def _parts(ids: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(ids), BATCH_SIZE):
        yield ids[start : start + BATCH_SIZE]


def _move(moves: Iterable[tuple[Path, Path]]) -> None:
    """Rename all or none."""
    done: list[tuple[Path, Path]] = []
    try:
        for old, new in moves:
            new.parent.mkdir(parents=True, exist_ok=True)
            old.replace(new)
            done.append((old, new))
    except OSError as error:
        for old, new in reversed(done):
            new.replace(old)
        raise StorageError(
            f"The picture {old} cannot be moved ({error.strerror}). Give yourself the right to "
            "write in its folder, then try again."
        ) from error
