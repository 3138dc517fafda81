"""The database that remembers every picture and every model download."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from canvas.errors import StorageError
from canvas.history import queries
from canvas.history.migrations import migrate
from canvas.history.queries import Query
from canvas.history.rows import ModelEvent, download_of, download_row, from_row, to_row
from canvas.request import GeneratedImage, GenerationRequest, img2img_steps

# By what SQLite says of it.
SENTENCES = {
    ("locked", "busy"): (
        "The database {path} is locked by another program. "
        "Close what has it open (another Magic Canvas, a database browser) and try again."
    ),
    ("readonly", "read-only"): (
        "The database {path} cannot be written: the file or its folder is read-only. "
        "Give yourself the right to write there, or choose another folder with --data-dir."
    ),
    ("not a database",): (
        "The file {path} is not a database. If it was one, `python -m canvas doctor --rebuild` "
        "makes it anew from the pictures; or choose another folder with --data-dir."
    ),
    ("unable to open",): (
        "The database {path} cannot be opened. Give yourself the right to read and write there, "
        "or choose another folder with --data-dir."
    ),
    ("is full",): "The disk of {path} is full. Free some space there and try again.",
    ("disk I/O",): (
        "The disk of {path} does not take what is written ({what}): is it full? "
        "Free some space there and try again."
    ),
    ("malformed", "corrupt"): (
        "The database {path} is damaged ({what}). Stop the server and run "
        "`python -m canvas doctor --rebuild`: the pictures are found again from their files."
    ),
}
DATABASE_MOVED = (
    "The database {path} was moved or removed while it was open. Put it back if you can, and "
    "start again: pictures made meanwhile are found by their files."
)


def describe_sqlite_error(path: Path, error: sqlite3.Error) -> str:
    """What happened to the database file and what to do, from SQLite's words."""
    what = str(error)
    for marks, sentence in SENTENCES.items():
        if any(mark in what for mark in marks):
            return sentence.format(path=path, what=what)
    return f"The database {path} cannot be used ({what}). Check the file, or move it away."


BUSY_TIMEOUT = 30.0  # seconds
COMMON_MATCHES = 2000  # words in as many pictures are met soon on a walk through all

SELECTED_ROWS = (
    "* FROM generated_images WHERE id IN (SELECT value FROM json_each(:ids)) "
    "AND (:owner IS NULL OR +owner = :owner)"
)

__all__ = ["Database", "ModelEvent"]


