from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from canvas.errors import NotFound, StorageError
from canvas.history.uploads import NAME, Uploads


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    return Uploads(tmp_path / "inputs")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_pixels_come_back_under_a_name_made_of_them(uploads: Uploads, mode: str) -> None:
    picture = Image.radial_gradient("L").convert(mode)
    name = uploads.add(picture)
    assert NAME.fullmatch(name)
    assert name in uploads
    found = uploads.open(name)
    assert (found.mode, found.tobytes()) == (mode, picture.tobytes())


def test_the_same_picture_is_kept_once(uploads: Uploads) -> None:
    red = Image.new("RGB", (16, 16), "red")
    assert uploads.add(red) == uploads.add(red.copy())
    assert uploads.add(Image.new("RGB", (8, 32), "red")) != uploads.add(red)
    assert len(list(uploads.root.iterdir())) == 2


@pytest.mark.parametrize("name", ["../secret.png", "a" * 64 + ".png", "", "nul\0.png"])
def test_other_names_open_nothing(uploads: Uploads, name: str) -> None:
    (uploads.root.parent / "secret.png").write_bytes(b"x")
    assert name not in uploads
    with pytest.raises(NotFound, match="hand it in again"):
        uploads.open(name)


def test_a_damaged_file_is_said(uploads: Uploads) -> None:
    name = uploads.add(Image.new("RGB", (16, 16)))
    (uploads.root / name).write_bytes(b"nothing")
    with pytest.raises(StorageError, match="hand it in again"):
        uploads.open(name)
