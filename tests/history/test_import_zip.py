from __future__ import annotations

import io
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
from canvas.history.import_zip import ImportResult, import_files, import_folder, import_zip
from canvas.history.metadata import embed
from canvas.history.queries import Query
from canvas.history.rows import image_from_dict

from .conftest import make_image
from .test_third_party_metadata import A1111, JUNK


@pytest.fixture
def other(tmp_path: Path) -> Iterator[ImageRepository]:
    """A second, empty data folder."""
    database = Database(tmp_path / "other" / "ai_images.db")
    yield ImageRepository(database, ImageStorage(tmp_path / "other" / "outputs"))
    database.close()


def zipped(tmp_path: Path, files: dict[str, bytes]) -> Path:
    path = tmp_path / "in.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def exported(repository: ImageRepository, tmp_path: Path, **options: Any) -> Path:
    path = tmp_path / "export.zip"
    chunks = export_zip(repository.database, repository.storage, Query(), **options)
    path.write_bytes(b"".join(chunks))
    return path


def zip_import(repository: ImageRepository, path: Path, owner: str = "local") -> ImportResult:
    return import_zip(repository.database, repository.storage, path, owner)


def folder_import(repository: ImageRepository, path: Path, owner: str = "local") -> ImportResult:
    return import_folder(repository.database, repository.storage, path, owner)


def rows(repository: ImageRepository) -> list[dict[str, Any]]:
    return repository.database.rows("SELECT * FROM generated_images ORDER BY id")


def test_an_export_imports_to_the_same_rows_and_files(
    repository: ImageRepository, other: ImageRepository, tmp_path: Path
) -> None:
    first = repository.save(make_image(favourite=True, prompt="=a fox, 狐"))
    repository.trash.delete([repository.save(make_image()).id or 0], None)  # a gap in the numbers
    for image_format in ("png", "jpeg", "webp"):
        child = make_image(image_format=image_format, parent_id=first.id, notes=("a", "b"))
        repository.save(replace(child, created_at=datetime(2025, 12, 31, 23, 59, 59, 5, UTC)))
    result = zip_import(other, exported(repository, tmp_path))
    assert result == ImportResult(4, 0)
    assert rows(other) == rows(repository)
    for image in repository.database.recent(None):
        original = repository.storage.path_of(image).read_bytes()
        assert other.storage.path_of(image).read_bytes() == original
        assert other.storage.thumbnail(image).is_file()
    assert other.reconcile() == ReconcileResult()


def test_duplicates_are_not_imported(repository: ImageRepository, tmp_path: Path) -> None:
    saved = [repository.save(make_image(seed=seed)) for seed in range(3)]
    before = rows(repository)
    assert zip_import(repository, exported(repository, tmp_path)) == ImportResult(0, 3)
    converted = exported(repository, tmp_path, image_format="jpeg")
    assert zip_import(repository, converted) == ImportResult(0, 3)
    renamed = repository.storage.path_of(saved[0]).read_bytes()
    path = zipped(tmp_path, {"a.png": renamed, "sub/b.png": renamed})
    assert zip_import(repository, path) == ImportResult(0, 2)
    assert rows(repository) == before


def test_files_and_zips_are_counted_together(
    repository: ImageRepository, other: ImageRepository, tmp_path: Path
) -> None:
    saved = [repository.save(make_image(seed=seed)) for seed in range(3)]
    picture = repository.storage.path_of(saved[0])
    text = tmp_path / "notes.zip"
    text.write_text("no archive")
    files = [picture, exported(repository, tmp_path), text, picture]
    result = import_files(other.database, other.storage, files, "local")
    assert (result.added, result.duplicates, len(result.errors)) == (3, 2, 1)
    assert len(rows(other)) == 3


def test_images_of_other_owners_are_not_duplicates(repository: ImageRepository, tmp_path: Path) -> None:
    saved = repository.save(make_image(owner="anna"))
    assert zip_import(repository, exported(repository, tmp_path), owner="berta") == ImportResult(1, 0)
    anna, berta = repository.database.search(Query(sort="oldest"))
    assert (anna, berta.owner) == (saved, "berta")
    assert anna.filename != berta.filename


def test_used_ids_are_replaced_and_parents_follow(
    repository: ImageRepository, other: ImageRepository, tmp_path: Path
) -> None:
    other.save(make_image(seed=99))
    parent = repository.save(make_image(seed=1))
    repository.save(make_image(seed=2, parent_id=parent.id))
    repository.save(make_image(seed=3, parent_id=1234))
    assert zip_import(other, exported(repository, tmp_path)).added == 3
    by_seed = {image.request.seed: image for image in other.database.recent(None)}
    assert by_seed[2].parent_id == by_seed[1].id == 2
    assert by_seed[3].parent_id is None


