"""Exports images with their settings as a ZIP, in chunks."""

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
from types import SimpleNamespace
from typing import Any, BinaryIO

from canvas import validation
from canvas.errors import NotFound, StorageError
from canvas.history.database import Database
from canvas.history.image_files import ImageStorage
from canvas.history.metadata import embed, open_image
from canvas.history.queries import Query
from canvas.history.rows import timestamp
from canvas.image_formats import IMAGE_FORMATS
from canvas.request import GeneratedImage

BATCH_SIZE = 200  # rows
CHUNK_SIZE = 1 << 20  # bytes
IMAGES_FOLDER = "pictures"
METADATA_JSONL = "metadata.jsonl"
METADATA_CSV = "metadata.csv"
ERRORS_FILE = "not-exported.txt"
# Spreadsheets take cells that start with these for formulas.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")


def export_zip(
    database: Database,
    storage: ImageStorage,
    query: Query,
    *,
    image_format: str | None = None,
    quality: int = 95,
    filename: str = "magic-canvas.zip",
) -> Iterator[bytes]:
    """The chunks of a ZIP of all images that match the query, on all its pages.

    Files are copied unless `image_format` is given; `quality` (1 to 100) applies to JPEG and
    WebP. Neither memory nor disk use grows with the number of images. A finished export is
    recorded in the table `exports`.
    """
    if image_format is not None:
        validation.choice("image_format", image_format, IMAGE_FORMATS)
    quality = validation.integer("quality", quality, 1, 100)
    return _Export(database, storage, query, image_format, quality).run(filename)


class _StreamBuffer:
    """A file for `zipfile` that cannot seek; `take` removes what was written."""

    def __init__(self) -> None:
        self._written: list[bytes] = []
        self.size = 0

    def write(self, content: bytes) -> int:
        self._written.append(bytes(content))
        self.size += len(content)
        return len(content)

    def flush(self) -> None:
        """Called by `zipfile`."""

    def take(self) -> bytes:
        content = b"".join(self._written)
        self._written.clear()
        return content


@dataclass
class _Export:
    database: Database
    storage: ImageStorage
    query: Query
    image_format: str | None
    quality: int
    sizes: dict[int, int] = field(default_factory=dict)  # bytes of the exported files by id
    errors: list[str] = field(default_factory=list)

    def run(self, filename: str) -> Iterator[bytes]:
        buffer = _StreamBuffer()
        with zipfile.ZipFile(buffer, "w") as archive:  # type: ignore[call-overload]
            # Ordered, so that an import meets parents before their children.
            for image in self._images(sorted(self.database.ids(self.query))):
                for _ in self._add_image(archive, image):
                    yield buffer.take()
            for name, texts in ((METADATA_JSONL, self._jsonl()), (METADATA_CSV, self._csv())):
                for _ in _add_text(archive, name, texts):
                    yield buffer.take()
            if self.errors:
                archive.writestr(ERRORS_FILE, "\n".join(self.errors))
        yield buffer.take()
        self._record(filename, buffer.size)

    def _images(self, ids: list[int]) -> Iterator[GeneratedImage]:
        for start in range(0, len(ids), BATCH_SIZE):
            batch = tuple(ids[start : start + BATCH_SIZE])
            images = self.database.search(Query(ids=batch, limit=len(batch)))
            yield from sorted(images, key=lambda image: image.id or 0)

    def _as_exported(self, image: GeneratedImage) -> GeneratedImage:
        """The image with its format and name in the ZIP."""
        if self.image_format in (None, image.request.image_format):
            return image
        name = Path(image.filename).stem + IMAGE_FORMATS[self.image_format].suffix
        request = replace(image.request, image_format=self.image_format, quality=self.quality)
        return replace(image, request=request, filename=name)

    def _add_image(self, archive: zipfile.ZipFile, image: GeneratedImage) -> Iterator[None]:
        exported = self._as_exported(image)
        entry = _entry(f"{IMAGES_FOLDER}/{Path(exported.filename).name}", image.created_at)
        size = 0
        source: BinaryIO
        try:
            path = self.storage.path_of(image)
            source = path.open("rb") if exported is image else _convert(path, exported)
        except (NotFound, StorageError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error  # without the path
            self.errors.append(f"{image.filename}: {reason}")
            return
        with source, archive.open(entry, "w") as target:
            while chunk := source.read(CHUNK_SIZE):
                target.write(chunk)
                size += len(chunk)
                yield
        self.sizes[image.id or 0] = size

    def _records(self) -> Iterator[dict[str, Any]]:
        """The lines of `metadata.jsonl`, without the owners."""
        for image in map(self._as_exported, self._images(list(self.sizes))):
            yield {
                "id": image.id,
                "filename": image.filename,
                "file_size": self.sizes[image.id or 0],
                **image.settings(),
                "favourite": image.favourite,
                "parent_id": image.parent_id,
            }

    def _jsonl(self) -> Iterator[str]:
        for record in self._records():
            yield json.dumps(record, ensure_ascii=False) + "\n"

    def _csv(self) -> Iterator[str]:
        yield "\ufeff"  # Excel needs a byte order mark to read UTF-8
        target: Any = SimpleNamespace(write=str)  # so that `writerow` returns the line
        writer = csv.writer(target)
        for number, record in enumerate(self._records()):
            if number == 0:
                yield writer.writerow(record)
            yield writer.writerow([_cell(value) for value in record.values()])

    def _record(self, filename: str, size: int) -> None:
        kind = f"zip, {self.image_format or 'as they are'}"
        with self.database.transaction() as connection:
            connection.execute(
                "INSERT INTO exports (export_type, filename, filepath, file_size, item_count, "
                "created_at) VALUES (?, ?, '', ?, ?, ?)",
                [kind, filename, size, len(self.sizes), timestamp(datetime.now(UTC))],
            )


def _convert(path: Path, image: GeneratedImage) -> BinaryIO:
    with open_image(path) as pixels:
        return io.BytesIO(embed(replace(image, image=pixels)))


def _add_text(archive: zipfile.ZipFile, name: str, texts: Iterator[str]) -> Iterator[None]:
    entry = _entry(name, datetime.now(UTC))
    entry.compress_type = zipfile.ZIP_DEFLATED
    with archive.open(entry, "w") as target:
        for text in texts:
            target.write(text.encode())
            yield


def _entry(name: str, time: datetime) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    with suppress(ValueError):  # ZIP holds no time before 1980
        entry = zipfile.ZipInfo(name, time.astimezone(UTC).timetuple()[:6])
    entry.external_attr = 0o644 << 16
    return entry


def _cell(value: object) -> object:
    """A CSV cell that spreadsheets do not take for a formula."""
    if isinstance(value, list | dict):
        value = json.dumps(value, ensure_ascii=False)
    if isinstance(value, str) and value.startswith(FORMULA_STARTS):
        return f"'{value}"
    return value
