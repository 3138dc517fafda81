from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from canvas.errors import NotFound, StorageError
from canvas.history.uploads import FILENAME_PATTERN, Uploads


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    return Uploads(tmp_path / "inputs")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_images_round_trip(uploads: Uploads, mode: str) -> None:
    image = Image.radial_gradient("L").convert(mode)
    name = uploads.add(image)
    assert FILENAME_PATTERN.fullmatch(name)
    assert name in uploads
    found = uploads.open(name)
    assert (found.mode, found.tobytes()) == (mode, image.tobytes())


def test_equal_images_are_stored_once(uploads: Uploads) -> None:
    red = Image.new("RGB", (16, 16), "red")
    assert uploads.add(red) == uploads.add(red.copy())
    assert uploads.add(Image.new("RGB", (8, 32), "red")) != uploads.add(red)
    assert len(list(uploads.root.iterdir())) == 2


@pytest.mark.parametrize("name", ["../secret.png", "a" * 64 + ".png", "", "nul\0.png"])
def test_open_rejects_other_names(uploads: Uploads, name: str) -> None:
    (uploads.root.parent / "secret.png").write_bytes(b"x")
    assert name not in uploads
    with pytest.raises(NotFound, match="upload it again"):
        uploads.open(name)


def test_a_damaged_file_raises(uploads: Uploads) -> None:
    name = uploads.add(Image.new("RGB", (16, 16)))
    (uploads.root / name).write_bytes(b"nothing")
    with pytest.raises(StorageError, match="upload it again"):
        uploads.open(name)
