from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from canvas.errors import StorageError
from canvas.history.database import Database
from canvas.history.export_zip import export_zip
from canvas.history.image_files import ImageStorage
from canvas.history.images import ImageRepository, ReconcileResult
from canvas.history.import_zip import ImportResult, import_folder, import_zip
from canvas.history.metadata import embed
from canvas.history.queries import Query
from canvas.history.rows import image_from_dict

from .conftest import make_image
from .test_third_party_metadata import A1111, JUNK


@pytest.fixture
def other(tmp_path: Path) -> Iterator[ImageRepository]:
    """A second, empty data folder."""
    store = Database(tmp_path / "other" / "ai_images.db")
    yield ImageRepository(store, ImageStorage(tmp_path / "other" / "outputs"))
    store.close()


def zipped(tmp_path: Path, files: dict[str, bytes]) -> Path:
    path = tmp_path / "in.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def exported(gallery: ImageRepository, tmp_path: Path, **options: Any) -> Path:
    path = tmp_path / "export.zip"
    pieces = export_zip(gallery.store, gallery.folder, Query(), **options)
    path.write_bytes(b"".join(pieces))
    return path


def take_zip(gallery: ImageRepository, path: Path, owner: str = "local") -> ImportResult:
    return import_zip(gallery.store, gallery.folder, path, owner)


def take_folder(gallery: ImageRepository, path: Path, owner: str = "local") -> ImportResult:
    return import_folder(gallery.store, gallery.folder, path, owner)


def rows(gallery: ImageRepository) -> list[dict[str, Any]]:
    return gallery.store.rows("SELECT * FROM generated_images ORDER BY id")


def test_an_export_gives_the_same_rows_and_files_in_an_empty_folder(
    gallery: ImageRepository, other: ImageRepository, tmp_path: Path
) -> None:
    first = gallery.save(make_image(favourite=True, prompt="=a fox, 狐"))
    gallery.delete([gallery.save(make_image()).id or 0], None)  # a gap in the numbers
    for image_format in ("png", "jpeg", "webp"):
        child = make_image(image_format=image_format, parent_id=first.id, notes=("a", "b"))
        gallery.save(replace(child, created_at=datetime(2025, 12, 31, 23, 59, 59, 5, UTC)))
    taken = take_zip(other, exported(gallery, tmp_path))
    assert taken == ImportResult(4, 0)
    assert rows(other) == rows(gallery)
    for image in gallery.store.recent(None):
        original = gallery.folder.path_of(image).read_bytes()
        assert other.folder.path_of(image).read_bytes() == original
        assert other.folder.thumbnail(image).is_file()
    assert other.reconcile() == ReconcileResult()


def test_what_is_here_is_not_taken_twice(gallery: ImageRepository, tmp_path: Path) -> None:
    kept = [gallery.save(make_image(seed=seed)) for seed in range(3)]
    before = rows(gallery)
    assert take_zip(gallery, exported(gallery, tmp_path)) == ImportResult(0, 3)
    converted = exported(gallery, tmp_path, image_format="jpeg")
    assert take_zip(gallery, converted) == ImportResult(0, 3)
    renamed = gallery.folder.path_of(kept[0]).read_bytes()
    path = zipped(tmp_path, {"a.png": renamed, "sub/b.png": renamed})
    assert take_zip(gallery, path) == ImportResult(0, 2)
    assert rows(gallery) == before


def test_pictures_of_others_are_no_duplicates(gallery: ImageRepository, tmp_path: Path) -> None:
    kept = gallery.save(make_image(owner="anna"))
    assert take_zip(gallery, exported(gallery, tmp_path), owner="berta") == ImportResult(1, 0)
    anna, berta = gallery.store.search(Query(sort="oldest"))
    assert (anna, berta.owner) == (kept, "berta")
    assert anna.filename != berta.filename


def test_numbers_that_are_taken_are_given_anew_and_children_follow(
    gallery: ImageRepository, other: ImageRepository, tmp_path: Path
) -> None:
    other.save(make_image(seed=99))
    parent = gallery.save(make_image(seed=1))
    gallery.save(make_image(seed=2, parent_id=parent.id))
    gallery.save(make_image(seed=3, parent_id=1234))
    assert take_zip(other, exported(gallery, tmp_path)).added == 3
    by_seed = {image.request.seed: image for image in other.store.recent(None)}
    assert by_seed[2].parent_id == by_seed[1].id == 2
    assert by_seed[3].parent_id is None


