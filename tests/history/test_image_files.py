from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from canvas.errors import NotFound, StorageError
from canvas.history.image_files import ImageStorage

from .conftest import make_image


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*") if path.is_file())


@pytest.mark.parametrize(("image_format", "suffix"), [("png", "png"), ("jpeg", "jpg"), ("webp", "webp")])
def test_save_writes_into_the_folder_of_the_day(storage: ImageStorage, image_format: str, suffix: str) -> None:
    saved = storage.save(make_image(image_format=image_format))
    assert re.fullmatch(rf"[0-9a-f]{{32}}\.{suffix}", saved.filename)
    assert saved.filepath == f"outputs/2026-05-04/{saved.filename}"
    assert saved.image is None
    assert len(storage.thumbnails()) == 1
    path = storage.path_of(saved)
    assert path == storage.root / "2026-05-04" / saved.filename
    assert path.stat().st_size == saved.file_size
    with Image.open(path) as opened:
        assert (opened.format, opened.size) == (image_format.upper(), (64, 72))


def test_the_day_is_in_utc(storage: ImageStorage) -> None:
    late = datetime(2026, 5, 4, 23, 0, tzinfo=timezone(timedelta(hours=-5)))
    assert storage.save(make_image(created_at=late)).filepath.startswith("outputs/2026-05-05/")


def test_file_names_are_unique(storage: ImageStorage) -> None:
    image = make_image()
    assert len({storage.save(image).filename for _ in range(20)}) == 20


def test_png_is_lossless(storage: ImageStorage) -> None:
    image = make_image()
    assert image.image is not None
    with Image.open(storage.path_of(storage.save(image))) as opened:
        assert opened.tobytes() == image.image.tobytes()


def test_the_thumbnail_is_small_and_made_once(storage: ImageStorage) -> None:
    saved = storage.save(make_image(image=Image.new("RGB", (1024, 512), "red")))
    thumbnail = storage.thumbnail(saved)
    with Image.open(thumbnail) as opened:
        assert (opened.format, opened.size) == ("WEBP", (320, 160))
    thumbnail.write_bytes(b"made")
    assert storage.thumbnail(saved).read_bytes() == b"made"
    thumbnail.unlink()
    with Image.open(storage.thumbnail(saved)) as opened:
        assert opened.size == (320, 160)


def test_thumbnail_of_a_missing_file_raises(storage: ImageStorage) -> None:
    image = make_image(filename="gone.png", filepath="outputs/gone.png")
    with pytest.raises(NotFound, match=r"gone\.png"):
        storage.thumbnail(image)


def test_a_failed_write_leaves_no_files(storage: ImageStorage) -> None:
    storage.root.mkdir()
    (storage.root / "2026-05-04").write_text("in the way")
    with pytest.raises(StorageError, match="--data-dir"):
        storage.save(make_image())
    assert files(storage.root) == []


def test_an_unwritable_folder_raises(plain_user: Path) -> None:
    plain_user.chmod(0o500)
    with pytest.raises(StorageError, match="cannot be written"):
        ImageStorage(plain_user / "outputs").save(make_image())


@pytest.mark.parametrize("filepath", ["fox.png", "outputs/fox.png", "{home}/outputs/fox.png", "", "/moved/fox.png"])
def test_paths_of_old_rows_are_resolved(storage: ImageStorage, tmp_path: Path, filepath: str) -> None:
    storage.root.mkdir()
    (storage.root / "fox.png").write_bytes(b"old")
    image = make_image(filename="fox.png", filepath=filepath.format(home=tmp_path))
    assert storage.path_of(image).read_bytes() == b"old"


@pytest.mark.parametrize(
    "filepath", ["../secret.png", "/etc/passwd", "outputs/../../secret.png", "a\0b.png", "ai_images.db"]
)
def test_rows_cannot_name_files_outside_the_data_folder(storage: ImageStorage, tmp_path: Path, filepath: str) -> None:
    (tmp_path.parent / "secret.png").write_text("secret")
    (tmp_path / "ai_images.db").write_text("secret")
    with pytest.raises(NotFound):
        storage.path_of(make_image(filename="x.db", filepath=filepath))
    with pytest.raises(NotFound):
        storage.thumbnail(make_image(filename=filepath, filepath=filepath))


