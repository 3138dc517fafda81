"""Deleted images, kept for an hour so that deleting can be undone."""

from __future__ import annotations

import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from canvas.errors import LazyMessage, NotFound, StorageError
from canvas.history.database import Database
from canvas.history.image_files import TRASH_FOLDER, ImageStorage

UNDO_SECONDS = 3600
BATCH_SIZE = 500  # images in a transaction, so that other processes do not wait long


@dataclass(frozen=True)
class _Deletion:
    owner: str | None
    time: float
    folder: Path
    moves: list[tuple[Path, Path]]
    rows: list[dict[str, Any]]


class Trash:
    """Deletes images, rows and files together, and restores them.

    Only this process can restore what it deleted; a later one removes what is left. `clock`
    counts seconds.
    """

    def __init__(self, database: Database, storage: ImageStorage, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._storage = storage
        self._clock = clock
        self._lock = threading.Lock()
        self._deletions: dict[str, _Deletion] = {}

    def delete(self, ids: Iterable[int], owner: str | None) -> tuple[str, int]:
        """Delete images of an owner (None: of all); returns a token for `undo`, and how many."""
        self.purge(UNDO_SECONDS)
        token = secrets.token_urlsafe(16)
        deletion = _Deletion(owner, self._clock(), self._storage.root / TRASH_FOLDER / token, [], [])
        ids = list(ids)
        try:
            for start in range(0, len(ids), BATCH_SIZE):
                self._delete_batch(ids[start : start + BATCH_SIZE], deletion)
        except BaseException:
            self._restore(deletion)
            raise
        with self._lock:
            self._deletions[token] = deletion
        return token, len(deletion.rows)

    def undo(self, token: str, owner: str | None) -> int:
        """Restore what `delete` removed and return the number of images; raises NotFound."""
        with self._lock:
            deletion = self._deletions.get(token)
            if deletion is None or (owner is not None and deletion.owner != owner):
                raise NotFound(LazyMessage("This can no longer be undone: the images are permanently deleted."))
            self._restore(deletion)
            del self._deletions[token]
        return len(deletion.rows)

    def purge(self, older_than: float = 0, owner: str | None = None) -> None:
        """Permanently remove what was deleted at least `older_than` seconds ago."""
        with self._lock:
            limit = self._clock() - older_than
            tokens = [
                token
                for token, deletion in self._deletions.items()
                if deletion.time <= limit and owner in (None, deletion.owner)
            ]
            folders = [self._deletions.pop(token).folder for token in tokens]
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)

    def purge_old_sessions(self) -> None:
        """Remove what ended processes left; others may still restore what is recent."""
        trash = self._storage.root / TRASH_FOLDER
        for folder in trash.iterdir() if trash.is_dir() else ():
            with suppress(FileNotFoundError):  # removed by another process
                if folder.stat().st_mtime < time.time() - UNDO_SECONDS:
                    shutil.rmtree(folder, ignore_errors=True)

    def _restore(self, deletion: _Deletion) -> None:
        with self._database.transaction():
            self._database.insert_rows(deletion.rows)
            _move_all((new, old) for old, new in deletion.moves)
        shutil.rmtree(deletion.folder, ignore_errors=True)

    def _delete_batch(self, ids: list[int], deletion: _Deletion) -> None:
        with self._database.transaction():
            rows = self._database.delete_returning(ids, deletion.owner)
            paths = [(row["id"], self._storage.find(row["filepath"], row["filename"])) for row in rows]
            moves = [(path, deletion.folder / f"{image_id}{path.suffix}") for image_id, path in paths if path]
            deletion.folder.mkdir(parents=True, exist_ok=True)
            # Before the commit: another process would record files without rows again.
            _move_all(moves)
        deletion.rows.extend(rows)
        deletion.moves.extend(moves)
        for path, _ in moves:
            self._storage.delete_thumbnail(path)


def _move_all(moves: Iterable[tuple[Path, Path]]) -> None:
    """Rename all files or none."""
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
            f"The image {old} cannot be moved ({error.strerror}). Check the permissions of its folder and try again."
        ) from error
