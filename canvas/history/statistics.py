"""Figures about what was made: by day, model and style, how long it took, what it occupies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from canvas.history.comparisons import Comparisons, VoteCount
from canvas.history.database import Database
from canvas.history.image_files import ImageStorage


@dataclass(frozen=True)
class GenerationTimes:
    """How long pictures of one model and size took on average."""

    model_key: str
    width: int
    height: int
    pictures: int
    seconds: float


@dataclass(frozen=True)
class DownloadStats:
    """What was downloaded of one model: complete downloads, their bytes and seconds."""

    model_key: str
    downloads: int
    failed: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Statistics:
    """Figures of one owner's pictures or of all; downloads are always of all."""

    pictures: int
    favourites: int
    seconds: float
    by_day: Mapping[str, int]  # ISO dates in UTC, in order; days without pictures are left out
    by_model: Mapping[str, int]  # the most used first
    by_style: Mapping[str, int]
    by_model_and_size: tuple[GenerationTimes, ...]
    downloads: tuple[DownloadStats, ...]
    votes: tuple[VoteCount, ...]


class ModelTotals(NamedTuple):
    """Images of a model and the seconds spent on them."""

    model_key: str
    images: int
    seconds: float


@dataclass(frozen=True)
class DiskUse:
    """Bytes of the picture files and of their thumbnails."""

    pictures: int
    thumbnails: int


def compute_statistics(store: Database, owner: str | None) -> Statistics:
    """The figures of one owner's pictures or (None) of all."""
    mine = "missing = 0" if owner is None else "owner = :owner AND missing = 0"

    def select(sql: str) -> list[dict[str, Any]]:
        return store.rows(sql.format(mine=mine), {"owner": owner})

    (whole,) = select(
        "SELECT count(*) AS pictures, ifnull(sum(favourite), 0) AS favourites, "
        "ifnull(sum(generation_time), 0.0) AS seconds FROM generated_images WHERE {mine}"
    )
    sizes = select(
        "SELECT model_used AS model_key, image_width AS width, image_height AS height, "
        "count(*) AS pictures, avg(generation_time) AS seconds FROM generated_images "
        "WHERE {mine} AND image_width > 0 AND generation_time > 0 "
        "GROUP BY model_used, image_width, image_height ORDER BY pictures DESC, model_key"
    )
    return Statistics(
        **whole,
        by_day=_counts(
            select(
                "SELECT substr(created_at, 1, 10) AS name, count(*) AS pictures "
                "FROM generated_images WHERE {mine} GROUP BY name ORDER BY name"
            )
        ),
        by_model=_counts(select(BY_COLUMN.replace("COLUMN", "model_used"))),
        by_style=_counts(select(BY_COLUMN.replace("COLUMN", "style"))),
        by_model_and_size=tuple(GenerationTimes(**row) for row in sizes),
        downloads=_downloads(store),
        votes=Comparisons(store).tally(owner),
    )


def generation_totals(database: Database) -> list[ModelTotals]:
    """Images and seconds by model, of all owners."""
    rows = database.rows(
        "SELECT coalesce(model_used, '') AS model_key, count(*) AS images, "
        "coalesce(sum(generation_time), 0) AS seconds FROM generated_images GROUP BY model_used"
    )
    return [ModelTotals(**row) for row in rows]


def disk_use(store: Database, folder: ImageStorage) -> DiskUse:
    """What the pictures (as recorded) and the thumbnails (as they lie there) occupy."""
    (row,) = store.rows(
        "SELECT ifnull(sum(file_size), 0) AS bytes FROM generated_images WHERE missing = 0"
    )
    thumbnails = sum(path.stat().st_size for path in folder.thumbnails())
    return DiskUse(pictures=row["bytes"], thumbnails=thumbnails)


BY_COLUMN = (
    "SELECT ifnull(COLUMN, '') AS name, count(*) AS pictures FROM generated_images "
    "WHERE {mine} GROUP BY name ORDER BY pictures DESC, name"
)


def _counts(rows: list[dict[str, Any]]) -> dict[str, int]:
    return {row["name"]: row["pictures"] for row in rows}


def _downloads(store: Database) -> tuple[DownloadStats, ...]:
    rows = store.rows(
        "SELECT model_name AS model_key, sum(status = 'complete') AS downloads, "
        "sum(status = 'failed') AS failed, "
        "ifnull(sum(CASE WHEN status = 'complete' THEN bytes END), 0) AS bytes, "
        "ifnull(sum(CASE WHEN status = 'complete' THEN download_time END), 0.0) AS seconds "
        "FROM model_downloads WHERE event = 'download' GROUP BY model_name ORDER BY model_name"
    )
    return tuple(DownloadStats(**row) for row in rows)
