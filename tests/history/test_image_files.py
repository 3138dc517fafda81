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
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*.*") if path.is_file()
    )


@pytest.mark.parametrize(
    ("image_format", "suffix"), [("png", "png"), ("jpeg", "jpg"), ("webp", "webp")]
)
def test_a_picture_lies_in_the_folder_of_its_day(
    folder: ImageStorage, image_format: str, suffix: str
) -> None:
    saved = folder.save(make_image(image_format=image_format))
    assert re.fullmatch(rf"[0-9a-f]{{32}}\.{suffix}", saved.filename)
    assert saved.filepath == f"outputs/2026-05-04/{saved.filename}"
    assert saved.image is None
    path = folder.path_of(saved)
    assert path == folder.root / "2026-05-04" / saved.filename
    assert path.stat().st_size == saved.file_size
    with Image.open(path) as picture:
        assert (picture.format, picture.size) == (image_format.upper(), (64, 72))


def test_the_day_is_the_one_of_utc(folder: ImageStorage) -> None:
    late = datetime(2026, 5, 4, 23, 0, tzinfo=timezone(timedelta(hours=-5)))
    assert folder.save(make_image(created_at=late)).filepath.startswith("outputs/2026-05-05/")


def test_names_are_never_the_same(folder: ImageStorage) -> None:
    image = make_image()
    assert len({folder.save(image).filename for _ in range(20)}) == 20


def test_png_keeps_the_very_pixels(folder: ImageStorage) -> None:
    image = make_image()
    assert image.image is not None
    with Image.open(folder.path_of(folder.save(image))) as picture:
        assert picture.tobytes() == image.image.tobytes()


def test_the_thumbnail_is_small_and_made_once(folder: ImageStorage) -> None:
    saved = folder.save(make_image(image=Image.new("RGB", (1024, 512), "red")))
    small = folder.thumbnail(saved)
    with Image.open(small) as picture:
        assert (picture.format, picture.size) == ("WEBP", (320, 160))
    small.write_bytes(b"made")
    assert folder.thumbnail(saved).read_bytes() == b"made"
    small.unlink()
    with Image.open(folder.thumbnail(saved)) as picture:
        assert picture.size == (320, 160)


def test_a_lost_picture_has_no_thumbnail(folder: ImageStorage) -> None:
    image = make_image(filename="gone.png", filepath="outputs/gone.png")
    with pytest.raises(NotFound, match=r"gone\.png"):
        folder.thumbnail(image)


def test_delete_leaves_nothing(folder: ImageStorage) -> None:
    saved = folder.save(make_image())
    folder.delete(saved)
    folder.delete(saved)
    assert files(folder.root) == []


def test_a_failed_write_leaves_nothing(folder: ImageStorage) -> None:
    folder.root.mkdir()
    (folder.root / "2026-05-04").write_text("in the way")
    with pytest.raises(StorageError, match="--data-dir"):
        folder.save(make_image())
    assert files(folder.root) == []


def test_an_unwritable_folder_is_said(plain_user: Path) -> None:
    plain_user.chmod(0o500)
    with pytest.raises(StorageError, match="cannot be written"):
        ImageStorage(plain_user / "outputs").save(make_image())


@pytest.mark.parametrize(
    "filepath", ["fox.png", "outputs/fox.png", "{home}/outputs/fox.png", "", "/moved/fox.png"]
)
def test_old_rows_find_their_file(folder: ImageStorage, tmp_path: Path, filepath: str) -> None:
    folder.root.mkdir()
    (folder.root / "fox.png").write_bytes(b"old")
    image = make_image(filename="fox.png", filepath=filepath.format(home=tmp_path))
    assert folder.path_of(image).read_bytes() == b"old"


@pytest.mark.parametrize(
    "filepath",
    ["../secret.png", "/etc/passwd", "outputs/../../secret.png", "a\0b.png", "ai_images.db"],
)
def test_no_row_reaches_out(folder: ImageStorage, tmp_path: Path, filepath: str) -> None:
    (tmp_path.parent / "secret.png").write_text("secret")
    (tmp_path / "ai_images.db").write_text("secret")
    with pytest.raises(NotFound):
        folder.path_of(make_image(filename="x.db", filepath=filepath))
    with pytest.raises(NotFound):
        folder.thumbnail(make_image(filename=filepath, filepath=filepath))


def test_no_link_reaches_out(folder: ImageStorage, tmp_path: Path) -> None:
    outside = tmp_path.parent / "outside.png"
    outside.write_text("secret")
    folder.root.mkdir()
    (folder.root / "link.png").symlink_to(outside)
    with pytest.raises(NotFound):
        folder.path_of(make_image(filename="link.db", filepath="outputs/link.png"))


@given(st.text(max_size=50), st.text(max_size=50))
def test_any_name_stays_inside(filepath: str, filename: str) -> None:
    folder = ImageStorage(Path("/nowhere/data/outputs"))
    try:
        path = folder.path_of(replace(make_image(), filepath=filepath, filename=filename))
    except NotFound:
        return
    assert path.is_relative_to("/nowhere/data")


def test_pictures_and_part_files_are_told_apart(folder: ImageStorage) -> None:
    saved = folder.save(make_image(created_at=datetime(2026, 1, 1, tzinfo=UTC)))
    part = folder.root / "2026-01-01" / ".x.png.part"
    part.write_bytes(b"half")
    assert list(folder.images()) == [saved.filepath]
    assert list(folder.partial_files()) == [part]