def test_import_folder_with_images_of_other_programs(repository: ImageRepository, tmp_path: Path) -> None:
    home = tmp_path / "from"
    (home / "deep").mkdir(parents=True)
    chunks = PngInfo()
    chunks.add_text("parameters", A1111)
    Image.new("RGB", (64, 64), "red").save(home / "a1111.png", pnginfo=chunks)
    Image.new("RGB", (101, 64), "blue").save(home / "deep" / "photo.JPG")
    (home / "own.webp").write_bytes(embed(make_image(image_format="webp")))
    (home / "wrong-suffix.png").write_bytes(embed(make_image(seed=8, image_format="jpeg")))
    (home / "notes.txt").write_text("not an image")
    (home / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    (home / "link.png").symlink_to("/etc/passwd")
    result = folder_import(repository, home, owner="anna")
    assert (result.added, result.duplicates) == (4, 0)
    assert len(result.errors) == 1
    assert "broken.png" in result.errors[0]
    images = repository.database.search(Query(owner="anna"))
    found = {image.request.prompt: image for image in images}
    assert found["a lighthouse, storm"].request.model_key == "dreamshaper"
    assert found["(no prompt)"].request.width is None
    assert found["(no prompt)"].filename.endswith(".jpg")
    assert any("photo.JPG" in note for note in found["(no prompt)"].notes)
    ours = [image for image in images if image.request.prompt == make_image().request.prompt]
    assert sorted(Path(image.filename).suffix for image in ours) == [".jpg", ".webp"]
    assert repository.reconcile() == ReconcileResult()


def test_an_unpacked_export_imports_like_the_zip(
    repository: ImageRepository, other: ImageRepository, tmp_path: Path
) -> None:
    repository.save(make_image(favourite=True))
    with zipfile.ZipFile(exported(repository, tmp_path)) as archive:
        archive.extractall(tmp_path / "unpacked")
    assert folder_import(other, tmp_path / "unpacked") == ImportResult(1, 0)
    assert rows(other) == rows(repository)


def png(color: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), color).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_zip_of_macos_or_old_windows_programs_is_imported(repository: ImageRepository, tmp_path: Path) -> None:
    path = zipped(
        tmp_path,
        {
            "a.png": png((1, 2, 3)),
            "__MACOSX/._a.png": b"\0\5\x16\7attributes",
            "sub/._b.png": b"\0\5\x16\7attributes",
            "__MACOSX/sub/b.png": b"\0\5\x16\7attributes",
            "sub\\b.png": png((4, 5, 6)),
            "sub/b.png": png((7, 8, 9)),
            ".DS_Store": b"junk",
        },
    )
    assert zip_import(repository, path) == ImportResult(3, 0)
    assert zip_import(repository, path) == ImportResult(0, 3)


