from __future__ import annotations

from datetime import UTC, datetime

from canvas.history.database import Database, ModelEvent
from canvas.history.images import ImageRepository
from canvas.history.statistics import DownloadStats, GenerationTimes, compute_statistics, disk_use

from .conftest import make_image


def test_figures_of_one_owner_and_of_all(store: Database) -> None:
    for day, model, style, seconds, owner in (
        (1, "tiny", "anime", 2.0, "anna"),
        (1, "tiny", "none", 4.0, "anna"),
        (3, "small", "anime", 8.0, "anna"),
        (4, "small", "none", 1.0, "berta"),
    ):
        moment = datetime(2026, 1, day, 12, tzinfo=UTC)
        store.record(
            make_image(
                model_key=model,
                style=style,
                generation_time=seconds,
                owner=owner,
                created_at=moment,
                favourite=day == 3,
            )
        )
    of_anna = compute_statistics(store, "anna")
    assert (of_anna.pictures, of_anna.favourites, of_anna.seconds) == (3, 1, 14.0)
    assert dict(of_anna.by_day) == {"2026-01-01": 2, "2026-01-03": 1}
    assert list(of_anna.by_model.items()) == [("tiny", 2), ("small", 1)]
    assert list(of_anna.by_style.items()) == [("anime", 2), ("none", 1)]
    assert of_anna.by_model_and_size == (
        GenerationTimes("tiny", 64, 72, 2, 3.0),
        GenerationTimes("small", 64, 72, 1, 8.0),
    )
    assert compute_statistics(store, None).pictures == 4
    assert compute_statistics(store, "nobody").by_day == {}


def test_downloads_count_what_arrived(store: Database) -> None:
    for event, status, size in (
        ("download", "complete", 100),
        ("download", "complete", 50),
        ("download", "failed", None),
        ("download", "cancelled", 7),
        ("load", "complete", None),
    ):
        store.record_download(
            ModelEvent("tiny", event, status=status, bytes=size, download_time=2.0)
        )
    assert compute_statistics(store, None).downloads == (DownloadStats("tiny", 2, 1, 150, 4.0),)


def test_disk_use_is_what_lies_there_and_thumbnails_can_be_freed(gallery: ImageRepository) -> None:
    kept = gallery.save(make_image())
    used = disk_use(gallery.store, gallery.folder)
    assert used.pictures == kept.file_size == gallery.folder.path_of(kept).stat().st_size
    assert used.thumbnails == gallery.folder.thumbnail(kept).stat().st_size > 0
    assert gallery.folder.clear_thumbnails() == used.thumbnails
    assert disk_use(gallery.store, gallery.folder).thumbnails == 0
    assert gallery.folder.thumbnail(kept).is_file()
