from __future__ import annotations

import os
from pathlib import Path

import pytest

from canvas.errors import NotFound, StorageError
from canvas.history.images import ImageRepository, ReconcileResult
from canvas.history.queries import Query
from canvas.history.trash import UNDO_SECONDS, Trash
from canvas.request import GeneratedImage

from .conftest import make_image


def keep(gallery: ImageRepository, *owners: str) -> list[GeneratedImage]:
    return [gallery.save(make_image(owner=owner)) for owner in owners]


def ids(images: list[GeneratedImage]) -> list[int]:
    return [image.id or 0 for image in images]


def files(gallery: ImageRepository) -> list[str]:
    root = gallery.folder.root
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_a_deleted_picture_is_gone_everywhere_and_undo_brings_all_back(
    gallery: ImageRepository,
) -> None:
    (kept,) = keep(gallery, "local")
    gallery.store.set_favourite([1], "local", True)
    row = gallery.store.rows("SELECT * FROM generated_images")
    path, content = gallery.folder.path_of(kept), gallery.folder.path_of(kept).read_bytes()
    token, number = gallery.delete([1], "local")
    assert number == 1
    assert not path.exists()
    assert [name for name in files(gallery) if not name.startswith(".trash/")] == []
    assert gallery.store.image(1) is None
    assert gallery.store.image_by_filename(kept.filename) is None
    assert gallery.store.search(Query("fox")) == []
    assert gallery.store.rows("SELECT * FROM image_search WHERE image_search MATCH 'fox'") == []
    assert gallery.reconcile() == ReconcileResult()
    assert gallery.undo(token, "local") == 1
    assert path.read_bytes() == content
    assert gallery.store.rows("SELECT * FROM generated_images") == row
    assert [image.id for image in gallery.store.search(Query("fox"))] == [1]
    assert gallery.folder.thumbnail(kept).is_file()
    assert not (gallery.folder.root / ".trash" / token).exists()


def test_nobody_deletes_or_brings_back_what_is_not_theirs(gallery: ImageRepository) -> None:
    anna, berta = keep(gallery, "anna", "berta")
    token, number = gallery.delete(ids([anna, berta]), "anna")
    assert number == 1
    assert gallery.store.recent(None) == [berta]
    with pytest.raises(NotFound, match="no longer be undone"):
        gallery.undo(token, "berta")
    assert gallery.undo(token, "anna") == 1
    with pytest.raises(NotFound):
        gallery.undo(token, "anna")
    with pytest.raises(NotFound):
        gallery.undo("guessed", "anna")


def test_the_administrator_deletes_anything(gallery: ImageRepository) -> None:
    token, number = gallery.delete(ids(keep(gallery, "anna", "berta")), None)
    assert number == 2
    assert gallery.undo(token, None) == 2


def test_many_pictures_are_deleted_in_parts(gallery: ImageRepository) -> None:
    first = keep(gallery, "local")
    gallery.store.record_all(make_image(filename=f"{n}.png") for n in range(1200))
    token, number = gallery.delete(gallery.store.ids_of("local"), "local")
    assert number == 1201
    assert gallery.store.count(Query()) == 0
    assert gallery.undo(token, "local") == 1201
    assert gallery.folder.path_of(first[0]).is_file()


def test_a_failing_delete_changes_nothing(gallery: ImageRepository) -> None:
    kept = keep(gallery, "local", "local")
    # A file where the folder of the trash should be.
    (gallery.folder.root / ".trash").write_text("")
    before = files(gallery)
    with pytest.raises(StorageError):
        gallery.delete(ids(kept), "local")
    assert files(gallery) == before
    assert gallery.store.count(Query()) == 2


def test_the_time_for_undoing_ends(gallery: ImageRepository) -> None:
    now = [0.0]
    trash = Trash(gallery.store, gallery.folder, clock=lambda: now[0])
    first, second = keep(gallery, "local", "local")
    token, _ = trash.delete(ids([first]), "local")
    now[0] = UNDO_SECONDS
    trash.delete(ids([second]), "local")
    with pytest.raises(NotFound):
        trash.undo(token, "local")
    assert len([name for name in files(gallery) if name.startswith(".trash/")]) == 1


def test_keeping_a_picture_empties_what_is_too_old(gallery: ImageRepository) -> None:
    now = [0.0]
    gallery.trash = Trash(gallery.store, gallery.folder, clock=lambda: now[0])
    gallery.delete(ids(keep(gallery, "local")), "local")
    now[0] = UNDO_SECONDS
    keep(gallery, "local")
    assert [name for name in files(gallery) if name.startswith(".trash/")] == []


def test_what_an_old_session_left_is_removed_at_the_start(gallery: ImageRepository) -> None:
    token, _ = gallery.delete(ids(keep(gallery, "local")), "local")
    ImageRepository(gallery.store, gallery.folder).reconcile()
    assert gallery.undo(token, "local") == 1  # the other session was still running
    token, _ = gallery.delete([1], "local")
    os.utime(gallery.folder.root / ".trash" / token, (0, 0))
    ImageRepository(gallery.store, gallery.folder).reconcile()
    assert files(gallery) == []


def test_erasing_leaves_no_trace_of_an_owner(gallery: ImageRepository, tmp_path: Path) -> None:
    words = "unmistakable words about somebody"
    kept = [gallery.save(make_image(owner="anna", prompt=f"{words} {n}")) for n in range(3)]
    other = gallery.save(make_image(owner="berta"))
    token, _ = gallery.delete(ids(kept[:1]), "anna")
    gallery.store.mark_missing(ids(kept[1:2]))
    with gallery.store.transaction() as connection:
        connection.execute(
            "INSERT INTO unfinished_jobs VALUES ('1', 'anna', ?, '', '')", [f"{words} 4"]
        )
    assert gallery.delete_all("anna") == 2
    with pytest.raises(NotFound):
        gallery.undo(token, "anna")
    assert gallery.store.recent(None) == [other]
    assert {name.split("/")[-1].split(".")[0] for name in files(gallery)} == {
        other.filename.split(".")[0]
    }
    for path in tmp_path.glob("ai_images.db*"):
        assert b"unmistakable" not in path.read_bytes()


def test_cleaning_up_takes_what_the_preview_said(gallery: ImageRepository) -> None:
    for model, favourite in (("tiny", False), ("tiny", True), ("small", False)):
        gallery.save(make_image(model_key=model, favourite=favourite))
    query = Query(model_key="tiny", favourite=False, owner="local")
    number, size = gallery.store.totals(query)
    sizes = [image.file_size for image in gallery.store.search(query)]
    assert (number, size) == (1, sum(sizes))
    token, deleted = gallery.delete_matching(query)
    assert deleted == 1
    assert gallery.store.totals(query) == (0, 0)
    assert gallery.store.count(Query()) == 2
    assert gallery.undo(token, "local") == 1


def test_favourites_are_an_owners_own(gallery: ImageRepository) -> None:
    keep(gallery, "anna", "berta")
    assert gallery.store.set_favourite([1, 2, 99], "anna", True) == 1
    assert [image.owner for image in gallery.store.search(Query(favourite=True))] == ["anna"]
    assert gallery.store.set_favourite([1, 2], None, False) == 2
    assert gallery.store.count(Query(favourite=True)) == 0
