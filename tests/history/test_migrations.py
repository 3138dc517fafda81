from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from canvas.errors import StorageError
from canvas.history.api_keys import ApiKeyStore
from canvas.history.database import Database
from canvas.history.migrations import MIGRATIONS
from canvas.history.rows import to_row
from canvas.request import OLD_FIELD_NAMES

from .conftest import OLD_REQUEST

OLDEST = """
CREATE TABLE generated_images (
    id INTEGER PRIMARY KEY AUTOINCREMENT, filename TEXT NOT NULL, prompt TEXT NOT NULL,
    enhanced_prompt TEXT, model_used TEXT NOT NULL, style TEXT, negative_prompt TEXT,
    generation_time REAL, image_width INTEGER, image_height INTEGER, file_size INTEGER,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP);
CREATE TABLE model_downloads (
    id INTEGER PRIMARY KEY AUTOINCREMENT, model_name TEXT NOT NULL, model_size TEXT,
    download_time REAL, downloaded_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP);
INSERT INTO generated_images VALUES
    (3, 'fox.png', 'a fox', 'a fox, art', 'tiny', 'Fantasy', 'blurry', 12.5, 512, 384, 999,
     '2025-01-02 03:04:05'),
    (9, 'odd.png', 'two' || char(10) || 'lines' || char(0), NULL, 'small', 'Steampunk', NULL,
     NULL, 500, 333, NULL, '2025-01-03T03:04:05.5');
INSERT INTO model_downloads VALUES (4, 'tiny', '3.2 GB', 61.5, '2025-01-01 00:00:00');
"""
OLD = """
CREATE TABLE generated_images (
    id INTEGER PRIMARY KEY AUTOINCREMENT, filename TEXT NOT NULL, filepath TEXT NOT NULL,
    prompt TEXT NOT NULL, enhanced_prompt TEXT, model_used TEXT NOT NULL, style TEXT,
    negative_prompt TEXT, generation_time REAL, image_width INTEGER, image_height INTEGER,
    file_size INTEGER, format_used TEXT, quality INTEGER,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP);
CREATE TABLE model_downloads (
    id INTEGER PRIMARY KEY AUTOINCREMENT, model_name TEXT NOT NULL, model_size TEXT,
    download_time REAL, downloaded_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP);
CREATE TABLE exports (
    id INTEGER PRIMARY KEY AUTOINCREMENT, export_type TEXT, filename TEXT, filepath TEXT,
    file_size INTEGER, item_count INTEGER, created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP);
INSERT INTO generated_images VALUES
    (3, 'fox.jpg', 'outputs/fox.jpg', 'a fox', 'a fox, art', 'tiny', 'fantasy', 'blurry', 12.5,
     512, 384, 999, 'JPEG', 90, '2025-01-02 03:04:05');
INSERT INTO model_downloads VALUES (4, 'tiny', '3.2 GB', 61.5, '2025-01-01 00:00:00');
INSERT INTO exports VALUES (2, 'zip', 'all.zip', 'exports/all.zip', 4096, 1, '2025-01-05 00:00:00');
"""
# Written by version 0.1, with its field names.
OLD_ROW = {
    **{"id": 5, "filename": "a.png", "filepath": "outputs/a.png", "prompt": "a red fox, in snow"},
    **{"enhanced_prompt": "a red fox, art", "model_used": "tiny", "style": "none"},
    **{"negative_prompt": "blurry", "generation_time": 3.25, "image_width": 512},
    **{"image_height": 384, "file_size": 9, "format_used": "png", "quality": 95, "seed": 7},
    **{"created_at": "2026-05-04 03:02:01.123456", "task": "inpaint", "num_inference_steps": 4},
    **{"guidance_scale": 1.5, "scheduler": "LCM", "device": "cpu", "dtype": "float32"},
    **{"channel": "gradio", "favourite": 0, "owner": "local"},
    "options": '{"notes": ["n"], "num_images": 1, "image": "ab.png", "mask_image": "cd.png", '
    '"strength": 0.5, "fit": "pad", "background": "#00ff7f", "mask_feather": 16, '
    '"only_masked": false, "extend": [8, 0, 16, 0], "variation_seed": null, '
    '"variation_strength": 0.0, "scale": 2, "upscaler": "lanczos", "loras": [], '
    '"prompt_weighting": false, "watermark": "", "mode": "turbo", "where": "huggingface"}',
}
TABLES = {
    "generated_images": "id filename filepath prompt enhanced_prompt model_used style "
    "negative_prompt generation_time image_width image_height file_size format_used quality "
    "created_at task seed num_inference_steps guidance_scale scheduler device dtype "
    "model_revision owner favourite parent_id options channel",
    "model_downloads": "id model_name model_size download_time downloaded_at event repo_id "
    "revision bytes file_count status error",
    "exports": "id export_type filename filepath file_size item_count created_at",
}


