"""Stored images as rows and files, one owner's view of them, and the trash, which keeps deleted ones for an hour."""

from __future__ import annotations

import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from canvas.errors import LazyMessage, NotFound, StorageError
from canvas.history import queries
from canvas.history.database import Database
from canvas.history.export_zip import export_zip
from canvas.history.image_files import FILENAME_PATTERN, TRASH_FOLDER, ImageStorage
from canvas.history.import_zip import ImportResult, image_from_file, import_files
from canvas.history.metadata import read_settings
from canvas.history.queries import Query
from canvas.history.statistics import Statistics, compute_statistics
from canvas.request import LOCAL_OWNER, GeneratedImage

UNDO_SECONDS = 3600
BATCH_SIZE = 500  # images in a transaction, so that other processes do not wait long
PART_GRACE_SECONDS = 60  # another process may still write a younger partial file


@dataclass(frozen=True)
class ReconcileResult:
    """Numbers of rows added for files, of rows without file, and of partial files deleted."""

    added: int = 0
    missing: int = 0
    cleaned: int = 0


class ImageRepository:
    """The stored images of all owners: a row in `database` and a file in `storage` each."""

    def __init__(self, database: Database, storage: ImageStorage) -> None:
        self.database = database
        self.storage = storage
        self.trash = Trash(database, storage)

    def save(self, image: GeneratedImage) -> GeneratedImage:
        """Write the file, then the row; if the row fails, `reconcile` adds it later."""
        self.trash.purge(UNDO_SECONDS)
        return self.database.save_image(self.storage.save(image))

    def image_by_filename(self, filename: str) -> GeneratedImage:
        """The image with that file name, of any owner; raises NotFound."""
        image = self.database.image_by_filename(filename)
        if image is None:
            raise NotFound("There is no such image.")
        return image

    def path_of(self, filename: str, thumbnail: bool = False) -> Path:
        """The path of an image or its thumbnail; raises NotFound."""
        image = self.image_by_filename(filename)
        path = self.storage.thumbnail(image) if thumbnail else self.storage.path_of(image)
        if not path.is_file():
            raise NotFound("The file of this image is missing.")
        return path

    def is_stored(self, path: Path) -> bool:
        """Whether a resolved path is the file of a stored image."""
        try:
            return path == self.path_of(path.name).resolve()
        except NotFound:
            return False

    def delete_all(self, owner: str) -> int:
        """Permanently delete everything of an owner; returns the number of images."""
        _, number = self.trash.delete(self.database.ids_of_owner(owner), owner)
        self.trash.purge(owner=owner)
        with self.database.transaction() as connection:
            for table in ("unfinished_jobs", "comparisons"):
                connection.execute(f"DELETE FROM {table} WHERE owner = ?", [owner])  # noqa: S608
        self.database.purge()
        return number

    def reconcile(self) -> ReconcileResult:
        """Add rows for files that have none, mark rows without file, delete partial files."""
        self.trash.purge_old_sessions()
        rows = self.database.files()
        on_disk = set(self.storage.filepaths())
        known = {filepath for filepath, _, _ in rows.values()}
        # Rows of the oldest schema hold only the name.
        known_names = {filename for filepath, filename, _ in rows.values() if not filepath}
        new = [
            image
            for filepath in sorted(on_disk - known)
            if filepath.rpartition("/")[2] not in known_names and (image := self._from_file(filepath)) is not None
        ]
        self.database.save_images(new)
        lost: list[int] = []
        restored: list[int] = []
        for image_id, (filepath, filename, missing) in rows.items():
            exists = filepath in on_disk or self.storage.find(filepath, filename) is not None
            if exists == missing:
                (restored if exists else lost).append(image_id)
        self.database.mark_missing(lost)
        self.database.mark_missing(restored, missing=False)
        return ReconcileResult(len(new), len(lost), self._delete_partial_files())

    def _from_file(self, filepath: str) -> GeneratedImage | None:
        """The image with the settings in its file; None without settings or if unreadable."""
        path = self.storage.root.parent / filepath
        try:
            image = read_settings(path)
            if image is None and FILENAME_PATTERN.fullmatch(path.name):
                # An image of another program whose import was interrupted before its row.
                image = image_from_file(path.read_bytes(), {}, path.name)
        except (StorageError, OSError):
            return None
        if image is None:
            return None
        return replace(
            image,
            filename=path.name,
            filepath=filepath,
            file_size=path.stat().st_size,
            # Not to be trusted from a file.
            id=None,
            parent_id=None,
            owner=LOCAL_OWNER,
            favourite=False,
        )

    def _delete_partial_files(self) -> int:
        oldest = time.time() - PART_GRACE_SECONDS
        old = [path for path in self.storage.partial_files() if path.stat().st_mtime < oldest]
        for path in old:
            path.unlink(missing_ok=True)
        return len(old)


