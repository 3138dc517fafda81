from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from canvas.errors import StorageError
from canvas.history.database import Database
from canvas.history.images import ImageRepository, ReconcileResult
from tests.resilience.fuzzing import small_png

from .conftest import make_image


def test_a_kept_picture_has_file_and_row(gallery: ImageRepository) -> None:
    kept = gallery.save(make_image(owner="anna"))
    assert gallery.store.recent("anna") == [kept]
    assert gallery.folder.path_of(kept).is_file()
    assert gallery.reconcile() == ReconcileResult()


def test_a_picture_without_row_gets_one_from_its_file(gallery: ImageRepository) -> None:
    saved = gallery.folder.save(make_image())
    assert gallery.reconcile() == ReconcileResult(added=1)
    assert gallery.store.recent(None) == [replace(saved, id=1)]
    assert gallery.reconcile() == ReconcileResult()


def test_a_foreign_picture_whose_import_was_cut_short_gets_its_row(
    gallery: ImageRepository,
) -> None:
    folder = gallery.folder.root / "2026-01-01"
    folder.mkdir(parents=True)
    for name in (f"{7:032x}.png", "holiday.png"):
        (folder / name).write_bytes(small_png(parameters="a fox\nSteps: 5, Seed: 7, Size: 64x64"))
    assert gallery.reconcile() == ReconcileResult(added=1), "what somebody put there is left alone"
    [found] = gallery.store.recent("local")
    assert (found.filename, found.request.prompt) == (f"{7:032x}.png", "a fox")
    assert found.request.num_inference_steps == 5


def test_when_the_row_fails_the_file_is_found_again(
    gallery: ImageRepository, tmp_path: Path
) -> None:
    gallery.store.close()
    with pytest.raises(StorageError):
        gallery.save(make_image())
    gallery.store = Database(tmp_path / "ai_images.db")
    assert gallery.reconcile().added == 1
    gallery.store.close()


def test_the_maker_of_a_found_picture_may_still_record_it(gallery: ImageRepository) -> None:
    saved = gallery.folder.save(make_image(owner="anna"))
    gallery.reconcile()
    gallery.store.record(saved)
    assert [image.owner for image in gallery.store.recent(None)] == ["anna"]


def test_a_lost_file_is_marked_until_it_is_back(gallery: ImageRepository) -> None:
    kept = gallery.save(make_image())
    path = gallery.folder.path_of(kept)
    content = path.read_bytes()
    path.unlink()
    assert gallery.reconcile() == ReconcileResult(missing=1)
    assert gallery.reconcile() == ReconcileResult()
    assert gallery.store.recent(None) == []
    assert gallery.store.image(1) == kept
    path.write_bytes(content)
    assert gallery.reconcile() == ReconcileResult()
    assert gallery.store.recent(None) == [kept]


def test_old_rows_with_odd_paths_are_not_lost(gallery: ImageRepository) -> None:
    gallery.folder.root.mkdir()
    for name in ("only-name.png", "absolute.png"):
        (gallery.folder.root / name).write_bytes(b"old")
    gallery.store.record(make_image(filename="only-name.png", filepath=""))
    gallery.store.record(make_image(filename="absolute.png", filepath="/moved/absolute.png"))
    assert gallery.reconcile() == ReconcileResult()


def test_strange_files_are_left_alone(gallery: ImageRepository) -> None:
    gallery.folder.root.mkdir()
    for name in ("empty.png", "note.txt", "broken.webp"):
        (gallery.folder.root / name).write_bytes(b"")
    assert gallery.reconcile() == ReconcileResult()
    assert len(list(gallery.folder.root.iterdir())) == 3


def test_only_old_part_files_are_cleaned(gallery: ImageRepository) -> None:
    gallery.folder.root.mkdir()
    old, new = (gallery.folder.root / f".{name}.png.part" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    assert gallery.reconcile() == ReconcileResult(cleaned=1)
    assert new.is_file()
    assert not old.exists()
