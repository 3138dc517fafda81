"""The numbered migrations of the database; `PRAGMA user_version` counts those applied."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path

from canvas.errors import StorageError
from canvas.files import PART_SUFFIX

TABLES = """
CREATE TABLE IF NOT EXISTS generated_images (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    filename TEXT NOT NULL,
    filepath TEXT,
    prompt TEXT NOT NULL,
    enhanced_prompt TEXT,
    model_used TEXT,
    style TEXT,
    negative_prompt TEXT,
    generation_time REAL,
    image_width INTEGER,
    image_height INTEGER,
    file_size INTEGER,
    format_used TEXT,
    quality INTEGER,
    created_at TEXT DEFAULT CURRENT_TIMESTAMP
);
CREATE TABLE IF NOT EXISTS model_downloads (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    model_name TEXT NOT NULL,
    model_size TEXT,
    download_time REAL,
    downloaded_at TEXT DEFAULT CURRENT_TIMESTAMP
);
CREATE TABLE IF NOT EXISTS exports (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    export_type TEXT,
    filename TEXT,
    filepath TEXT,
    file_size INTEGER,
    item_count INTEGER,
    created_at TEXT DEFAULT CURRENT_TIMESTAMP
);
"""

# Missing in the oldest schema.
FILE_COLUMNS = {"filepath": "TEXT", "format_used": "TEXT", "quality": "INTEGER"}

IMAGE_COLUMNS = {
    "task": "TEXT NOT NULL DEFAULT 'text_to_image'",
    "seed": "INTEGER",
    "num_inference_steps": "INTEGER",
    "guidance_scale": "REAL",
    "scheduler": "TEXT",
    "device": "TEXT NOT NULL DEFAULT ''",
    "dtype": "TEXT NOT NULL DEFAULT ''",
    "model_revision": "TEXT NOT NULL DEFAULT ''",
    "owner": "TEXT NOT NULL DEFAULT 'local'",
    "favourite": "INTEGER NOT NULL DEFAULT 0",
    "parent_id": "INTEGER",
    "options": "TEXT NOT NULL DEFAULT '{}'",
}

DOWNLOAD_COLUMNS = {
    "event": "TEXT NOT NULL DEFAULT 'download'",
    "repo_id": "TEXT NOT NULL DEFAULT ''",
    "revision": "TEXT NOT NULL DEFAULT ''",
    "bytes": "INTEGER",
    "file_count": "INTEGER",
    "status": "TEXT NOT NULL DEFAULT 'complete'",
    "error": "TEXT NOT NULL DEFAULT ''",
}

# The two wide indexes cover every column that the gallery filters or sorts by, so that a page is
# found without reading the rows.
GALLERY = """
CREATE INDEX images_of_owner ON generated_images (
    owner, missing, created_at, id, favourite, model_used, style, task,
    image_width, image_height, file_size, generation_time
);
CREATE INDEX images_of_all ON generated_images (
    missing, created_at, id, favourite, model_used, style, task,
    image_width, image_height, file_size, generation_time
);
CREATE INDEX images_by_filename ON generated_images (filename);
CREATE INDEX images_by_file_size ON generated_images (file_size);
CREATE INDEX images_by_timing ON generated_images (
    model_used, device, dtype, id, image_width, image_height,
    generation_time, num_inference_steps
);
CREATE VIRTUAL TABLE image_search USING fts5 (
    prompt, content='generated_images', content_rowid='id',
    tokenize='unicode61 remove_diacritics 2', prefix='2 3'
);
CREATE TRIGGER image_search_insert AFTER INSERT ON generated_images BEGIN
    INSERT INTO image_search (rowid, prompt) VALUES (new.id, new.prompt);
END;
CREATE TRIGGER image_search_delete AFTER DELETE ON generated_images BEGIN
    INSERT INTO image_search (image_search, rowid, prompt) VALUES ('delete', old.id, old.prompt);
END;
CREATE TRIGGER image_search_update AFTER UPDATE OF prompt ON generated_images BEGIN
    INSERT INTO image_search (image_search, rowid, prompt) VALUES ('delete', old.id, old.prompt);
    INSERT INTO image_search (rowid, prompt) VALUES (new.id, new.prompt);
