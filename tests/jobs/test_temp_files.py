from __future__ import annotations

from pathlib import Path

import pytest

from canvas.errors import InvalidInput
from canvas.jobs.inputs import TempFiles


@pytest.fixture
def upload(tmp_path: Path) -> Path:
    path = tmp_path / "upload.png"
    path.write_bytes(b"x")
    return path


def test_a_file_is_found_by_its_owners_only(upload: Path) -> None:
    files = TempFiles()
    files.register(upload, "ann")
    files.register(upload, "bob")
    assert files.find(str(upload), "ann") == files.find(str(upload), "bob") == upload
    with pytest.raises(InvalidInput, match="Upload it again"):
        files.find(str(upload), "eve")


@pytest.mark.parametrize("path", [None, 7, "", b"upload.png", ["upload.png"], "up\0load.png", "\0", "x" * 5000])
def test_anything_else_is_refused(upload: Path, path: object) -> None:
    files = TempFiles()
    files.register(upload, "ann")
    with pytest.raises(InvalidInput, match="Upload it again"):
        files.find(path, "ann")


def test_a_link_in_place_of_the_file_is_refused(upload: Path, tmp_path: Path) -> None:
    files = TempFiles()
    files.register(upload, "ann")
    other = upload.rename(tmp_path / "other.png")
    upload.symlink_to(other)
    with pytest.raises(InvalidInput, match="Upload it again"):
        files.find(str(upload), "ann")


def test_the_last_owner_who_takes_a_file_deletes_it(upload: Path) -> None:
    files = TempFiles()
    files.register(upload, "ann")
    files.register(upload, "bob")
    with files.take(str(upload), "ann") as taken:
        assert taken == upload
    assert upload.exists()
    with files.take(str(upload), "bob"):
        pass
    assert not upload.exists()


def test_a_deleted_file_is_forgotten_and_others_stay(upload: Path, tmp_path: Path) -> None:
    files, deleted = TempFiles(), tmp_path / "deleted.png"
    deleted.write_bytes(b"x")
    for path in (upload, deleted):
        files.register(path, "ann")
    deleted.unlink()
    files.forget_deleted()
    deleted.write_bytes(b"of another owner")
    assert files.find(str(upload), "ann") == upload
    with pytest.raises(InvalidInput, match="Upload it again"):
        files.find(str(deleted), "ann")
