from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from canvas.errors import NotFound, StorageError
from canvas.history.images import TRASH_FOLDER, UNDO_SECONDS, ImageRepository, ReconcileResult, Trash
from canvas.history.queries import Query
from canvas.request import GeneratedImage

from .conftest import make_image


def save_images(repository: ImageRepository, *owners: str) -> list[GeneratedImage]:
    return [repository.save(make_image(owner=owner)) for owner in owners]


def ids(images: list[GeneratedImage]) -> list[int]:
    return [image.id or 0 for image in images]


def files(repository: ImageRepository) -> list[str]:
    root = repository.storage.root
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_delete_and_undo(repository: ImageRepository) -> None:
    (saved,) = save_images(repository, "local")
    repository.database.set_favourite([1], "local", True)
    row = repository.database.rows("SELECT * FROM generated_images")
    path, content = (repository.storage.path_of(saved), repository.storage.path_of(saved).read_bytes())
    token, number = repository.trash.delete([1], "local")
    assert number == 1
    assert not path.exists()
    assert [name for name in files(repository) if not name.startswith(".trash/")] == []
    assert repository.database.image(1) is None
    assert repository.database.image_by_filename(saved.filename) is None
    assert repository.database.search(Query("fox")) == []
    assert repository.database.rows("SELECT * FROM image_search WHERE image_search MATCH 'fox'") == []
    assert repository.reconcile() == ReconcileResult()
    assert repository.trash.undo(token, "local") == 1
    assert path.read_bytes() == content
    assert repository.database.rows("SELECT * FROM generated_images") == row
    assert [image.id for image in repository.database.search(Query("fox"))] == [1]
    assert repository.storage.thumbnail(saved).is_file()
    assert not (repository.storage.root / ".trash" / token).exists()


def test_owners_delete_and_restore_only_their_images(repository: ImageRepository) -> None:
    anna, berta = save_images(repository, "anna", "berta")
    token, number = repository.trash.delete(ids([anna, berta]), "anna")
    assert number == 1
    assert repository.database.recent(None) == [berta]
    with pytest.raises(NotFound, match="no longer be undone"):
        repository.trash.undo(token, "berta")
    assert repository.trash.undo(token, "anna") == 1
    with pytest.raises(NotFound):
        repository.trash.undo(token, "anna")
    with pytest.raises(NotFound):
        repository.trash.undo("guessed", "anna")


def test_delete_without_owner_deletes_images_of_all(repository: ImageRepository) -> None:
    token, number = repository.trash.delete(ids(save_images(repository, "anna", "berta")), None)
    assert number == 2
    assert repository.trash.undo(token, None) == 2


@pytest.mark.slow
def test_delete_in_batches(repository: ImageRepository) -> None:
    first = save_images(repository, "local")
    repository.database.save_images(make_image(filename=f"{n}.png") for n in range(1200))
    token, number = repository.trash.delete(repository.database.ids_of_owner("local"), "local")
    assert number == 1201
    assert repository.database.count(Query()) == 0
    assert repository.trash.undo(token, "local") == 1201
    assert repository.storage.path_of(first[0]).is_file()


def test_a_failed_delete_changes_nothing(repository: ImageRepository) -> None:
    saved = save_images(repository, "local", "local")
    # A file where the folder of the trash should be.
    (repository.storage.root / ".trash").write_text("")
    before = files(repository)
    with pytest.raises(StorageError):
        repository.trash.delete(ids(saved), "local")
    assert files(repository) == before
    assert repository.database.count(Query()) == 2


def test_undo_expires(repository: ImageRepository) -> None:
    now = [0.0]
    trash = Trash(repository.database, repository.storage, clock=lambda: now[0])
    first, second = save_images(repository, "local", "local")
    token, _ = trash.delete(ids([first]), "local")
    now[0] = UNDO_SECONDS - 1
    assert trash.undo(token, "local") == 1
    now[0] = 0.0
    token, _ = trash.delete(ids([first]), "local")
    now[0] = UNDO_SECONDS - 1
    trash.undo(trash.delete(ids([second]), "local")[0], "local")
    assert (repository.storage.root / TRASH_FOLDER / token).is_dir()
    now[0] = UNDO_SECONDS
    trash.delete(ids([second]), "local")
    with pytest.raises(NotFound):
        trash.undo(token, "local")
    assert len([name for name in files(repository) if name.startswith(".trash/")]) == 1


def test_save_purges_expired_deletions(repository: ImageRepository) -> None:
    now = [0.0]
    repository.trash = Trash(repository.database, repository.storage, clock=lambda: now[0])
    repository.trash.delete(ids(save_images(repository, "local")), "local")
    now[0] = UNDO_SECONDS
    save_images(repository, "local")
    assert [name for name in files(repository) if name.startswith(".trash/")] == []


