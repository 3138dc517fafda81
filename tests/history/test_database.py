from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from canvas.errors import StorageError
from canvas.history.comparisons import Comparisons
from canvas.history.database import Database, ModelEvent
from canvas.history.pending_jobs import PendingJob, PendingJobStore

from .conftest import make_image


def test_images_round_trip(database: Database) -> None:
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
    saved = database.save_image(image)
    assert saved == replace(image, id=1)
    assert database.image(1) == saved
    assert database.image_by_filename("a.png") == saved
    assert database.image(2) is None
    assert database.image_by_filename("b.png") is None


def test_save_image_replaces_the_row_of_the_same_file(database: Database) -> None:
    first = database.save_image(make_image(filename="a.png", filepath="outputs/a.png", owner="local"))
    again = database.save_image(replace(first, id=None, owner="anna"))
    assert again.id == first.id
    assert database.recent(None) == [again]


def test_recent_is_newest_first_by_owner_and_in_pages(database: Database) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    images = [
        make_image(filename=f"{n}.png", created_at=start + timedelta(hours=n), owner="ab"[n % 2]) for n in (2, 0, 3, 1)
    ]
    database.save_images(images)
    assert [image.filename for image in database.recent(None)] == ["3.png", "2.png", "1.png", "0.png"]
    assert [image.filename for image in database.recent("a")] == ["2.png", "0.png"]
    assert [image.filename for image in database.recent(None, 2, 1)] == ["2.png", "1.png"]
    database.mark_missing([1])
    assert [image.filename for image in database.recent("a")] == ["0.png"]


def test_model_events_are_newest_first(database: Database) -> None:
    load = ModelEvent("tiny", "load", "a/b", "abc", download_time=2.5)
    failed = ModelEvent("tiny", "download", "a/b", bytes=5, file_count=2, status="failed", error="No network.")
    assert (database.save_model_event(load), database.save_model_event(failed)) == (1, 2)
    latest, first = database.model_events(5)
    assert (latest.status, latest.error, latest.bytes) == ("failed", "No network.", 5)
    assert (first.event, first.download_time, first.revision) == ("load", 2.5, "abc")
    assert first.downloaded_at is not None
    assert abs(datetime.now(UTC) - first.downloaded_at) < timedelta(minutes=5)


def test_recent_times_are_of_the_same_model_task_and_device(database: Database) -> None:
    images = [make_image(width=512, height=512, generation_time=seconds) for seconds in (15.0, 30.0)]
    images += [make_image(width=256, height=512, preset="turbo", generation_time=3.0)]
    for image in images:
        database.save_image(image)
    for width, height in ((None, None), (512, None), (None, 512)):  # old rows
        database.save_image(make_image(width=width, height=height, generation_time=1.0))
    request = images[0].request
    assert [seconds for _, seconds in database.recent_times(request, "cpu", "float32")] == [3.0, 30.0, 15.0]
    assert database.recent_times(request, "cpu", "float32")[0][0] == images[2].request
    assert database.recent_times(request, "cuda", "float32") == []
    upscale: dict[str, object] = {"width": 512, "height": 512, "task": "upscale", "num_inference_steps": 1}
    database.save_image(make_image(**upscale, upscaler="lanczos"))
    with_detail = make_image(**upscale, upscaler="detail").request
    assert database.recent_times(with_detail, "cpu", "float32") == []
    for guides in ({"control_images": ({"image": "a.png"},)}, {"reference_images": ({"image": "a.png"},)}):
        guided = make_image(width=512, height=512, generation_time=40.0, **guides)
        assert database.recent_times(guided.request, "cpu", "float32") == []
        database.save_image(guided)
        assert [seconds for _, seconds in database.recent_times(guided.request, "cpu", "float32")] == [40.0]
    assert len(database.recent_times(request, "cpu", "float32")) == 3


def test_a_failed_transaction_is_rolled_back(database: Database) -> None:
    def images() -> Iterator[object]:
        yield make_image(filename="a.png")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        database.save_images(images())  # type: ignore[arg-type]
    assert database.recent(None) == []
    database.save_image(make_image(filename="b.png"))


def test_concurrent_writes_from_eight_threads(tmp_path: Path) -> None:
    # Four threads on each of two connections, like a server and the command line.
    databases = [Database(tmp_path / "ai_images.db") for _ in range(2)]
    errors: list[Exception] = []

    def work(number: int) -> None:
        try:
            for count in range(25):
                databases[number % 2].save_image(make_image(filename=f"{number}-{count}.png"))
                databases[number % 2].recent("local", 5)
        except StorageError as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = {image.filename for image in databases[0].recent(None, 1000)}
    for database in databases:
        database.close()
    assert not errors
    assert len(names) == 200