class Database:
    """The SQLite file at `path`, made or migrated on opening; any thread may call it.

    Raises StorageError, naming the path and what to do, when the file is locked for longer
    than `busy_timeout` seconds, read-only, damaged or no database.
    """

    def __init__(self, path: Path, busy_timeout: float = BUSY_TIMEOUT) -> None:
        self.path = Path(path)
        self._lock = threading.RLock()  # one connection: SQLite has one writer anyway
        with self._wrap_errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                self.path, timeout=busy_timeout, isolation_level=None, check_same_thread=False
            )
        try:
            with self._wrap_errors():
                self._open()
        except BaseException:
            self._connection.close()
            raise

    def _open(self) -> None:
        self._inode = self._on_disk()
        self._connection.row_factory = sqlite3.Row
        migrate(self._connection, self.path)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.execute("PRAGMA secure_delete = ON")  # what is erased is gone
        # A read-only file opens without complaint; better said now than after a generation.
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.execute("UPDATE generated_images SET id = id WHERE id IS NULL")
        self._connection.execute("ROLLBACK")

    def close(self) -> None:
        """Close the file; every later call raises StorageError."""
        with self._lock:
            self._connection.close()

    def record(self, image: GeneratedImage) -> GeneratedImage:
        """Write the picture's row and return it with its id; a row of that file is replaced."""
        return self.record_all([image])[0]

    def record_all(self, images: Iterable[GeneratedImage]) -> list[GeneratedImage]:
        """`record` for many in one transaction."""
        with self.transaction() as connection:
            return [replace(image, id=_write_image(connection, image)) for image in images]

    def image(self, image_id: int) -> GeneratedImage | None:
        """The picture of that id."""
        return self._one("SELECT * FROM generated_images WHERE id = ?", [image_id])

    def image_by_filename(self, name: str) -> GeneratedImage | None:
        """The picture whose file has that name."""
        return self._one(
            "SELECT * FROM generated_images WHERE filename = ? ORDER BY id DESC LIMIT 1", [name]
        )

    def recent(self, owner: str | None, limit: int = 50, offset: int = 0) -> list[GeneratedImage]:
        """The newest pictures that have a file, of one owner or (None) of all."""
        return self.search(Query(owner=owner, limit=limit, offset=offset))

    def search(self, query: Query) -> list[GeneratedImage]:
        """One page of what fits the query."""
        common = self.rows(*queries.matches(query, COMMON_MATCHES))[0]["matches"] == COMMON_MATCHES
        return [from_row(row) for row in self.rows(*queries.page(query, common))]

    def count(self, query: Query) -> int:
        """How many pictures fit the query on all pages."""
        return self.totals(query)[0]

    def totals(self, query: Query) -> tuple[int, int]:
        """How many pictures fit the query on all pages, and the bytes of their files."""
        (row,) = self.rows(*queries.total(query))
        return row["pictures"], row["bytes"]

    def ids(self, query: Query) -> list[int]:
        """The ids of all pictures that fit the query, in its order."""
        return [row["id"] for row in self.rows(*queries.all_ids(query))]

    def record_download(self, entry: ModelEvent) -> int:
        """Write one download or load of a model and return the row's id."""
        with self.transaction() as connection:
            return _insert(connection, "model_downloads", download_row(entry))

    def model_events(self, limit: int = 100) -> list[ModelEvent]:
        """The latest downloads and loads, the newest first."""
        rows = self.rows("SELECT * FROM model_downloads ORDER BY id DESC LIMIT ?", [limit])
        return [download_of(row) for row in rows]

    def seconds_per_step(self, request: GenerationRequest, device: str, dtype: str) -> float | None:
        """The median of the latest pictures of this model, mode and size; None without any.

        Where only other sizes were made, their time is scaled by the number of pixels.
        """
        rows = self.rows(
            "SELECT generation_time AS seconds, num_inference_steps AS steps, "
            "coalesce(json_extract(options, '$.strength'), 1) AS strength, "
            "image_width AS width, image_height AS height FROM generated_images "
            "WHERE model_used = ? AND device = ? AND dtype = ? AND task = ? "
            "AND coalesce(json_extract(options, '$.preset'), "
            "json_extract(options, '$.mode'), 'quality') = ? "
            "AND (task <> 'upscale' OR json_extract(options, '$.upscaler') = ?) "
            "AND generation_time > 0 AND num_inference_steps > 0 AND image_width > 0 "
            "ORDER BY id DESC LIMIT 100",
            [request.model_key, device, dtype, request.task, request.preset, request.upscaler],
        )
        for row in rows:
            row["seconds"] /= img2img_steps(row["steps"], row["strength"])[1]
        size = (request.width, request.height)
        same = [row["seconds"] for row in rows if (row["width"], row["height"]) == size]
        if same:
            return median(same[:20])
        pixels = (request.width or 0) * (request.height or 0)
        scaled = [row["seconds"] * pixels / (row["width"] * row["height"]) for row in rows]
        return median(scaled) if scaled and pixels else None

    def set_favourite(self, ids: Iterable[int], owner: str | None, favourite: bool) -> int:
        """Mark or unmark an owner's (None: anybody's) pictures; how many there were."""
        with self.transaction() as connection:
            return connection.execute(
                "UPDATE generated_images SET favourite = :favourite WHERE id IN "
                "(SELECT value FROM json_each(:ids)) AND (:owner IS NULL OR +owner = :owner)",
                {"favourite": int(favourite), "ids": json.dumps(list(ids)), "owner": owner},
            ).rowcount

    def delete_returning(self, ids: Iterable[int], owner: str | None) -> list[dict[str, Any]]:
        """Delete an owner's (None: anybody's) rows and return them as they were."""
        picked = {"ids": json.dumps(list(ids)), "owner": owner}
        with self.transaction() as connection:
            rows = self.rows(f"SELECT {SELECTED_ROWS}", picked)
            connection.execute(f"DELETE {SELECTED_ROWS.removeprefix('* ')}", picked)
        return rows

    def insert_rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """The inverse of `delete_returning`."""
        with self.transaction() as connection:
            for row in rows:
                _insert(connection, "generated_images", row)

    def ids_of(self, owner: str) -> list[int]:
        """The ids of all rows of an owner, with or without file."""
        rows = self.rows("SELECT id FROM generated_images WHERE owner = ?", [owner])
        return [row["id"] for row in rows]

    def files(self) -> dict[int, tuple[str, str, bool]]:
        """Of every picture its filepath, its filename and whether it is marked missing, by id."""
        rows = self.rows("SELECT id, filepath, filename, missing FROM generated_images")
        return {
            row["id"]: (row["filepath"] or "", row["filename"], bool(row["missing"]))
            for row in rows
        }

    def mark_missing(self, image_ids: Iterable[int], missing: bool = True) -> None:
        """Note that the files of these pictures are gone, or back."""
        with self.transaction() as connection:
            connection.executemany(
                "UPDATE generated_images SET missing = ? WHERE id = ?",
                [(int(missing), image_id) for image_id in image_ids],
            )

    def rows(
        self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()
    ) -> list[dict[str, Any]]:
        """All rows of a query."""
        with self._lock, self._wrap_errors():
            return [dict(row) for row in self._connection.execute(sql, parameters)]

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """The connection, alone in this process, for writes that happen all or not at all."""
        with self._lock, self._wrap_errors():
            if self._connection.in_transaction:  # part of a larger one
                yield self._connection
                return
            if self._on_disk() != self._inode:  # what is written now would be lost
                raise StorageError(DATABASE_MOVED.format(path=self.path))
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def purge(self) -> None:
        """Overwrite what was deleted, in the search index and the write-ahead log too."""
        with self._lock, self._wrap_errors():
            self._connection.execute("INSERT INTO image_search (image_search) VALUES ('optimize')")
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _one(self, sql: str, parameters: Sequence[Any]) -> GeneratedImage | None:
        rows = self.rows(sql, parameters)
        return from_row(rows[0]) if rows else None

    def _on_disk(self) -> tuple[int, int] | None:
        try:
            file = self.path.stat()
        except FileNotFoundError:
            return None
        return file.st_dev, file.st_ino

    @contextmanager
    def _wrap_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StorageError(describe_sqlite_error(self.path, error)) from error
        except OSError as error:
            raise StorageError(
                f"The data folder {self.path.parent} cannot be used ({error.strerror}). "
                "Choose another one with --data-dir, or give yourself the right to write there."
            ) from error


def _insert(connection: sqlite3.Connection, table: str, row: Mapping[str, Any]) -> int:
    row = {column: value for column, value in row.items() if column != "id" or value is not None}
    names, marks = ", ".join(row), ", ".join(f":{name}" for name in row)
    cursor = connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", row)  # noqa: S608 - names are ours
    return int(cursor.lastrowid or 0)


def _write_image(connection: sqlite3.Connection, image: GeneratedImage) -> int:
    # Reconciling in another process may have given the file a row before its maker did.
    known = connection.execute(
        "SELECT id FROM generated_images WHERE filename = ? AND filepath = ?",
        [image.filename, image.filepath],
    ).fetchone()
    if known is None or not image.filename:
        return _insert(connection, "generated_images", to_row(image))
    row = to_row(replace(image, id=known["id"]))
    changes = ", ".join(f"{name} = :{name}" for name in row if name != "id")
    connection.execute(f"UPDATE generated_images SET {changes} WHERE id = :id", row)  # noqa: S608
    return int(known["id"])