def test_reconcile_purges_old_sessions(repository: ImageRepository) -> None:
    token, _ = repository.trash.delete(ids(save_images(repository, "local")), "local")
    ImageRepository(repository.database, repository.storage).reconcile()
    assert repository.trash.undo(token, "local") == 1  # the other session still runs
    token, _ = repository.trash.delete([1], "local")
    os.utime(repository.storage.root / ".trash" / token, (0, 0))
    ImageRepository(repository.database, repository.storage).reconcile()
    assert files(repository) == []
    (repository.storage.root / ".trash" / "note.txt").write_text("somebody's")
    os.utime(repository.storage.root / ".trash" / "note.txt", (0, 0))
    assert repository.reconcile() == ReconcileResult()


def test_delete_all_leaves_no_trace_of_an_owner(repository: ImageRepository, tmp_path: Path) -> None:
    prompt = "unmistakable words about somebody"
    saved = [repository.save(make_image(owner="anna", prompt=f"{prompt} {n}")) for n in range(3)]
    other = repository.save(make_image(owner="berta"))
    token, _ = repository.trash.delete(ids(saved[:1]), "anna")
    repository.database.mark_missing(ids(saved[1:2]))
    with repository.database.transaction() as connection:
        connection.execute("INSERT INTO unfinished_jobs VALUES ('1', 'anna', ?, '', '')", [f"{prompt} 4"])
    assert repository.delete_all("anna") == 2
    with pytest.raises(NotFound):
        repository.trash.undo(token, "anna")
    assert repository.database.recent(None) == [other]
    assert {name.split("/")[-1].split(".")[0] for name in files(repository)} == {other.filename.split(".")[0]}
    for path in tmp_path.glob("ai_images.db*"):
        assert b"unmistakable" not in path.read_bytes()


def test_delete_matching_deletes_what_totals_counted(repository: ImageRepository) -> None:
    for model, favourite in (("tiny", False), ("tiny", True), ("small", False)):
        repository.save(make_image(model_key=model, favourite=favourite))
    query = Query(model_key="tiny", favourite=False, owner="local")
    number, size = repository.database.totals(query)
    sizes = [image.file_size for image in repository.database.search(query)]
    assert (number, size) == (1, sum(sizes))
    token, deleted = repository.trash.delete(repository.database.ids(query), query.owner)
    assert deleted == 1
    assert repository.database.totals(query) == (0, 0)
    assert repository.database.count(Query()) == 2
    assert repository.trash.undo(token, "local") == 1


def test_set_favourite_by_owner(repository: ImageRepository) -> None:
    save_images(repository, "anna", "berta")
    assert repository.database.set_favourite([1, 2, 99], "anna", True) == 1
    assert [image.owner for image in repository.database.search(Query(favourite=True))] == ["anna"]
    assert repository.database.set_favourite([1, 2], None, False) == 2
    assert repository.database.count(Query(favourite=True)) == 0


def test_a_trash_that_somebody_emptied_is_purged_all_the_same(repository: ImageRepository) -> None:
    deleted, kept = save_images(repository, "ann", "ann")
    token, _ = repository.trash.delete(ids([deleted]), "ann")
    shutil.rmtree(repository.storage.root / TRASH_FOLDER)
    repository.trash.purge()
    with pytest.raises(NotFound):
        repository.trash.undo(token, "ann")
    assert repository.database.search(Query()) == [kept]


def test_a_failed_undo_changes_nothing_and_can_be_repeated(repository: ImageRepository) -> None:
    saved = save_images(repository, "ann", "ann")
    paths = [repository.storage.path_of(image) for image in saved]
    token, _ = repository.trash.delete(ids(saved), "ann")
    before = files(repository)
    paths[1].mkdir()
    with pytest.raises(StorageError, match="cannot be moved"):
        repository.trash.undo(token, "ann")
    assert files(repository) == before
    assert repository.database.count(Query()) == 0
    paths[1].rmdir()
    assert repository.trash.undo(token, "ann") == 2
    assert all(path.is_file() for path in paths)


def test_undo_makes_the_folders_of_the_images_again(repository: ImageRepository) -> None:
    (saved,) = save_images(repository, "ann")
    nested = repository.storage.root / "a" / "b" / saved.filename
    nested.parent.mkdir(parents=True)
    repository.storage.path_of(saved).rename(nested)
    repository.database.save_image(replace(saved, id=None, filepath=f"outputs/a/b/{saved.filename}"))
    token, _ = repository.trash.delete(repository.database.ids_of_owner("ann"), "ann")
    shutil.rmtree(repository.storage.root / "a")
    repository.trash.undo(token, "ann")
    assert nested.is_file()


def test_images_whose_file_is_missing_are_deleted(repository: ImageRepository) -> None:
    (saved,) = save_images(repository, "ann")
    repository.storage.path_of(saved).unlink()
    assert repository.trash.delete(ids([saved]), "ann")[1] == 1
    assert repository.database.image(saved.id or 0) is None