def test_a_locked_database_raises_and_recovers(tmp_path: Path) -> None:
    path = tmp_path / "ai_images.db"
    database = Database(path, busy_timeout=0.05)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match="locked by another program") as caught:
            database.save_image(make_image(filename="a.png"))
        assert str(path) in caught.value.full_text
        other.execute("ROLLBACK")
    assert database.save_image(make_image(filename="a.png")).id == 1
    database.close()


def test_a_file_that_is_not_a_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "ai_images.db"
    path.write_bytes(b"this is a text and not a database" * 100)
    with pytest.raises(StorageError, match=r"is not a database.*doctor --rebuild"):
        Database(path)
    assert path.read_bytes() == b"this is a text and not a database" * 100


def test_a_read_only_database_raises(plain_user: Path) -> None:
    path = plain_user / "ai_images.db"
    Database(path).close()
    path.chmod(0o400)
    with pytest.raises(StorageError, match="read-only") as caught:
        Database(path)
    assert str(path) in caught.value.full_text


def test_an_unwritable_folder_raises(plain_user: Path) -> None:
    plain_user.chmod(0o500)
    for path in (plain_user / "ai_images.db", plain_user / "new" / "ai_images.db"):
        with pytest.raises(StorageError, match="--data-dir") as caught:
            Database(path)
        assert str(path.parent) in caught.value.full_text


def test_a_data_folder_that_is_a_file_raises(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(StorageError, match="--data-dir"):
        Database(tmp_path / "data" / "ai_images.db")


def test_calls_after_close_raise(tmp_path: Path) -> None:
    database = Database(tmp_path / "ai_images.db")
    database.close()
    with pytest.raises(StorageError, match="closed"):
        database.recent(None)


def test_images_without_a_file_name_have_a_row_each(database: Database) -> None:
    assert [image.id for image in database.save_images([make_image(), make_image()])] == [1, 2]


def test_deleted_rows_are_inserted_again_with_their_ids(database: Database) -> None:
    images = database.save_images(make_image(filename=f"{n}.png") for n in range(3))
    rows = database.delete_returning([2], None)
    assert database.ids_of_owner("local") == [1, 3]
    database.insert_rows(rows)
    assert [database.image(number) for number in (1, 2, 3)] == images


def test_an_owner_has_images_jobs_or_comparisons(database: Database) -> None:
    image = make_image(owner="anna")
    database.save_image(image)
    PendingJobStore(database).add(PendingJob("1", "berta", image.request, image.created_at))
    Comparisons(database).add("clara", [image.request])
    assert [database.has_owner(owner) for owner in ("anna", "berta", "clara", "doris")] == [True, True, True, False]


def test_a_transaction_reads_its_own_changes_and_others_do_not(database: Database) -> None:
    with ThreadPoolExecutor() as pool, database.transaction():
        database.save_image(make_image(filename="a.png"))
        assert len(database.recent(None)) == 1
        assert pool.submit(database.recent, None).result() == []
        database.save_image(make_image(filename="b.png"))
    assert len(database.recent(None)) == 2


def test_a_thread_that_waits_too_long_for_another_raises(tmp_path: Path) -> None:
    with closing(Database(tmp_path / "ai_images.db", busy_timeout=0.05)) as database:
        with ThreadPoolExecutor() as pool, database.transaction():
            waiting = pool.submit(database.save_image, make_image(filename="a.png"))
            with pytest.raises(StorageError, match="locked by another program"):
                waiting.result()
        assert database.save_image(make_image(filename="a.png")).id == 1


def test_nothing_is_written_to_a_database_that_was_moved(database: Database) -> None:
    moved = database.path.rename(database.path.with_name("moved.db"))
    with pytest.raises(StorageError, match="was moved or deleted while it was open"):
        database.save_image(make_image(filename="a.png"))
    moved.rename(database.path)
    assert database.save_image(make_image(filename="a.png")).id == 1


def test_the_data_folder_is_made(tmp_path: Path) -> None:
    Database(tmp_path / "new" / "data" / "ai_images.db").close()
    assert (tmp_path / "new" / "data" / "ai_images.db").is_file()
