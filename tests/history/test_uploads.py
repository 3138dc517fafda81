from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from PIL import Image

from canvas.errors import NotFound, StorageError
from canvas.history.database import Database
from canvas.history.pending_jobs import PendingJob, PendingJobStore
from canvas.history.uploads import FILENAME_PATTERN, Uploads, is_upload_of, referenced_uploads
from canvas.request import GenerationRequest

from .conftest import make_image


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


def test_the_folder_is_made(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path / "new" / "inputs")
    assert uploads.cleanup(()) == 0
    assert uploads.add(Image.new("RGB", (16, 16))) in uploads


def test_an_unwritable_folder_raises(plain_user: Path) -> None:
    plain_user.chmod(0o500)
    with pytest.raises(StorageError, match="cannot be written"):
        Uploads(plain_user / "inputs").add(Image.new("RGB", (16, 16)))


def test_cleanup_deletes_old_files_that_nothing_uses(uploads: Uploads) -> None:
    names = [uploads.add(Image.new("RGB", (16, 16), colour)) for colour in ("red", "green", "blue", "white")]
    _, used, *unused = names
    for name in (used, *unused):
        os.utime(uploads.root / name, (0, 0))
    assert uploads.cleanup({used}) == 2
    assert [name in uploads for name in names] == [True, True, False, False]


def test_an_upload_that_is_added_again_is_kept(uploads: Uploads) -> None:
    image = Image.new("RGB", (16, 16))
    os.utime(uploads.root / uploads.add(image), (0, 0))
    uploads.add(image)
    assert uploads.cleanup(()) == 0


def test_uploads_of_images_and_jobs_are_referenced(database: Database) -> None:
    names = [f"{number:064x}.png" for number in range(5)]
    database.save_image(make_image(owner="anna", task="inpaint", image=None, mask_image=names[0]))
    control = GenerationRequest("a fox", control_images=({"image": names[1], "model": "x"},))
    database.save_image(replace(make_image(owner="anna"), request=control))
    waiting = GenerationRequest("a fox", image=names[2], reference_images=({"image": names[3]},))
    PendingJobStore(database).add(PendingJob("1", "anna", waiting, datetime.now(UTC)))
    assert referenced_uploads(database) == set(names[:4])
    assert is_upload_of(names[1], "anna", database)
    assert not is_upload_of(names[1], "berta", database)
    assert not is_upload_of(names[4], "anna", database)
    assert not is_upload_of("%", "anna", database)
