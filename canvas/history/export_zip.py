"""Pictures with their settings as one ZIP, made while it is sent."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from canvas import validation
from canvas.errors import NotFound, StorageError
from canvas.history.database import Database
from canvas.history.image_files import SUFFIXES, ImageStorage
from canvas.history.metadata import embed, open_picture
from canvas.history.queries import Query
from canvas.history.rows import timestamp
from canvas.request import IMAGE_FORMATS, GeneratedImage

BATCH_SIZE = 200  # rows read together
CHUNK_SIZE = 1 << 20  # bytes of a file read together
FOLDER = "pictures"
LINES = "metadata.jsonl"
TABLE = "metadata.csv"
ERRORS_FILE = "not-exported.txt"
# What a spreadsheet would take for a formula.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")


def export_zip(
    store: Database,
    folder: ImageStorage,
    query: Query,
    *,
    image_format: str | None = None,
    quality: int = 95,
    filename: str = "magic-canvas.zip",
) -> Iterator[bytes]:
    """The ZIP of all pictures that fit the query (its page does not count), piece by piece.

    Files stay as they are unless an `image_format` is given; `quality` is for JPEG and WebP.
    Neither memory nor disk grows with the pictures. A finished export is recorded.
    """
    if image_format is not None:
        validation.choice("image_format", image_format, IMAGE_FORMATS)
    quality = validation.integer("quality", quality, 1, 100)
    return _Export(store, folder, query, image_format, quality).run(filename)


def export_record(image: GeneratedImage) -> dict[str, Any]:
    """A line of `metadata.jsonl`; the owner's name stays at home."""
    return {
        "id": image.id,
        "filename": image.filename,
        "file_size": image.file_size,
        **image.settings(),
        "favourite": image.favourite,
        "parent_id": image.parent_id,
    }


class _StreamBuffer:
    """What `zipfile` writes, until it is taken; like a pipe it cannot go back."""

    def __init__(self) -> None:
        self._written: list[bytes] = []
        self.size = 0

    def write(self, content: bytes) -> int:
        self._written.append(bytes(content))
        self.size += len(content)
        return len(content)

    def flush(self) -> None:
        """`zipfile` asks for it."""

    def take(self) -> bytes:
        content = b"".join(self._written)
        self._written.clear()
        return content


@dataclass
class _Export:
    store: Database
    folder: ImageStorage
    query: Query
    image_format: str | None
    quality: int
    sizes: dict[int, int] = field(default_factory=dict)  # bytes of what was exported, by id
    problems: list[str] = field(default_factory=list)

    def run(self, filename: str) -> Iterator[bytes]:
        pieces = _StreamBuffer()
        # In order of ids, so that an import meets parents before their children.
        ids = sorted(self.store.ids(self.query))
        with zipfile.ZipFile(pieces, "w") as archive:  # type: ignore[call-overload]
            for image in self._images(ids):
                for _ in self._add_picture(archive, image):
                    yield pieces.take()
            for name, rows in ((LINES, self._lines), (TABLE, self._table)):
                for _ in _add_text(archive, name, rows(list(self.sizes))):
                    yield pieces.take()
            if self.problems:
                archive.writestr(ERRORS_FILE, "\n".join(self.problems))
        yield pieces.take()
        self._record(filename, pieces.size)

    def _images(self, ids: list[int]) -> Iterator[GeneratedImage]:
        for start in range(0, len(ids), BATCH_SIZE):
            part = tuple(ids[start : start + BATCH_SIZE])
            images = self.store.search(Query(ids=part, limit=len(part)))
            yield from sorted(images, key=lambda image: image.id or 0)

    def _described(self, image: GeneratedImage) -> GeneratedImage:
        """The picture as the ZIP holds it."""
        wanted = self.image_format or image.request.image_format
        if wanted == image.request.image_format:
            return image
        name = Path(image.filename).stem + SUFFIXES[wanted]
        request = replace(image.request, image_format=wanted, quality=self.quality)
        return replace(image, request=request, filename=name)

    def _add_picture(self, archive: zipfile.ZipFile, image: GeneratedImage) -> Iterator[None]:
        described = self._described(image)
        entry = _entry(f"{FOLDER}/{Path(described.filename).name}", image.created_at)
        size = 0
        source: BinaryIO
        try:
            path = self.folder.path_of(image)
            source = path.open("rb") if described is image else _converted(path, described)
        except (NotFound, StorageError, OSError) as error:
            self.problems.append(f"{image.filename}: {error}")
            return
        with source, archive.open(entry, "w") as target:
            while piece := source.read(CHUNK_SIZE):
                target.write(piece)
                size += len(piece)
                yield
        self.sizes[image.id or 0] = size

    def _records(self, ids: list[int]) -> Iterator[dict[str, Any]]:
        for image in self._images(ids):
            described = replace(self._described(image), file_size=self.sizes[image.id or 0])
            yield export_record(described)

    def _lines(self, ids: list[int]) -> Iterator[str]:
        for record in self._records(ids):
            yield json.dumps(record, ensure_ascii=False) + "\n"

    def _table(self, ids: list[int]) -> Iterator[str]:
        yield "\ufeff"  # without it Excel takes UTF-8 for something else
        target = io.StringIO()
        writer = csv.writer(target)
        for number, record in enumerate(self._records(ids)):
            if number == 0:
                writer.writerow(record)
            writer.writerow([_cell(value) for value in record.values()])
            yield target.getvalue()
            target.seek(0)
            target.truncate()

    def _record(self, filename: str, size: int) -> None:
        with self.store.transaction() as connection:
            connection.execute(
                "INSERT INTO exports (export_type, filename, filepath, file_size, item_count, "
                "created_at) VALUES (?, ?, '', ?, ?, ?)",
                [
                    f"zip, {self.image_format or 'as they are'}",
                    filename,
                    size,
                    len(self.sizes),
                    timestamp(datetime.now(UTC)),
                ],
            )


def _converted(path: Path, image: GeneratedImage) -> BinaryIO:
    with open_picture(path) as picture:
        return io.BytesIO(embed(replace(image, image=picture)))


def _add_text(archive: zipfile.ZipFile, name: str, texts: Iterator[str]) -> Iterator[None]:
    entry = _entry(name, datetime.now(UTC))
    entry.compress_type = zipfile.ZIP_DEFLATED
    with archive.open(entry, "w") as target:
        for text in texts:
            target.write(text.encode())
            yield


def _entry(name: str, moment: datetime) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    with suppress(ValueError):  # ZIP knows no time before 1980
        entry = zipfile.ZipInfo(name, moment.astimezone(UTC).timetuple()[:6])
    entry.external_attr = 0o644 << 16
    return entry


def _cell(value: object) -> object:
    """A cell that no spreadsheet takes for a formula."""
    if isinstance(value, list | dict):
        value = json.dumps(value, ensure_ascii=False)
    if isinstance(value, str) and value.startswith(FORMULA_STARTS):
        return f"'{value}"
    return value