def test_a_folder_of_strangers_pictures(gallery: ImageRepository, tmp_path: Path) -> None:
    home = tmp_path / "from"
    (home / "deep").mkdir(parents=True)
    chunks = PngInfo()
    chunks.add_text("parameters", A1111)
    Image.new("RGB", (64, 64), "red").save(home / "a1111.png", pnginfo=chunks)
    Image.new("RGB", (101, 64), "blue").save(home / "deep" / "photo.JPG")
    (home / "own.webp").write_bytes(embed(make_image(image_format="webp")))
    (home / "wrong-suffix.png").write_bytes(embed(make_image(seed=8, image_format="jpeg")))
    (home / "notes.txt").write_text("not a picture")
    (home / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    (home / "link.png").symlink_to("/etc/passwd")
    taken = take_folder(gallery, home, owner="anna")
    assert (taken.added, taken.duplicates) == (4, 0)
    assert len(taken.refused) == 1
    assert "broken.png" in taken.refused[0]
    images = gallery.store.search(Query(owner="anna"))
    found = {image.request.prompt: image for image in images}
    assert found["a lighthouse, (storm:1.3)"].request.model_key == "dreamshaper"
    assert found["(no prompt)"].request.width is None
    assert found["(no prompt)"].filename.endswith(".jpg")
    assert any("photo.JPG" in note for note in found["(no prompt)"].notes)
    ours = [image for image in images if image.request.prompt == make_image().request.prompt]
    assert sorted(Path(image.filename).suffix for image in ours) == [".jpg", ".webp"]
    assert gallery.reconcile() == ReconcileResult()


def test_an_unpacked_export_is_imported_like_the_zip(
    gallery: ImageRepository, other: ImageRepository, tmp_path: Path
) -> None:
    gallery.save(make_image(favourite=True))
    with zipfile.ZipFile(exported(gallery, tmp_path)) as archive:
        archive.extractall(tmp_path / "unpacked")
    assert take_folder(other, tmp_path / "unpacked") == ImportResult(1, 0)
    assert rows(other) == rows(gallery)


@pytest.mark.parametrize("name", ["../x.png", "/x.png", "a/../../x.png", "a\\..\\x.png", "C:x.png"])
def test_names_that_leave_the_folder_are_refused(
    gallery: ImageRepository, tmp_path: Path, name: str
) -> None:
    taken = take_zip(gallery, zipped(tmp_path, {name: embed(make_image())}))
    assert taken.added == 0
    assert "not allowed" in taken.refused[0]
    assert rows(gallery) == []


def test_links_in_a_zip_are_refused(gallery: ImageRepository, tmp_path: Path) -> None:
    path = tmp_path / "in.zip"
    with zipfile.ZipFile(path, "w") as archive:
        entry = zipfile.ZipInfo("x.png")
        entry.external_attr = 0o120777 << 16
        archive.writestr(entry, "/etc/passwd")
    assert len(take_zip(gallery, path).refused) == 1


def test_a_zip_bomb_is_refused_before_it_is_unpacked(
    gallery: ImageRepository, tmp_path: Path
) -> None:
    path = tmp_path / "in.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            archive.writestr(f"{number}.png", bytes(20_000_000))
    with pytest.raises(StorageError, match="no pictures"):
        take_zip(gallery, path)


def test_a_picture_bomb_is_refused_before_it_is_decoded(
    gallery: ImageRepository, tmp_path: Path
) -> None:
    content = bytearray(embed(make_image()))
    header = struct.pack(">II", 9000, 9000)
    content[16:24] = header
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    taken = take_zip(gallery, zipped(tmp_path, {"x.png": bytes(content)}))
    assert "9000 × 9000 pixels are too many" in taken.refused[0]
    assert list(gallery.folder.images()) == []


def test_a_too_large_file_is_refused(
    gallery: ImageRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("canvas.history.import_zip.MAX_FILE_BYTES", 100)
    home = tmp_path / "from"
    home.mkdir()
    (home / "x.png").write_bytes(embed(make_image()))
    for taken in (
        take_folder(gallery, home),
        take_zip(gallery, zipped(tmp_path, {"x.png": embed(make_image())})),
    ):
        assert taken.added == 0
        assert "larger than" in taken.refused[0]


def test_a_damaged_entry_is_refused_and_the_others_come(
    gallery: ImageRepository, tmp_path: Path
) -> None:
    path = zipped(tmp_path, {"a.png": embed(make_image()), "b.png": embed(make_image(seed=8))})
    content = bytearray(path.read_bytes())
    content[200] ^= 0xFF
    path.write_bytes(bytes(content))
    taken = take_zip(gallery, path)
    assert taken.added == 1
    assert "a.png: cannot be unpacked" in taken.refused[0]


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04broken"])
def test_what_is_no_zip_is_said(gallery: ImageRepository, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(content)
    with pytest.raises(StorageError, match=r"x\.zip is no ZIP"):
        take_zip(gallery, path)


def test_a_folder_that_is_not_there_is_said(gallery: ImageRepository, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="There is no folder"):
        take_folder(gallery, tmp_path / "nowhere")


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[]",
        b"\xff\xff",
        b'{"filename": "../../x.png"}',
        b'{"filename": 5}',
        b"[" * 100_000,
        b'{"filename": "x.png", "id": -1, "owner": "anna", "filepath": "/etc/x.png"}',
        b'{"filename": "x.png", "id": 99999999999999999999999, "generation_time": 1e999}',
        b'{"filename": "x.png", "model_key": "\\ud800", "notes": ["\\ud800"], "task": "\\ud800"}',
    ],
)
def test_crafted_lines_do_no_harm(gallery: ImageRepository, tmp_path: Path, line: bytes) -> None:
    picture = embed(make_image())
    path = zipped(tmp_path, {"pictures/x.png": picture, "metadata.jsonl": line + b"\n{}\n"})
    assert take_zip(gallery, path) == ImportResult(1, 0)
    (image,) = gallery.store.recent("local")
    assert gallery.folder.path_of(image).read_bytes() == picture
    assert gallery.folder.path_of(image).is_relative_to(gallery.folder.root)
    assert image.filename != "x.png"


FIELDS = ["prompt", "style", "width", "seed", "id", "parent_id", "notes", "created_at", "task",
          "generation_time", "file_size", "model_key", "enhanced_prompt", "image_format",
          "negative_prompt", "favourite", "device", "filename"]  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(values=st.dictionaries(st.sampled_from(FIELDS), JUNK))
def test_any_record_can_be_stored_and_exported(store: Database, values: dict[str, Any]) -> None:
    image = replace(image_from_dict(json.loads(json.dumps(values))), id=None)
    kept = store.record(replace(image, filename="x.png", filepath="x.png"))
    assert kept.id is not None
    assert store.image(kept.id) == kept
    json.dumps(kept.settings(), allow_nan=False)
