from __future__ import annotations

from datetime import UTC, datetime

from canvas.history.database import Database, ModelEvent
from canvas.history.images import ImageRepository
from canvas.history.statistics import DownloadStats, GenerationTimes, compute_statistics, disk_use

from .conftest import make_image


def test_statistics_of_one_owner_and_of_all(database: Database) -> None:
    for day, model, style, seconds, owner in (
        (1, "tiny", "anime", 2.0, "anna"),
        (1, "tiny", "none", 4.0, "anna"),
        (3, "small", "anime", 8.0, "anna"),
        (4, "small", "none", 1.0, "berta"),
    ):
        moment = datetime(2026, 1, day, 12, tzinfo=UTC)
        database.save_image(
            make_image(
                model_key=model,
                style=style,
                generation_time=seconds,
                owner=owner,
                created_at=moment,
                favourite=day == 3,
            )
        )
    statistics = compute_statistics(database, "anna")
    assert (statistics.images, statistics.favourites, statistics.seconds) == (3, 1, 14.0)
    assert dict(statistics.by_day) == {"2026-01-01": 2, "2026-01-03": 1}
    assert list(statistics.by_model.items()) == [("tiny", 2), ("small", 1)]
    assert list(statistics.by_style.items()) == [("anime", 2), ("none", 1)]
    assert statistics.by_model_and_size == (
        GenerationTimes("tiny", 64, 72, 2, 3.0),
        GenerationTimes("small", 64, 72, 1, 8.0),
    )
    assert compute_statistics(database, None).images == 4
    assert compute_statistics(database, "nobody").by_day == {}


def test_an_enlargement_without_the_model_is_not_an_image_of_the_model(database: Database) -> None:
    for upscaler in ("lanczos", "photo", "detail"):
        database.save_image(make_image(task="upscale", upscaler=upscaler, generation_time=2.0))
    statistics = compute_statistics(database, None)
    assert statistics.images == 3
    assert sum(statistics.by_model.values()) == 1
    assert [times.images for times in statistics.by_model_and_size] == [1]


def test_download_stats_count_complete_downloads(database: Database) -> None:
    for event, status, size in (
        ("download", "complete", 100),
        ("download", "complete", 50),
        ("download", "failed", None),
        ("download", "cancelled", 7),
        ("load", "complete", None),
    ):
        database.save_model_event(ModelEvent("tiny", event, status=status, bytes=size, download_time=2.0))
    assert compute_statistics(database, None).downloads == (DownloadStats("tiny", 2, 1, 150, 4.0),)


def test_disk_use_and_clear_thumbnails(repository: ImageRepository) -> None:
    saved = repository.save(make_image())
    used = disk_use(repository.database, repository.storage)
    assert used.images == saved.file_size == repository.storage.path_of(saved).stat().st_size
    assert used.thumbnails == repository.storage.thumbnail(saved).stat().st_size > 0
    assert repository.storage.clear_thumbnails() == used.thumbnails
    assert disk_use(repository.database, repository.storage).thumbnails == 0
    assert repository.storage.thumbnail(saved).is_file()
