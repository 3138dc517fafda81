"""Statistics of images, downloads, votes and disk use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from canvas.history.comparisons import Comparisons, VoteCount
from canvas.history.database import Database
from canvas.history.image_files import ImageStorage

# Other upscalers enlarge an image without the model that its row names.
MODEL_RAN = "(task <> 'upscale' OR (json_valid(options) AND json_extract(options, '$.upscaler') = 'detail'))"


@dataclass(frozen=True)
class GenerationTimes:
    """The average generation time of a model at one size, in seconds."""

    model_key: str
    width: int
    height: int
    images: int
    seconds: float


@dataclass(frozen=True)
class DownloadStats:
    """The downloads of a model; bytes and seconds are of the complete ones."""

    model_key: str
    downloads: int
    failed: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Statistics:
    """Statistics of one owner's images or of all; downloads are always of all owners."""

    images: int
    favourites: int
    seconds: float
    by_day: Mapping[str, int]  # ISO dates in UTC, in order, without days that have no images
    by_model: Mapping[str, int]  # most used first
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
    """Bytes of image files and thumbnails."""

    images: int
    thumbnails: int


def compute_statistics(database: Database, owner: str | None) -> Statistics:
    """The statistics of one owner's images or (None) of all."""
    visible = "missing = 0" if owner is None else "owner = :owner AND missing = 0"

    def select(columns: str, clauses: str) -> list[dict[str, Any]]:
        sql = f"SELECT {columns} FROM generated_images WHERE {visible} {clauses}"  # noqa: S608
        return database.rows(sql, {"owner": owner})

    def count_by(name: str, order: str, condition: str = "1") -> dict[str, int]:
        clauses = f"AND {condition} GROUP BY name ORDER BY {order}"
        rows = select(f"ifnull({name}, '') AS name, count(*) AS images", clauses)
        return {row["name"]: row["images"] for row in rows}

    (totals,) = select(
        "count(*) AS images, ifnull(sum(favourite), 0) AS favourites, ifnull(sum(generation_time), 0.0) AS seconds", ""
    )
    times = select(
        "model_used AS model_key, image_width AS width, image_height AS height, "
        "count(*) AS images, avg(generation_time) AS seconds",
        f"AND {MODEL_RAN} AND image_width > 0 AND generation_time > 0 "
        "GROUP BY model_used, image_width, image_height ORDER BY images DESC, model_key",
    )
    return Statistics(
        **totals,
        by_day=count_by("substr(created_at, 1, 10)", "name"),
        by_model=count_by("model_used", "images DESC, name", MODEL_RAN),
        by_style=count_by("style", "images DESC, name"),
        by_model_and_size=tuple(GenerationTimes(**row) for row in times),
        downloads=_download_stats(database),
        votes=Comparisons(database).tally(owner),
    )


def generation_totals(database: Database) -> list[ModelTotals]:
    """Images and seconds by model, of all owners."""
    rows = database.rows(
        "SELECT coalesce(model_used, '') AS model_key, count(*) AS images, "
        "coalesce(sum(generation_time), 0) AS seconds FROM generated_images GROUP BY model_used"
    )
    return [ModelTotals(**row) for row in rows]


def disk_use(database: Database, storage: ImageStorage) -> DiskUse:
    """The disk use: images as recorded, thumbnails as found on disk."""
    (row,) = database.rows("SELECT ifnull(sum(file_size), 0) AS bytes FROM generated_images WHERE missing = 0")
    return DiskUse(images=row["bytes"], thumbnails=sum(path.stat().st_size for path in storage.thumbnails()))


def _download_stats(database: Database) -> tuple[DownloadStats, ...]:
    rows = database.rows(
        "SELECT model_name AS model_key, sum(status = 'complete') AS downloads, "
        "sum(status = 'failed') AS failed, "
        "ifnull(sum(CASE WHEN status = 'complete' THEN bytes END), 0) AS bytes, "
        "ifnull(sum(CASE WHEN status = 'complete' THEN download_time END), 0.0) AS seconds "
        "FROM model_downloads WHERE event = 'download' GROUP BY model_name ORDER BY model_name"
    )
    return tuple(DownloadStats(**row) for row in rows)