def build(path: Path, script: str) -> Path:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)
    return path


def contents(path: Path) -> dict[str, list[dict[str, object]]]:
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        return {
            table: [dict(row) for row in connection.execute(f"SELECT * FROM {table}")]  # noqa: S608
            for table in (*TABLES, "sqlite_sequence")
            if connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", [table]).fetchone()
        }


def columns(path: Path, table: str) -> set[str]:
    with closing(sqlite3.connect(path)) as connection:
        return {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}


@pytest.mark.parametrize("script", ["", OLDEST, OLD], ids=["blank", "oldest", "old"])
def test_every_schema_migrates_to_the_current_one(tmp_path: Path, script: str) -> None:
    path = build(tmp_path / "ai_images.db", script)
    Database(path).close()
    for table, names in TABLES.items():
        assert set(names.split()) <= columns(path, table)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize("script", [OLDEST, OLD], ids=["oldest", "old"])
def test_migrate_keeps_all_rows_and_makes_a_backup(tmp_path: Path, script: str) -> None:
    path = build(tmp_path / "ai_images.db", script)
    before = contents(path)
    Database(path).close()
    after = contents(path)
    for table, rows in before.items():
        for old, new in zip(rows, after[table], strict=True):
            assert old.items() <= new.items()
    assert contents(tmp_path / "ai_images.backup-1.db") == before


def test_old_rows_are_read_as_images(tmp_path: Path) -> None:
    database = Database(build(tmp_path / "ai_images.db", OLDEST))
    fox, odd = database.image(3), database.image(9)
    database.close()
    assert fox is not None
    assert odd is not None
    assert (fox.request.prompt, fox.request.style, fox.request.width) == ("a fox", "fantasy", 512)
    assert (fox.owner, fox.client) == ("local", "")
    assert fox.notes == ()
    assert odd.request.prompt == "two\nlines"
    assert (odd.request.width, odd.request.style) == (None, "none")
    assert any("steampunk" in note for note in odd.notes)


def test_old_field_names_in_rows_are_read_and_new_ones_written(database: Database) -> None:
    with database.transaction() as connection:
        columns = ", ".join(OLD_ROW)
        values = ", ".join(f":{column}" for column in OLD_ROW)
        connection.execute(f"INSERT INTO generated_images ({columns}) VALUES ({values})", OLD_ROW)  # noqa: S608
    image = database.image(5)
    assert image is not None
    assert (image.request, image.client, image.notes) == (OLD_REQUEST, "gradio", ("n",))
    assert database.recent_times(OLD_REQUEST, "cpu", "float32") == [(OLD_REQUEST, 3.25)]
    row = to_row(image)
    options = json.loads(row["options"])
    assert (options["preset"], options["backend"]) == ("turbo", "hf-inference")
    assert row["channel"] == "gradio"
    assert not options.keys() & OLD_FIELD_NAMES.keys()


def test_old_rows_are_searchable_and_ids_continue(tmp_path: Path) -> None:
    database = Database(build(tmp_path / "ai_images.db", OLDEST))
    found = database.rows("SELECT rowid FROM image_search WHERE image_search MATCH 'fox'")
    with database.transaction() as connection:
        connection.execute(
            "INSERT INTO generated_images (filename, prompt, model_used) VALUES ('new.png', 'new', 'tiny')"
        )
        number = connection.execute("SELECT max(id) FROM generated_images").fetchone()[0]
    database.close()
    assert [row["rowid"] for row in found] == [3]
    assert number == 10


def test_the_backup_is_made_once_and_overwrites_nothing(tmp_path: Path) -> None:
    path = build(tmp_path / "ai_images.db", OLD)
    (tmp_path / "ai_images.backup-1.db").write_bytes(b"somebody's")
    Database(path).close()
    Database(path).close()
    assert (tmp_path / "ai_images.backup-1.db").read_bytes() == b"somebody's"
    assert sorted(file.name for file in tmp_path.glob("*.db")) == [
        "ai_images.backup-1.db",
        "ai_images.backup-2.db",
        "ai_images.db",
    ]


def test_a_failed_migration_is_rolled_back(tmp_path: Path) -> None:
    path = build(tmp_path / "ai_images.db", OLD + "CREATE TABLE images_of_owner (id INTEGER);")
    before = contents(path)
    with pytest.raises(StorageError, match="images_of_owner"):
        Database(path)
    assert contents(path) == before


def test_api_keys_from_before_their_migration_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "ai_images.db"
    database = Database(path)
    secret = ApiKeyStore(database).create("laptop")
    database.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("DROP TABLE comparisons; PRAGMA user_version = 4")
    database = Database(path)
    owner = ApiKeyStore(database).get_owner(secret)
    database.close()
    assert owner == "key-laptop"


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = build(tmp_path / "ai_images.db", "PRAGMA user_version = 99;")
    with pytest.raises(StorageError, match="newer Magic Canvas"):
        Database(path)
