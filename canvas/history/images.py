"""What one owner made: looked through, marked, deleted, brought back, exported, counted."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from canvas.errors import NotFound, StorageError
from canvas.history import queries
from canvas.history.database import Database
from canvas.history.export_zip import export_zip
from canvas.history.image_files import OWN_NAME, ImageStorage
from canvas.history.import_zip import ImportResult, image_from_file, import_zip
from canvas.history.metadata import read_settings
from canvas.history.queries import Query
from canvas.history.statistics import Statistics, compute_statistics
from canvas.history.trash import UNDO_SECONDS, Trash
from canvas.request import GeneratedImage

PART_GRACE_SECONDS = (
    60  # seconds; a part file younger than this may still be written by another process
)


@dataclass(frozen=True)
class ReconcileResult:
    """How many pictures got a row, how many rows lost their file, how many part files went."""

    added: int = 0
    missing: int = 0
    cleaned: int = 0


class ImageRepository:
    """The pictures that were made, as rows and as files."""

    def __init__(self, store: Database, folder: ImageStorage) -> None:
        self.store = store
        self.folder = folder
        self.trash = Trash(store, folder)

    def save(self, image: GeneratedImage) -> GeneratedImage:
        """Write the file, then its row; after a failure reconciling finds the file again."""
        self.trash.purge(UNDO_SECONDS)
        return self.store.record(self.folder.save(image))

    def path_of(self, filename: str, thumbnail: bool = False) -> Path:
        """The file of a picture or of its thumbnail; raises NotFound."""
        image = self.store.image_by_filename(filename)
        if image is None:
            raise NotFound("There is no such picture.")
        path = self.folder.thumbnail(image) if thumbnail else self.folder.path_of(image)
        if not path.is_file():
            raise NotFound("The file of this picture is missing.")
        return path

    def is_stored(self, path: Path) -> bool:
        """Whether a resolved path is that of a kept picture."""
        try:
            return path == self.path_of(path.name).resolve()
        except NotFound:
            return False

    def delete(self, ids: Iterable[int], owner: str | None) -> tuple[str, int]:
        """Remove an owner's (None: anybody's) pictures; the token for `undo`, and their number."""
        return self.trash.delete(ids, owner)

    def undo(self, token: str, owner: str | None) -> int:
        """Bring back what `delete` removed in this session; raises NotFound when it is too late."""
        return self.trash.undo(token, owner)

    def delete_matching(self, query: Query) -> tuple[str, int]:
        """Clean up; `store.totals(query)` tells before how many pictures and bytes would go."""
        return self.trash.delete(self.store.ids(query), query.owner)

    def delete_all(self, owner: str) -> int:
        """Remove everything of an owner for good and at once; the number of pictures."""
        _, number = self.trash.delete(self.store.ids_of(owner), owner)
        self.trash.purge(owner=owner)
        with self.store.transaction() as connection:
            for table in ("unfinished_jobs", "comparisons"):
                connection.execute(f"DELETE FROM {table} WHERE owner = ?", [owner])  # noqa: S608
        self.store.purge()
        return number

    def reconcile(self) -> ReconcileResult:
        """Make rows and files agree: rows for pictures that have none, marks on lost ones."""
        self.trash.purge_old_sessions()
        rows = self.store.files()
        on_disk = set(self.folder.images())
        known = {filepath for filepath, _, _ in rows.values()}
        # Rows of the oldest programs name only the file.
        known_names = {filename for filepath, filename, _ in rows.values() if not filepath}
        new = [
            found
            for filepath in sorted(on_disk - known)
            if filepath.rpartition("/")[2] not in known_names
            and (found := self._from_file(filepath)) is not None
        ]
        self.store.record_all(new)
        lost: list[int] = []
        back: list[int] = []
        for image_id, (filepath, filename, missing) in rows.items():
            is_there = filepath in on_disk or self._is_there(filepath, filename)
            if is_there == missing:
                (back if is_there else lost).append(image_id)
        self.store.mark_missing(lost)
        self.store.mark_missing(back, missing=False)
        return ReconcileResult(len(new), len(lost), self._clean())

    def _from_file(self, filepath: str) -> GeneratedImage | None:
        """The picture that a file says it is; None where it says nothing or cannot be read."""
        path = self.folder.root.parent / filepath
        try:
            image = read_settings(path)
            if image is None and OWN_NAME.fullmatch(path.name):
                # Another program's picture, whose import was cut short before its row.
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
            # A file may claim anything; these are not for it to say.
            id=None,
            parent_id=None,
            owner="local",
            favourite=False,
        )

    def _is_there(self, filepath: str, filename: str) -> bool:
        try:
            return self.folder.find(filepath, filename).is_file()
        except NotFound:
            return False

    def _clean(self) -> int:
        old = time.time() - PART_GRACE_SECONDS
        parts = [path for path in self.folder.partial_files() if path.stat().st_mtime < old]
        for path in parts:
            path.unlink(missing_ok=True)
        return len(parts)


class UserGallery:
    """The pictures of `owner`; every query is theirs, whatever owner it names.

    The administrator `sees_all`: queries without owner and single pictures are then
    everybody's. Changes are made to one's own pictures only.
    """

    def __init__(self, gallery: ImageRepository, owner: str, *, sees_all: bool = False) -> None:
        self._gallery = gallery
        self.owner = owner
        self.sees_all = sees_all

    def _visible(self, query: Query) -> Query:
        return replace(query, owner=query.owner if self.sees_all else self.owner)

    def _owned(self, query: Query) -> Query:
        return replace(query, owner=self.owner)

    def image(self, image_id: int) -> GeneratedImage:
        """One picture; raises NotFound for what may not be seen."""
        image = self._gallery.store.image(image_id)
        if image is None or not (self.sees_all or image.owner == self.owner):
            raise NotFound(f"There is no picture {image_id}.")
        return image

    def search(self, query: Query) -> list[GeneratedImage]:
        """One page of what fits."""
        return self._gallery.store.search(self._visible(query))

    def count(self, query: Query) -> int:
        """How many pictures fit on all pages."""
        return self._gallery.store.count(self._visible(query))

    def sizes(self, query: Query) -> list[tuple[int, int]]:
        """The sizes of the pictures that fit, the most frequent first."""
        rows = self._gallery.store.rows(*queries.sizes(self._visible(query)))
        return [(row["width"], row["height"]) for row in rows]

    def export(
        self, query: Query, image_format: str | None = None, quality: int = 95
    ) -> Iterator[bytes]:
        """The ZIP of all that fits, piece by piece."""
        store, folder = self._gallery.store, self._gallery.folder
        wanted = self._visible(query)
        return export_zip(store, folder, wanted, image_format=image_format, quality=quality)

    def import_zip(self, path: Path) -> ImportResult:
        """Add the pictures of a ZIP."""
        return import_zip(self._gallery.store, self._gallery.folder, path, self.owner)

    def totals(self, query: Query) -> tuple[int, int]:
        """How many of one's own pictures fit, and their bytes: what `delete_matching` removes."""
        return self._gallery.store.totals(self._owned(query))

    def favourite(self, ids: Iterable[int], marked: bool) -> int:
        """Mark or unmark; how many there were."""
        return self._gallery.store.set_favourite(ids, self.owner, marked)

    def delete(self, ids: Iterable[int]) -> tuple[str, int]:
        """Take away; the token for `undo`, and how many there were."""
        return self._gallery.delete(ids, self.owner)

    def delete_matching(self, query: Query) -> tuple[str, int]:
        """Clean up; the token for `undo`, and how many there were."""
        return self._gallery.delete_matching(self._owned(query))

    def undo(self, token: str) -> int:
        """Bring back what was taken away; raises NotFound when it is too late."""
        return self._gallery.undo(token, self.owner)

    def delete_all(self) -> int:
        """Remove everything for good and at once; how many pictures there were."""
        return self._gallery.delete_all(self.owner)

    def statistics(self) -> Statistics:
        """One's own pictures by day, model, style and size."""
        return compute_statistics(self._gallery.store, self.owner)
