"""Comparisons of models and presets, and the votes on them."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from canvas.errors import InvalidInput, LazyMessage, NotFound
from canvas.history.database import Database
from canvas.history.rows import from_row, parse_time, timestamp
from canvas.request import GeneratedImage, GenerationRequest


@dataclass(frozen=True)
class Comparison:
    """Requests with defaults in the order shown; `chosen` is the position of the winner."""

    id: str
    owner: str
    requests: tuple[GenerationRequest, ...]
    blind: bool
    chosen: int | None
    created_at: datetime


@dataclass(frozen=True)
class VoteCount:
    """In how many comparisons with a vote a model and preset took part and won."""

    model_key: str
    preset: str
    chosen: int
    shown: int


class Comparisons:
    """The comparisons in a database; with their votes they outlive the images."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, owner: str, requests: Sequence[GenerationRequest], *, blind: bool = False) -> Comparison:
        """Store a new comparison; do it before the jobs start, see `add_image`."""
        comparison = Comparison(secrets.token_hex(16), owner, tuple(requests), blind, None, datetime.now(UTC))
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO comparisons (id, owner, requests, image_ids, blind, created_at) VALUES (?, ?, ?, ?, ?, ?)",
                [
                    comparison.id,
                    owner,
                    json.dumps([request.to_dict() for request in comparison.requests]),
                    json.dumps([None] * len(comparison.requests)),
                    int(blind),
                    timestamp(comparison.created_at),
                ],
            )
        return comparison

    def delete(self, comparison: Comparison) -> None:
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM comparisons WHERE id = ?", [comparison.id])

    def latest(self, owner: str, limit: int) -> list[Comparison]:
        rows = self._database.rows(
            "SELECT * FROM comparisons WHERE owner = ? ORDER BY created_at DESC LIMIT ?", [owner, limit]
        )
        return [_from_row(row) for row in rows]

    def get(self, comparison_id: str, owner: str) -> Comparison:
        rows = self._database.rows("SELECT * FROM comparisons WHERE id = ? AND +owner = ?", [comparison_id, owner])
        if not rows:
            raise NotFound(f"There is no comparison {comparison_id!r}.")
        return _from_row(rows[0])

    def add_image(self, image: GeneratedImage) -> None:
        """Add a saved image to the comparisons of its owner that wait for its request."""
        waiting = self._database.rows(
            "SELECT * FROM comparisons WHERE owner = ? AND created_at <= ? AND image_ids LIKE '%null%'",
            [image.owner, timestamp(image.created_at)],
        )
        for row in waiting:
            requests, image_ids = _from_row(row).requests, json.loads(row["image_ids"])
            for position, request in enumerate(requests):
                if request == image.request and image_ids[position] is None:
                    with self._database.transaction() as connection:
                        connection.execute(
                            "UPDATE comparisons SET image_ids = json_set(image_ids, ?, ?) WHERE id = ?",
                            [f"$[{position}]", image.id, row["id"]],
                        )

    def images(self, comparison: Comparison) -> list[GeneratedImage | None]:
        """The image of each request; None if there is none yet or it was deleted."""
        rows = self._database.rows(
            "SELECT key AS position, generated_images.* FROM comparisons, "
            "json_each(comparisons.image_ids) "
            "JOIN generated_images ON generated_images.id = value "
            "WHERE comparisons.id = ? AND missing = 0",
            [comparison.id],
        )
        found = {row["position"]: from_row(row) for row in rows}
        return [found.get(position) for position in range(len(comparison.requests))]

    def vote(self, comparison: Comparison, position: int) -> None:
        """Choose the image at that position; a later vote changes nothing."""
        if not 0 <= position < len(comparison.requests):
            allowed = LazyMessage("a whole number between {low} and {high}", low=0, high=len(comparison.requests) - 1)
            raise InvalidInput("position", position, allowed)
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE comparisons SET chosen = ? WHERE id = ? AND chosen IS NULL", [position, comparison.id]
            )

    def tally(self, owner: str | None) -> tuple[VoteCount, ...]:
        """The votes of an owner (None: of all) by model and preset, best rate first."""
        rows = self._database.rows(
            "SELECT json_extract(value, '$.model_key') AS model_key, "
            "coalesce(json_extract(value, '$.preset'), json_extract(value, '$.mode')) AS preset, "
            "sum(key = chosen) AS chosen, "
            "count(*) AS shown FROM comparisons, json_each(requests) "
            "WHERE (:owner IS NULL OR owner = :owner) AND chosen IS NOT NULL GROUP BY 1, 2 "
            "ORDER BY 1.0 * sum(key = chosen) / count(*) DESC, shown DESC, model_key, preset",
            {"owner": owner},
        )
        return tuple(VoteCount(**row) for row in rows)


def _from_row(row: Mapping[str, Any]) -> Comparison:
    requests = tuple(GenerationRequest.from_dict(each) for each in json.loads(row["requests"]))
    return Comparison(
        row["id"], row["owner"], requests, bool(row["blind"]), row["chosen"], parse_time(row["created_at"])
    )