def test_links_cannot_lead_outside_the_data_folder(storage: ImageStorage, tmp_path: Path) -> None:
    outside = tmp_path.parent / "outside.png"
    outside.write_text("secret")
    storage.root.mkdir()
    (storage.root / "link.png").symlink_to(outside)
    with pytest.raises(NotFound):
        storage.path_of(make_image(filename="link.db", filepath="outputs/link.png"))


@given(st.text(max_size=50), st.text(max_size=50))
def test_any_path_stays_inside_the_data_folder(filepath: str, filename: str) -> None:
    storage = ImageStorage(Path("/missing/data/outputs"))
    try:
        path = storage.path_of(replace(make_image(), filepath=filepath, filename=filename))
    except NotFound:
        return
    assert path.is_relative_to("/missing/data")


def test_image_files_and_partial_files_are_listed(storage: ImageStorage) -> None:
    saved = storage.save(make_image(created_at=datetime(2026, 1, 1, tzinfo=UTC)))
    part = storage.root / "2026-01-01" / ".x.png.part"
    part.write_bytes(b"half")
    for name in (".hidden.png", "note.txt", "FOX.PNG"):
        (storage.root / name).write_bytes(b"")
    assert sorted(storage.filepaths()) == [saved.filepath, "outputs/FOX.PNG"]
    assert list(storage.partial_files()) == [part]


def test_the_path_of_a_missing_file_is_that_of_its_row(storage: ImageStorage) -> None:
    image = make_image(filename="gone.png", filepath="outputs/2026-01-01/gone.png")
    assert storage.path_of(image) == storage.root / "2026-01-01" / "gone.png"
    assert storage.find(None, "gone.png") is None
    (storage.root).mkdir()
    (storage.root / "gone.png").write_bytes(b"back")
    assert storage.find(None, "gone.png") == storage.root / "gone.png"


def test_thumbnails_of_jpegs_are_of_full_size(storage: ImageStorage) -> None:
    saved = storage.save(make_image(image=Image.new("RGB", (1024, 1024), "red"), image_format="jpeg"))
    storage.clear_thumbnails()
    with Image.open(storage.thumbnail(saved)) as opened:
        assert opened.size == (320, 320)


@pytest.mark.parametrize(("transparent", "mode"), [(True, "RGBA"), (False, "RGB")])
def test_thumbnails_keep_the_transparency_of_palettes(storage: ImageStorage, transparent: bool, mode: str) -> None:
    image = Image.linear_gradient("L").convert("P")
    options = {"transparency": 1} if transparent else {}
    (storage.root).mkdir()
    image.save(storage.root / "fox.png", **options)
    with Image.open(storage.thumbnail(make_image(filename="fox.png", filepath="outputs/fox.png"))) as opened:
        assert opened.mode == mode


def test_files_of_one_name_in_two_folders_have_a_thumbnail_each(storage: ImageStorage) -> None:
    found = []
    for day, colour in (("2026-01-01", "red"), ("2026-01-02", "blue")):
        (storage.root / day).mkdir(parents=True)
        Image.new("RGB", (8, 8), colour).save(storage.root / day / "fox.png")
        found.append(storage.thumbnail(make_image(filename="fox.png", filepath=f"outputs/{day}/fox.png")))
    assert found[0] != found[1]
    assert storage.clear_thumbnails() > 0
    assert storage.thumbnails() == []
    assert storage.clear_thumbnails() == 0


def test_delete_thumbnail_of_an_image_with_and_without_one(storage: ImageStorage) -> None:
    path = storage.path_of(storage.save(make_image()))
    for _ in range(2):
        storage.delete_thumbnail(path)
        assert storage.thumbnails() == []
    thumbnail = storage.thumbnail(make_image(filename=path.name, filepath=f"outputs/2026-05-04/{path.name}"))
    thumbnail.unlink()
    thumbnail.mkdir()
    with pytest.raises(StorageError, match="cannot be deleted"):
        storage.delete_thumbnail(path)
