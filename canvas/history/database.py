"""The SQLite database of generated images and model downloads."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from canvas.errors import StorageError
from canvas.history import queries
from canvas.history.migrations import migrate
from canvas.history.queries import Query
from canvas.history.rows import ModelEvent, event_from_row, event_to_row, from_row, to_row
from canvas.request import GeneratedImage, GenerationRequest

BUSY_TIMEOUT = 30.0  # seconds
MAX_TIMES = 40  # that `recent_times` reads
COMMON_MATCHES = 2000  # with as many matches, scanning in order of time is the faster search

SELECTED = "id IN (SELECT value FROM json_each(:ids)) AND (:owner IS NULL OR +owner = :owner)"

# Messages by parts of SQLite's own.
ERROR_MESSAGES = {
    ("locked", "busy"): (
        "The database {path} is locked by another program. "
        "Close what has it open (another Magic Canvas, a database browser) and try again."
    ),
    ("readonly", "read-only"): (
        "The database {path} is read-only. "
        "Check the permissions of the file and its folder, or choose another one with --data-dir."
    ),
    ("not a database",): (
        "The file {path} is not a database. If it was one, `python -m canvas doctor --rebuild` "
        "rebuilds it from the images; or choose another folder with --data-dir."
    ),
    ("unable to open",): (
        "The database {path} cannot be opened. Check the permissions of the file and its folder, "
        "or choose another one with --data-dir."
    ),
    ("is full",): "The disk of {path} is full. Free some space and try again.",
    ("disk I/O",): ("The disk of {path} cannot be written ({reason}). If it is full, free some space and try again."),
    ("malformed", "corrupt"): (
        "The database {path} is damaged ({reason}). Stop the server and run "
        "`python -m canvas doctor --rebuild`, which rebuilds it from the images."
    ),
}
DATABASE_MOVED = (
    "The database {path} was moved or deleted while it was open. Put it back if you can, and "
    "restart: images made meanwhile are found by their files."
)


def describe_sqlite_error(path: Path, error: sqlite3.Error) -> str:
    """What is wrong with the database file and what to do."""
    reason = str(error)
    for parts, message in ERROR_MESSAGES.items():
        if any(part in reason for part in parts):
            return message.format(path=path, reason=reason)
    return f"The database {path} cannot be used ({reason}). Check the file, or move it away."


class Database:
    """The SQLite file at `path`, created or migrated on opening; thread-safe.

    Raises StorageError when the file is locked for more than `busy_timeout` seconds, read-only,
    damaged or not a database.
    """

    def __init__(self, path: Path, busy_timeout: float = BUSY_TIMEOUT) -> None:
        self.path = Path(path)
        self._busy_timeout = busy_timeout
        self._lock = threading.RLock()  # of the connection; SQLite has a single writer anyway
        # Reading has its own connection, as it does not wait for other programs that write.
        self._read_lock = threading.Lock()
        self._writing_thread: int | None = None
        with self._wrap_errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = self._connect()
        try:
            with self._wrap_errors():
                self._open()
                self._reader = self._connect()
        except BaseException:
            self._connection.close()
            raise

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=self._busy_timeout, isolation_level=None, check_same_thread=False
        )
        connection.row_factory = sqlite3.Row
        return connection

    def _open(self) -> None:
        self._inode = self._current_inode()
        migrate(self._connection, self.path)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.execute("PRAGMA secure_delete = ON")  # deleted data is overwritten
        # A read-only file opens without an error: fail now, not after a generation.
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.execute("UPDATE generated_images SET id = id WHERE id IS NULL")
        self._connection.execute("ROLLBACK")

    def close(self) -> None:
        with self._lock, self._read_lock:
            self._connection.close()
            self._reader.close()

    def save_image(self, image: GeneratedImage) -> GeneratedImage:
        """Insert the row of an image, or replace the row of its file; the result has its id."""
        return self.save_images([image])[0]

    def save_images(self, images: Iterable[GeneratedImage]) -> list[GeneratedImage]:
        """`save_image` for many in one transaction."""
        with self.transaction() as connection:
            return [replace(image, id=_save_image(connection, image)) for image in images]

    def image(self, image_id: int) -> GeneratedImage | None:
        return self._one("SELECT * FROM generated_images WHERE id = ?", [image_id])

    def image_by_filename(self, name: str) -> GeneratedImage | None:
        return self._one("SELECT * FROM generated_images WHERE filename = ? ORDER BY id DESC LIMIT 1", [name])

    def recent(self, owner: str | None, limit: int = 50, offset: int = 0) -> list[GeneratedImage]:
        """The newest images that have a file, of one owner or (None) of all."""
        return self.search(Query(owner=owner, limit=limit, offset=offset))

    def search(self, query: Query) -> list[GeneratedImage]:
        common = self.rows(*queries.matches(query, COMMON_MATCHES))[0]["matches"] == COMMON_MATCHES
        return [from_row(row) for row in self.rows(*queries.page(query, common))]

    def count(self, query: Query) -> int:
        return self.totals(query)[0]

    def totals(self, query: Query) -> tuple[int, int]:
        """The number of matching images on all pages, and the bytes of their files."""
        (row,) = self.rows(*queries.total(query))
        return row["images"], row["bytes"]

    def ids(self, query: Query) -> list[int]:
        return [row["id"] for row in self.rows(*queries.all_ids(query))]

    def save_model_event(self, event: ModelEvent) -> int:
        """Insert a download or load of a model and return the id of the row."""
        with self.transaction() as connection:
            return _insert(connection, "model_downloads", event_to_row(event))

    def model_events(self, limit: int = 100) -> list[ModelEvent]:
        rows = self.rows("SELECT * FROM model_downloads ORDER BY id DESC LIMIT ?", [limit])
        return [event_from_row(row) for row in rows]

    def recent_times(
        self, request: GenerationRequest, device: str, dtype: str
    ) -> list[tuple[GenerationRequest, float]]:
        """Requests and seconds per image of the latest images of this model, task and number of guiding images."""
        rows = self.rows(
            "SELECT * FROM generated_images WHERE model_used = ? AND device = ? AND dtype = ? AND task = ? "
            "AND (task <> 'upscale' OR json_extract(options, '$.upscaler') = ?) "
            "AND coalesce(json_array_length(options, '$.control_images'), 0) = ? "
            "AND coalesce(json_array_length(options, '$.reference_images'), 0) = ? "
            "AND generation_time > 0 AND num_inference_steps > 0 ORDER BY id DESC LIMIT ?",
            [
                *(request.model_key, device, dtype, request.task, request.upscaler),
                *(len(request.control_images), len(request.reference_images), MAX_TIMES),
            ],
        )
        images = [from_row(row) for row in rows]
        return [
            (image.request, image.generation_time) for image in images if image.request.width and image.request.height
        ]

    def set_favourite(self, ids: Iterable[int], owner: str | None, favourite: bool) -> int:
        """Mark or unmark images of an owner (None: of all); returns how many were found."""
        with self.transaction() as connection:
            return connection.execute(
                f"UPDATE generated_images SET favourite = :favourite WHERE {SELECTED}",  # noqa: S608
                {"favourite": int(favourite), "ids": json.dumps(list(ids)), "owner": owner},
            ).rowcount

    def delete_returning(self, ids: Iterable[int], owner: str | None) -> list[dict[str, Any]]:
        """Delete rows of an owner (None: of all) and return them for `insert_rows`."""
        parameters = {"ids": json.dumps(list(ids)), "owner": owner}
        with self.transaction() as connection:
            rows = self.rows(f"SELECT * FROM generated_images WHERE {SELECTED}", parameters)  # noqa: S608
            connection.execute(f"DELETE FROM generated_images WHERE {SELECTED}", parameters)  # noqa: S608
        return rows

    def insert_rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """The inverse of `delete_returning`."""
        with self.transaction() as connection:
            for row in rows:
                _insert(connection, "generated_images", row)

    def has_owner(self, owner: str) -> bool:
        """Whether any row belongs to an owner."""
        sql = (
            "SELECT EXISTS (SELECT 1 FROM generated_images WHERE owner = :owner) "
            "OR EXISTS (SELECT 1 FROM unfinished_jobs WHERE owner = :owner) "
            "OR EXISTS (SELECT 1 FROM comparisons WHERE owner = :owner) AS found"
        )
        return bool(self.rows(sql, {"owner": owner})[0]["found"])

    def ids_of_owner(self, owner: str) -> list[int]:
        rows = self.rows("SELECT id FROM generated_images WHERE owner = ?", [owner])
        return [row["id"] for row in rows]

    def files(self) -> dict[int, tuple[str, str, bool]]:
        """`(filepath, filename, missing)` of every image by id."""
        rows = self.rows("SELECT id, filepath, filename, missing FROM generated_images")
        return {row["id"]: (row["filepath"] or "", row["filename"], bool(row["missing"])) for row in rows}

    def mark_missing(self, image_ids: Iterable[int], missing: bool = True) -> None:
        """Mark or unmark the files of these images as missing."""
        with self.transaction() as connection:
            connection.executemany(
                "UPDATE generated_images SET missing = ? WHERE id = ?",
                [(int(missing), image_id) for image_id in image_ids],
            )

    def rows(self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> list[dict[str, Any]]:
        """All rows of a SELECT statement; within a transaction with its changes."""
        writes = self._writing_thread == threading.get_ident()
        connection = self._connection if writes else self._reader
        with nullcontext() if writes else self._read_lock, self._wrap_errors():
            return [dict(row) for row in connection.execute(sql, parameters)]

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A write transaction, committed at the end of the block or rolled back; may be nested."""
        with self._wrap_errors(), self._write_lock():
            if self._connection.in_transaction:  # nested
                yield self._connection
                return
            if self._current_inode() != self._inode:  # writes would be lost
                raise StorageError(DATABASE_MOVED.format(path=self.path))
            self._connection.execute("BEGIN IMMEDIATE")
            self._writing_thread = threading.get_ident()
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            else:
                self._connection.execute("COMMIT")
            finally:
                self._writing_thread = None

    @contextmanager
    def _write_lock(self) -> Iterator[None]:
        """Hold the lock of the writing connection; threads do not wait longer for it than for other programs."""
        if not self._lock.acquire(timeout=self._busy_timeout):
            raise StorageError(describe_sqlite_error(self.path, sqlite3.OperationalError("database is locked")))
        try:
            yield
        finally:
            self._lock.release()

    def purge(self) -> None:
        """Overwrite deleted data in the search index and the write-ahead log."""
        with self._wrap_errors(), self._write_lock():
            self._connection.execute("INSERT INTO image_search (image_search) VALUES ('optimize')")
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _one(self, sql: str, parameters: Sequence[Any]) -> GeneratedImage | None:
        return next(map(from_row, self.rows(sql, parameters)), None)

    def _current_inode(self) -> tuple[int, int] | None:
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
                "Check its permissions, or choose another one with --data-dir."
            ) from error


def _insert(connection: sqlite3.Connection, table: str, row: Mapping[str, Any]) -> int:
    row = {column: value for column, value in row.items() if column != "id" or value is not None}
    columns, values = ", ".join(row), ", ".join(f":{column}" for column in row)
    cursor = connection.execute(f"INSERT INTO {table} ({columns}) VALUES ({values})", row)  # noqa: S608 - names are ours
    return int(cursor.lastrowid or 0)


def _save_image(connection: sqlite3.Connection, image: GeneratedImage) -> int:
    # Another process that reconciles may have added a row for the file already.
    known = connection.execute(
        "SELECT id FROM generated_images WHERE filename = ? AND filepath = ?", [image.filename, image.filepath]
    ).fetchone()
    if known is None or not image.filename:
        return _insert(connection, "generated_images", to_row(image))
    row = to_row(replace(image, id=known["id"]))
    values = ", ".join(f"{column} = :{column}" for column in row if column != "id")
    connection.execute(f"UPDATE generated_images SET {values} WHERE id = :id", row)  # noqa: S608
    return int(known["id"])
