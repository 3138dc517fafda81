from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from canvas.errors import StorageError
from canvas.history.database import Database, ModelEvent

from .conftest import make_image


def test_a_picture_comes_back_as_it_was_recorded(store: Database) -> None:
    image = make_image(
        filename="a.png",
        filepath="outputs/2026-05-04/a.png",
        file_size=12,
        owner="anna",
        favourite=True,
        parent_id=3,
        image_format="webp",
        quality=80,
    )
    kept = store.record(image)
    assert kept == replace(image, id=1)
    assert store.image(1) == kept
    assert store.image_by_filename("a.png") == kept
    assert store.image(2) is None
    assert store.image_by_filename("b.png") is None


def test_a_picture_of_a_known_file_replaces_its_row(store: Database) -> None:
    first = store.record(make_image(filename="a.png", filepath="outputs/a.png", owner="local"))
    again = store.record(replace(first, id=None, owner="anna"))
    assert again.id == first.id
    assert store.recent(None) == [again]


def test_recent_is_newest_first_by_owner_and_in_pages(store: Database) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    images = [
        make_image(filename=f"{n}.png", created_at=start + timedelta(hours=n), owner="ab"[n % 2])
        for n in (2, 0, 3, 1)
    ]
    store.record_all(images)
    assert [image.filename for image in store.recent(None)] == ["3.png", "2.png", "1.png", "0.png"]
    assert [image.filename for image in store.recent("a")] == ["2.png", "0.png"]
    assert [image.filename for image in store.recent(None, 2, 1)] == ["2.png", "1.png"]
    store.mark_missing([1])
    assert [image.filename for image in store.recent("a")] == ["0.png"]


def test_downloads_are_listed_newest_first(store: Database) -> None:
    load = ModelEvent("tiny", "load", "a/b", "abc", download_time=2.5)
    failed = ModelEvent(
        "tiny", "download", "a/b", bytes=5, file_count=2, status="failed", error="No network."
    )
    assert (store.record_download(load), store.record_download(failed)) == (1, 2)
    latest, first = store.model_events(5)
    assert (latest.status, latest.error, latest.bytes) == ("failed", "No network.", 5)
    assert (first.event, first.download_time, first.revision) == ("load", 2.5, "abc")
    assert first.downloaded_at is not None
    assert abs(datetime.now(UTC) - first.downloaded_at) < timedelta(minutes=5)


def test_seconds_per_step_are_of_the_same_size_or_scaled(store: Database) -> None:
    for seconds in (15.0, 30.0, 90.0):
        store.record(make_image(width=512, height=512, generation_time=seconds))
    request = make_image(width=512, height=512).request
    assert store.seconds_per_step(request, "cpu", "float32") == 2.0
    assert store.seconds_per_step(request, "cuda", "float32") is None
    half = replace(request, height=256)
    assert store.seconds_per_step(half, "cpu", "float32") == 1.0
    turbo = replace(request, preset="turbo")
    assert store.seconds_per_step(turbo, "cpu", "float32") is None
    store.record(make_image(width=512, height=512, preset="turbo", generation_time=3.0))
    assert store.seconds_per_step(turbo, "cpu", "float32") == pytest.approx(0.2)
    assert store.seconds_per_step(request, "cpu", "float32") == 2.0


def test_only_the_steps_that_were_done_count(store: Database) -> None:
    """At a strength of 0.4, six of fifteen; plain enlarging says nothing of that with detail."""
    edited: dict[str, object] = {"task": "image_to_image", "strength": 0.4}
    edited |= {"width": 512, "height": 512}
    store.record(make_image(**edited, generation_time=12.0))
    request = make_image(**edited).request
    assert store.seconds_per_step(request, "cpu", "float32") == 2.0
    enlarged: dict[str, object] = {**edited, "task": "upscale", "num_inference_steps": 1}
    store.record(make_image(**enlarged, upscaler="lanczos"))
    with_detail = make_image(**enlarged, upscaler="detail").request
    assert store.seconds_per_step(with_detail, "cpu", "float32") is None


def test_a_failing_transaction_leaves_nothing(store: Database) -> None:
    def images() -> Iterator[object]:
        yield make_image(filename="a.png")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        store.record_all(images())  # type: ignore[arg-type]
    assert store.recent(None) == []
    store.record(make_image(filename="b.png"))


def test_eight_threads_record_at_once(tmp_path: Path) -> None:
    # Four threads on each of two connections, as the page and the command line would be.
    stores = [Database(tmp_path / "ai_images.db") for _ in range(2)]
    errors: list[Exception] = []

    def work(number: int) -> None:
        try:
            for count in range(25):
                stores[number % 2].record(make_image(filename=f"{number}-{count}.png"))
                stores[number % 2].recent("local", 5)
        except StorageError as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = {image.filename for image in stores[0].recent(None, 1000)}
    for store in stores:
        store.close()
    assert not errors
    assert len(names) == 200


def test_a_locked_database_is_said_and_the_next_call_works(tmp_path: Path) -> None:
    path = tmp_path / "ai_images.db"
    store = Database(path, busy_timeout=0.05)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match="locked by another program") as caught:
            store.record(make_image(filename="a.png"))
        assert str(path) in str(caught.value)
        other.execute("ROLLBACK")
    assert store.record(make_image(filename="a.png")).id == 1
    store.close()


def test_a_file_that_is_no_database_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "ai_images.db"
    path.write_bytes(b"this is a text and not a database" * 100)
    with pytest.raises(StorageError, match=r"is not a database.*doctor --rebuild"):
        Database(path)
    assert path.read_bytes() == b"this is a text and not a database" * 100


def test_a_read_only_database_is_said(plain_user: Path) -> None:
    path = plain_user / "ai_images.db"
    Database(path).close()
    path.chmod(0o400)
    with pytest.raises(StorageError, match="read-only") as caught:
        Database(path)
    assert str(path) in str(caught.value)


def test_an_unwritable_folder_is_said(plain_user: Path) -> None:
    plain_user.chmod(0o500)
    for path in (plain_user / "ai_images.db", plain_user / "new" / "ai_images.db"):
        with pytest.raises(StorageError, match="--data-dir") as caught:
            Database(path)
        assert str(path.parent) in str(caught.value)


def test_a_folder_that_is_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(StorageError, match="--data-dir"):
        Database(tmp_path / "data" / "ai_images.db")


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = Database(tmp_path / "ai_images.db")
    store.close()
    with pytest.raises(StorageError, match="closed"):
        store.recent(None)