class UserGallery:
    """The images of `owner`, whatever owner a query names.

    An administrator (`sees_all`) reads the images of the query's owner or (None) of all, but
    changes only their own.
    """

    def __init__(self, repository: ImageRepository, owner: str, *, sees_all: bool = False) -> None:
        self._repository = repository
        self._database = repository.database
        self.owner = owner
        self.sees_all = sees_all

    def _visible(self, query: Query) -> Query:
        return replace(query, owner=query.owner if self.sees_all else self.owner)

    def _owned(self, query: Query) -> Query:
        return replace(query, owner=self.owner)

    def image(self, image_id: int) -> GeneratedImage:
        image = self._database.image(image_id)
        if image is None or not (self.sees_all or image.owner == self.owner):
            raise NotFound(f"There is no image {image_id}.")
        return image

    def search(self, query: Query) -> list[GeneratedImage]:
        return self._database.search(self._visible(query))

    def count(self, query: Query) -> int:
        return self._database.count(self._visible(query))

    def sizes(self, query: Query) -> list[tuple[int, int]]:
        rows = self._database.rows(*queries.sizes(self._visible(query)))
        return [(row["width"], row["height"]) for row in rows]

    def export(self, query: Query, image_format: str | None = None, quality: int = 95) -> Iterator[bytes]:
        return export_zip(
            self._database, self._repository.storage, self._visible(query), image_format=image_format, quality=quality
        )

    def ids(self, query: Query) -> list[int]:
        """The ids of all matching images in their order."""
        return self._database.ids(self._visible(query))

    def import_files(self, paths: Iterable[Path]) -> ImportResult:
        """Import images and the images in ZIPs; a ZIP that cannot be read is an error of the result."""
        return import_files(self._database, self._repository.storage, paths, self.owner)

    def totals(self, query: Query) -> tuple[int, int]:
        """The number and bytes of the owner's matching images, which `delete_matching` deletes."""
        return self._database.totals(self._owned(query))

    def favourite(self, ids: Iterable[int], marked: bool) -> int:
        """Mark or unmark favourites; returns how many images were found."""
        return self._database.set_favourite(ids, self.owner, marked)

    def delete(self, ids: Iterable[int]) -> tuple[str, int]:
        """Delete images of the owner; returns a token for `undo`, and how many. Raises NotFound if there are none.

        A second click on a button then leaves the line that undoes the first.
        """
        token, number = self._repository.trash.delete(ids, self.owner)
        if not number:
            raise NotFound("There is no such image.")
        return token, number

    def delete_matching(self, query: Query) -> tuple[str, int]:
        return self._repository.trash.delete(self._database.ids(self._owned(query)), self.owner)

    def undo(self, token: str) -> int:
        return self._repository.trash.undo(token, self.owner)

    def delete_all(self) -> int:
        return self._repository.delete_all(self.owner)

    def statistics(self) -> Statistics:
        return compute_statistics(self._database, self.owner)


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