END;
INSERT INTO image_search (image_search) VALUES ('rebuild');
"""

UNFINISHED_JOBS = """
CREATE TABLE unfinished_jobs (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    request TEXT NOT NULL,
    server TEXT NOT NULL,
    created_at TEXT NOT NULL
);
CREATE INDEX unfinished_jobs_of_owner ON unfinished_jobs (owner, created_at);
"""

# Older versions created this table with the first key.
API_KEYS = """
CREATE TABLE IF NOT EXISTS api_keys (
    name TEXT PRIMARY KEY,
    digest TEXT NOT NULL UNIQUE,
    created_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
);
"""

# `requests` is a JSON list in the order shown, `chosen` an index into it.
COMPARISONS = """
CREATE TABLE comparisons (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    requests TEXT NOT NULL,
    blind INTEGER NOT NULL,
    chosen INTEGER,
    created_at TEXT NOT NULL
);
CREATE INDEX comparisons_of_owner ON comparisons (owner, created_at);
"""


COMPARISON_IMAGES = """
UPDATE comparisons SET image_ids = (
    SELECT json_group_array((
        SELECT id FROM generated_images
        WHERE owner = comparisons.owner AND missing = 0 AND created_at >= comparisons.created_at
        AND +model_used = json_extract(value, '$.model_key')
        AND +prompt = json_extract(value, '$.prompt')
        AND +seed = json_extract(value, '$.seed')
        AND +image_width = json_extract(value, '$.width')
        AND +image_height = json_extract(value, '$.height')
        AND +num_inference_steps = json_extract(value, '$.num_inference_steps')
        AND coalesce(json_extract(options, '$.mode'), 'quality')
        = coalesce(json_extract(value, '$.mode'), 'quality')
        ORDER BY created_at LIMIT 1
    )) FROM json_each(comparisons.requests)
)
"""


def _execute_all(connection: sqlite3.Connection, script: str) -> None:
    # Connection.executescript would commit the transaction of the migration.
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            connection.execute(statement)
            statement = ""


def _add_columns(connection: sqlite3.Connection, table: str, columns: Mapping[str, str]) -> None:
    present = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
    for name, declaration in columns.items():
        if name not in present:
            connection.execute(f"ALTER TABLE {table} ADD COLUMN {name} {declaration}")


def m001_initial(connection: sqlite3.Connection) -> None:
    """The three tables of the first version; the oldest schema gets the columns it lacks."""
    _execute_all(connection, TABLES)
    _add_columns(connection, "generated_images", FILE_COLUMNS)


def m002_reproducible_records(connection: sqlite3.Connection) -> None:
    """Columns to reproduce an image, and those of model events."""
    _add_columns(connection, "generated_images", IMAGE_COLUMNS)
    _add_columns(connection, "model_downloads", DOWNLOAD_COLUMNS)


def m003_gallery(connection: sqlite3.Connection) -> None:
    """Indexes and full-text search of the gallery."""
    _add_columns(connection, "generated_images", {"missing": "INTEGER NOT NULL DEFAULT 0"})
    _execute_all(connection, GALLERY)


def m004_unfinished_jobs(connection: sqlite3.Connection) -> None:
    """Jobs that can be run again after a restart."""
    _execute_all(connection, UNFINISHED_JOBS)


def m005_api_keys(connection: sqlite3.Connection) -> None:
    """API keys."""
    _execute_all(connection, API_KEYS)


def m006_comparisons(connection: sqlite3.Connection) -> None:
    """Comparisons of models, with votes."""
    _execute_all(connection, COMPARISONS)


def m007_channels(connection: sqlite3.Connection) -> None:
    """The client (column `channel`) that requested an image."""
    _add_columns(connection, "generated_images", {"channel": "TEXT NOT NULL DEFAULT ''"})


def m008_comparison_images(connection: sqlite3.Connection) -> None:
    """The image ids of comparisons; those of existing ones are found by their requests."""
    _add_columns(connection, "comparisons", {"image_ids": "TEXT NOT NULL DEFAULT '[]'"})
    connection.execute(COMPARISON_IMAGES)


MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (
    m001_initial,
    m002_reproducible_records,
    m003_gallery,
    m004_unfinished_jobs,
    m005_api_keys,
    m006_comparisons,
    m007_channels,
    m008_comparison_images,
)


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Apply the pending migrations in one transaction; an existing file is backed up first."""
    if _version(connection, path) == len(MIGRATIONS):
        return
    if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        _back_up(connection, path)
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Read again under the lock: another process may have migrated meanwhile.
        for migration in MIGRATIONS[_version(connection, path) :]:
            migration(connection)
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _version(connection: sqlite3.Connection, path: Path) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        raise StorageError(
            f"The database {path} was written by a newer Magic Canvas (schema version {version}, "
            f"supported up to {len(MIGRATIONS)}). Update the program, or choose another folder "
            "with --data-dir."
        )
    return version


def unused_path(path: Path, kind: str) -> Path:
    """The first of `NAME.KIND-1.db`, `NAME.KIND-2.db` … in the folder of a database that does not exist."""
    candidates = (path.with_name(f"{path.stem}.{kind}-{number}.db") for number in count(1))
    return next(candidate for candidate in candidates if not candidate.exists())


def _back_up(connection: sqlite3.Connection, path: Path) -> None:
    """Copy the database to `NAME.backup-N.db` in its folder, never over an existing file."""
    backup = unused_path(path, "backup")
    partial = backup.with_suffix(PART_SUFFIX)
    target = sqlite3.connect(partial)
    try:
        connection.backup(target)
    finally:
        target.close()
    partial.replace(backup)
