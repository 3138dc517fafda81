"""What one owner made: looked through, marked, deleted, brought back, exported, counted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from canvas.errors import NotFound
from canvas.history import queries
from canvas.history.export import export_zip
from canvas.history.gallery import Gallery
from canvas.history.imports import Imported, import_zip
from canvas.history.queries import Query
from canvas.history.statistics import Statistics, statistics
from canvas.request import GeneratedImage


class Collection:
    """The pictures of `owner`; every query is theirs, whatever owner it names.

    The administrator `sees_all`: queries without owner and single pictures are then
    everybody's. Changes are made to one's own pictures only.
    """

    def __init__(self, gallery: Gallery, owner: str, *, sees_all: bool = False) -> None:
        self._gallery = gallery
        self.owner = owner
        self.sees_all = sees_all

    def _seen(self, query: Query) -> Query:
        return replace(query, owner=query.owner if self.sees_all else self.owner)

    def _own(self, query: Query) -> Query:
        return replace(query, owner=self.owner)

    def image(self, image_id: int) -> GeneratedImage:
        """One picture; raises NotFound for what may not be seen."""
        image = self._gallery.store.image(image_id)
        if image is None or not (self.sees_all or image.owner == self.owner):
            raise NotFound(f"There is no picture {image_id}.")
        return image

    def search(self, query: Query) -> list[GeneratedImage]:
        """One page of what fits."""
        return self._gallery.store.search(self._seen(query))

    def count(self, query: Query) -> int:
        """How many pictures fit on all pages."""
        return self._gallery.store.count(self._seen(query))

    def sizes(self, query: Query) -> list[tuple[int, int]]:
        """The sizes of the pictures that fit, the most frequent first."""
        rows = self._gallery.store.rows(*queries.sizes(self._seen(query)))
        return [(row["width"], row["height"]) for row in rows]

    def export(
        self, query: Query, image_format: str | None = None, quality: int = 95
    ) -> Iterator[bytes]:
        """The ZIP of all that fits, piece by piece."""
        store, folder = self._gallery.store, self._gallery.folder
        wanted = self._seen(query)
        return export_zip(store, folder, wanted, image_format=image_format, quality=quality)

    def take_in(self, path: Path) -> Imported:
        """Add the pictures of a ZIP."""
        return import_zip(self._gallery.store, self._gallery.folder, path, self.owner)

    def totals(self, query: Query) -> tuple[int, int]:
        """How many of one's own pictures fit, and their bytes: what `delete_matching` removes."""
        return self._gallery.store.totals(self._own(query))

    def favourite(self, ids: Iterable[int], marked: bool) -> int:
        """Mark or unmark; how many there were."""
        return self._gallery.store.set_favourite(ids, self.owner, marked)

    def delete(self, ids: Iterable[int]) -> tuple[str, int]:
        """Take away; the token for `undo`, and how many there were."""
        return self._gallery.delete(ids, self.owner)

    def delete_matching(self, query: Query) -> tuple[str, int]:
        """Clean up; the token for `undo`, and how many there were."""
        return self._gallery.delete_matching(self._own(query))

    def undo(self, token: str) -> int:
        """Bring back what was taken away; raises NotFound when it is too late."""
        return self._gallery.undo(token, self.owner)

    def erase(self) -> int:
        """Remove everything for good and at once; how many pictures there were."""
        return self._gallery.erase(self.owner)

    def figures(self) -> Statistics:
        """One's own pictures by day, model, style and size."""
        return statistics(self._gallery.store, self.owner)