def test_files_with_attributes_in_a_folder_are_passed_over(repository: ImageRepository, tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    (folder / "a.png").write_bytes(png((1, 2, 3)))
    (folder / "._a.png").write_bytes(b"\0\5\x16\7attributes")
    assert folder_import(repository, folder) == ImportResult(1, 0)


@pytest.mark.parametrize("flag", [0, 0x800])
@pytest.mark.parametrize("name", ["fée.png", "海.png", "plain.png"])
def test_names_are_read_in_utf8_with_and_without_the_flag(
    repository: ImageRepository, tmp_path: Path, name: str, flag: int
) -> None:
    path = zipped(tmp_path, {name: png((1, 2, 3)), "broken " + name: b"no image"})
    content = path.read_bytes()
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # local headers, central directory
        start = content.find(signature)
        while start >= 0:
            place = start + offset
            content = content[:place] + struct.pack("<H", flag) + content[place + 2 :]
            start = content.find(signature, start + 4)
    path.write_bytes(content)
    result = zip_import(repository, path)
    assert result.added == 1
    assert len(result.errors) == 1
    assert f"broken {name} cannot be read (not a PNG, JPEG or WebP)" in result.errors[0]
    assert name in repository.database.recent("local")[0].notes[0]


def test_an_export_that_was_packed_again_keeps_its_settings(
    repository: ImageRepository, other: ImageRepository, tmp_path: Path
) -> None:
    repository.save(make_image())
    with zipfile.ZipFile(exported(repository, tmp_path)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    for number, rename in enumerate((lambda name: f"my images/{name}", lambda name: name.replace("/", "\\"))):
        path = zipped(tmp_path, {rename(name): content for name, content in files.items()})
        assert zip_import(other, path) == ImportResult(1 - number, number)
    assert rows(other) == rows(repository)


@pytest.mark.parametrize("name", ["../x.png", "/x.png", "a/../../x.png", "a\\..\\x.png", "C:x.png"])
def test_unsafe_names_are_refused(repository: ImageRepository, tmp_path: Path, name: str) -> None:
    result = zip_import(repository, zipped(tmp_path, {name: embed(make_image())}))
    assert result.added == 0
    assert "not allowed" in result.errors[0]
    assert rows(repository) == []


def test_links_in_a_zip_are_refused(repository: ImageRepository, tmp_path: Path) -> None:
    path = tmp_path / "in.zip"
    with zipfile.ZipFile(path, "w") as archive:
        entry = zipfile.ZipInfo("x.png")
        entry.external_attr = 0o120777 << 16
        archive.writestr(entry, "/etc/passwd")
    (error,) = zip_import(repository, path).errors
    assert "not allowed" in error


def test_a_zip_bomb_is_refused_before_it_is_unpacked(repository: ImageRepository, tmp_path: Path) -> None:
    path = tmp_path / "in.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            archive.writestr(f"{number}.png", bytes(20_000_000))
    with pytest.raises(StorageError, match="does not contain images"):
        zip_import(repository, path)


def test_a_decompression_bomb_is_refused_before_it_is_decoded(repository: ImageRepository, tmp_path: Path) -> None:
    content = bytearray(embed(make_image()))
    header = struct.pack(">II", 9000, 8000)
    content[16:24] = header
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    result = zip_import(repository, zipped(tmp_path, {"x.png": bytes(content)}))
    assert "got 9000 × 8000" in result.errors[0]
    assert list(repository.storage.filepaths()) == []


def test_large_files_are_refused(repository: ImageRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("canvas.history.import_zip.MAX_FILE_BYTES", 100)
    home = tmp_path / "from"
    home.mkdir()
    (home / "x.png").write_bytes(embed(make_image()))
    for result in (
        folder_import(repository, home),
        zip_import(repository, zipped(tmp_path, {"x.png": embed(make_image())})),
    ):
        assert result.added == 0
        assert "at most 0 MB" in result.errors[0]


def test_a_damaged_entry_is_refused_and_the_others_imported(repository: ImageRepository, tmp_path: Path) -> None:
    path = zipped(tmp_path, {"a.png": embed(make_image()), "b.png": embed(make_image(seed=8))})
    content = bytearray(path.read_bytes())
    content[200] ^= 0xFF
    path.write_bytes(bytes(content))
    result = zip_import(repository, path)
    assert result.added == 1
    assert "a.png: cannot be unpacked" in result.errors[0]


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04broken"])
def test_import_zip_rejects_other_files(repository: ImageRepository, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(content)
    with pytest.raises(StorageError, match=r"x\.zip is not a ZIP"):
        zip_import(repository, path)


def test_import_folder_rejects_a_missing_folder(repository: ImageRepository, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="There is no folder"):
        folder_import(repository, tmp_path / "missing")


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
def test_malicious_metadata_lines_are_ignored(repository: ImageRepository, tmp_path: Path, line: bytes) -> None:
    content = embed(make_image())
    path = zipped(tmp_path, {"pictures/x.png": content, "metadata.jsonl": line + b"\n{}\n"})
    assert zip_import(repository, path) == ImportResult(1, 0)
    (image,) = repository.database.recent("local")
    assert repository.storage.path_of(image).read_bytes() == content
    assert repository.storage.path_of(image).is_relative_to(repository.storage.root)
    assert image.filename != "x.png"


FIELDS = ["prompt", "style", "width", "seed", "id", "parent_id", "notes", "created_at", "task",
          "generation_time", "file_size", "model_key", "enhanced_prompt", "image_format",
          "negative_prompt", "favourite", "device", "filename"]  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.dictionaries(st.sampled_from(FIELDS), JUNK))
def test_any_record_can_be_saved_and_exported(database: Database, values: dict[str, Any]) -> None:
    image = replace(image_from_dict(json.loads(json.dumps(values))), id=None)
    saved = database.save_image(replace(image, filename="x.png", filepath="x.png"))
    assert saved.id is not None
    assert database.image(saved.id) == saved
    json.dumps(saved.settings(), allow_nan=False)


@pytest.mark.parametrize(("name", "limit"), [("MAX_FILE_BYTES", len(embed(make_image()))), ("MAX_PIXELS", 64 * 72)])
def test_images_up_to_the_limits_are_imported(
    repository: ImageRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, limit: int
) -> None:
    home = tmp_path / "from"
    home.mkdir()
    (home / "x.png").write_bytes(embed(make_image()))
    path = zipped(tmp_path, {"x.png": embed(make_image())})
    monkeypatch.setattr(f"canvas.history.import_zip.{name}", limit - 1)
    for result in (folder_import(repository, home), zip_import(repository, path)):
        assert (result.added, len(result.errors)) == (0, 1)
    monkeypatch.setattr(f"canvas.history.import_zip.{name}", limit)
    assert folder_import(repository, home, "ann") == zip_import(repository, path, "ben") == ImportResult(1, 0)


def test_a_zip_of_too_many_files_is_refused(
    repository: ImageRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("canvas.history.import_zip.MAX_ENTRIES", 2)
    files = {f"{number}.png": png((number, 0, 0)) for number in range(3)}
    with pytest.raises(StorageError, match="contains more than 2 files"):
        zip_import(repository, zipped(tmp_path, files))
    del files["2.png"]
    assert zip_import(repository, zipped(tmp_path, files)).added == 2


@pytest.mark.parametrize(("broken", "last"), [(2, "1.png"), (5, "… and 3 more.")])
def test_many_errors_are_counted(
    repository: ImageRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: int, last: str
) -> None:
    monkeypatch.setattr("canvas.history.import_zip.MAX_ERRORS", 2)
    errors = zip_import(repository, zipped(tmp_path, {f"{number}.png": b"x" for number in range(broken)})).errors
    assert len(errors) == min(broken, 3)
    assert last in errors[-1]


def test_other_files_are_errors_and_the_next_are_imported(repository: ImageRepository, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / "a.png").write_bytes(png((1, 2, 3)))
    (tmp_path / "metadata.jsonl").write_text('{"filename": "a.png", "prompt": "other"}')
    paths = [tmp_path / "notes.txt", tmp_path / "a.png"]
    result = import_files(repository.database, repository.storage, paths, "local")
    assert result == ImportResult(1, 0, ("notes.txt: is neither an image nor a ZIP.",))
    assert repository.database.recent(None)[0].request.prompt == "(no prompt)"


def test_links_to_settings_are_not_followed(repository: ImageRepository, tmp_path: Path) -> None:
    home = tmp_path / "from"
    (home / "pictures").mkdir(parents=True)
    (home / "pictures" / "a.png").write_bytes(png((1, 2, 3)))
    (tmp_path / "list").write_text('{"filename": "a.png", "prompt": "secret"}')
    (home / "metadata.jsonl").symlink_to(tmp_path / "list")
    assert folder_import(repository, home) == ImportResult(1, 0)
    assert repository.database.recent(None)[0].request.prompt == "(no prompt)"


def test_a_file_cannot_choose_its_number(repository: ImageRepository, tmp_path: Path) -> None:
    chunks = PngInfo()
    chunks.add_text("magic_canvas", '{"prompt": "a fox", "id": 77, "favourite": true}')
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "png", pnginfo=chunks)
    assert zip_import(repository, zipped(tmp_path, {"a.png": file.getvalue()})).added == 1
    assert [image.id for image in repository.database.recent(None)] == [1]


def test_an_image_whose_file_is_missing_is_imported_again(repository: ImageRepository, tmp_path: Path) -> None:
    saved = repository.save(make_image())
    path = exported(repository, tmp_path)
    repository.storage.path_of(saved).unlink()
    assert zip_import(repository, path) == ImportResult(1, 0)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((64, 72), (64, 72)),
        ((4096, 64), (4096, 64)),
        ((4104, 64), (None, None)),
        ((56, 64), (None, None)),
        ((68, 64), (None, None)),
    ],
)
def test_images_without_settings_have_the_size_of_their_pixels(
    repository: ImageRepository, tmp_path: Path, size: tuple[int, int], expected: tuple[int | None, int | None]
) -> None:
    file = io.BytesIO()
    Image.new("RGB", size).save(file, "png")
    zip_import(repository, zipped(tmp_path, {"a.png": file.getvalue()}))
    request = repository.database.recent(None)[0].request
    assert (request.width, request.height) == expected
