from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from canvas.errors import NotFound, StorageError
from canvas.history.database import Database
from canvas.history.images import ImageRepository, ReconcileResult, UserGallery
from canvas.history.queries import Query
from tests.resilience.fuzzing import small_png

from .conftest import make_image


def test_save_writes_file_and_row(repository: ImageRepository) -> None:
    saved = repository.save(make_image(owner="anna"))
    assert repository.database.recent("anna") == [saved]
    assert repository.storage.path_of(saved).is_file()
    assert repository.reconcile() == ReconcileResult()


def test_reconcile_adds_a_row_for_a_file_without_one(repository: ImageRepository) -> None:
    saved = repository.storage.save(make_image())
    assert repository.reconcile() == ReconcileResult(added=1)
    assert repository.database.recent(None) == [replace(saved, id=1)]
    assert repository.reconcile() == ReconcileResult()


def test_reconcile_adds_the_row_of_an_interrupted_import(repository: ImageRepository) -> None:
    folder = repository.storage.root / "2026-01-01"
    folder.mkdir(parents=True)
    for name in (f"{7:032x}.png", "holiday.png"):
        (folder / name).write_bytes(small_png(parameters="a fox\nSteps: 5, Seed: 7, Size: 64x64"))
    assert repository.reconcile() == ReconcileResult(added=1), "other files are left alone"
    [found] = repository.database.recent("local")
    assert (found.filename, found.request.prompt) == (f"{7:032x}.png", "a fox")
    assert found.request.num_inference_steps == 5


def test_reconcile_adds_the_row_that_could_not_be_written(repository: ImageRepository, tmp_path: Path) -> None:
    repository.database.close()
    with pytest.raises(StorageError):
        repository.save(make_image())
    repository.database = Database(tmp_path / "ai_images.db")
    assert repository.reconcile().added == 1
    repository.database.close()


def test_save_image_after_reconcile_replaces_the_row(repository: ImageRepository) -> None:
    saved = repository.storage.save(make_image(owner="anna"))
    repository.reconcile()
    repository.database.save_image(saved)
    assert [image.owner for image in repository.database.recent(None)] == ["anna"]


def test_a_missing_file_is_marked_until_it_is_back(repository: ImageRepository) -> None:
    saved = repository.save(make_image())
    path = repository.storage.path_of(saved)
    content = path.read_bytes()
    path.unlink()
    assert repository.reconcile() == ReconcileResult(missing=1)
    assert repository.reconcile() == ReconcileResult()
    assert repository.database.recent(None) == []
    assert repository.database.image(1) == saved
    path.write_bytes(content)
    assert repository.reconcile() == ReconcileResult()
    assert repository.database.recent(None) == [saved]


def test_files_of_old_rows_are_not_missing(repository: ImageRepository) -> None:
    repository.storage.root.mkdir()
    for name in ("only-name.png", "absolute.png"):
        (repository.storage.root / name).write_bytes(b"old")
    repository.database.save_image(make_image(filename="only-name.png", filepath=""))
    repository.database.save_image(make_image(filename="absolute.png", filepath="/moved/absolute.png"))
    assert repository.reconcile() == ReconcileResult()


def test_other_files_are_left_alone(repository: ImageRepository) -> None:
    repository.storage.root.mkdir()
    for name in ("empty.png", "note.txt", "broken.webp"):
        (repository.storage.root / name).write_bytes(b"")
    assert repository.reconcile() == ReconcileResult()
    assert len(list(repository.storage.root.iterdir())) == 3


def test_only_old_partial_files_are_deleted(repository: ImageRepository) -> None:
    repository.storage.root.mkdir()
    old, new = (repository.storage.root / f".{name}.png.part" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    assert repository.reconcile() == ReconcileResult(cleaned=1)
    assert new.is_file()
    assert not old.exists()


def test_a_row_with_only_a_name_is_the_row_of_its_file(repository: ImageRepository) -> None:
    saved = repository.storage.save(make_image())
    name = "only-name.png"
    repository.storage.path_of(saved).rename(repository.storage.root / name)
    repository.database.save_image(make_image(filename=name, filepath=""))
    assert repository.reconcile() == ReconcileResult()


def test_paths_are_those_of_stored_images(repository: ImageRepository, tmp_path: Path) -> None:
    saved = repository.save(make_image())
    path = repository.path_of(saved.filename)
    assert path == repository.storage.path_of(saved)
    assert repository.path_of(saved.filename, thumbnail=True) == repository.storage.thumbnail(saved)
    assert repository.is_stored(path)
    assert not repository.is_stored(tmp_path / saved.filename)
    assert not repository.is_stored(tmp_path / "other.png")
    path.unlink()
    with pytest.raises(NotFound, match="file of this image is missing"):
        repository.path_of(saved.filename)
    with pytest.raises(NotFound, match="no such image"):
        repository.path_of("other.png")


def test_a_gallery_shows_the_images_of_its_owner(repository: ImageRepository) -> None:
    own, other = (repository.save(make_image(owner=owner, width=size)) for owner, size in (("ann", 64), ("ben", 72)))
    gallery = UserGallery(repository, "ann")
    assert gallery.search(Query(owner="ben")) == [own]
    assert (gallery.count(Query()), gallery.ids(Query()), gallery.sizes(Query())) == (1, [own.id], [(64, 72)])
    assert gallery.image(own.id or 0) == own
    for number in (other.id or 0, 99):
        with pytest.raises(NotFound, match=f"There is no image {number}"):
            gallery.image(number)
    with pytest.raises(NotFound, match="no such image"):
        gallery.delete([other.id or 0])


def test_an_administrator_sees_all_images_and_changes_their_own(repository: ImageRepository) -> None:
    own, other = (repository.save(make_image(owner=owner)) for owner in ("ann", "ben"))
    gallery = UserGallery(repository, "ann", sees_all=True)
    assert {image.owner for image in gallery.search(Query())} == {"ann", "ben"}
    assert gallery.search(Query(owner="ben")) == [other]
    assert gallery.image(other.id or 0) == other
    assert gallery.totals(Query()) == (1, own.file_size)
    assert gallery.favourite([own.id or 0, other.id or 0], True) == 1
    token, number = gallery.delete_matching(Query())
    assert (number, repository.database.recent(None)) == (1, [other])
    assert gallery.undo(token) == 1
