"""Comparisons: one prompt and seed over several models and modes, and which picture was chosen."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from canvas.errors import InvalidInput, NotFound
from canvas.history.database import Database
from canvas.history.rows import from_row, parse_time, timestamp
from canvas.request import GeneratedImage, GenerationRequest

# By what a picture of a request is found, beside its mode: field and column.
COLUMNS: Mapping[str, str] = {
    "model_key": "model_used",
    "prompt": "prompt",
    "seed": "seed",
    "width": "image_width",
    "height": "image_height",
    "num_inference_steps": "num_inference_steps",
}


@dataclass(frozen=True)
class Comparison:
    """Resolved requests in the order shown; `chosen` is the place of the one voted for."""

    id: str
    owner: str
    requests: tuple[GenerationRequest, ...]
    blind: bool
    chosen: int | None
    created_at: datetime


@dataclass(frozen=True)
class VoteCount:
    """In how many voted comparisons a model took part in a mode, and how many of them it won."""

    model_key: str
    preset: str
    chosen: int
    shown: int


class Comparisons:
    """The comparisons in the database of `store`; they and their votes outlive the pictures."""

    def __init__(self, store: Database) -> None:
        self._store = store

    def add(
        self,
        owner: str,
        requests: Iterable[GenerationRequest],
        *,
        blind: bool = False,
        created_at: datetime | None = None,
    ) -> Comparison:
        """Remember what is compared from then on."""
        made = Comparison(
            secrets.token_hex(16),
            owner,
            tuple(requests),
            blind,
            None,
            created_at or datetime.now(UTC),
        )
        with self._store.transaction() as connection:
            connection.execute(
                "INSERT INTO comparisons (id, owner, requests, blind, created_at) "
                "VALUES (?, ?, ?, ?, ?)",
                [
                    made.id,
                    owner,
                    json.dumps([request.to_dict() for request in made.requests]),
                    int(blind),
                    timestamp(made.created_at),
                ],
            )
        return made

    def latest(self, owner: str, limit: int) -> list[Comparison]:
        """The owner's comparisons, the newest first."""
        rows = self._store.rows(
            "SELECT * FROM comparisons WHERE owner = ? ORDER BY created_at DESC LIMIT ?",
            [owner, limit],
        )
        return [_comparison_of(row) for row in rows]

    def get(self, comparison_id: str, owner: str) -> Comparison:
        """One comparison of this owner; raises NotFound for any other."""
        rows = self._store.rows(
            "SELECT * FROM comparisons WHERE id = ? AND +owner = ?", [comparison_id, owner]
        )
        if not rows:
            raise NotFound(f"There is no comparison {comparison_id!r}.")
        return _comparison_of(rows[0])

    def find_image(self, comparison: Comparison, place: int) -> GeneratedImage | None:
        """What was made of a request since the comparison began; None while there is nothing."""
        request = comparison.requests[place]
        conditions = " AND ".join(f"+{column} = :{name}" for name, column in COLUMNS.items())
        rows = self._store.rows(
            f"SELECT * FROM generated_images WHERE owner = :owner AND missing = 0 "  # noqa: S608
            f"AND created_at >= :since AND {conditions} "
            "AND coalesce(json_extract(options, '$.preset'), "
            "json_extract(options, '$.mode'), 'quality') = :preset "
            "ORDER BY created_at LIMIT 1",
            {
                "owner": comparison.owner,
                "since": timestamp(comparison.created_at),
                "preset": request.preset,
                **{name: getattr(request, name) for name in COLUMNS},
            },
        )
        return from_row(rows[0]) if rows else None

    def vote(self, comparison: Comparison, place: int) -> None:
        """Choose the picture at that place, once and for all."""
        if not 0 <= place < len(comparison.requests):
            raise InvalidInput("place", place, f"0 to {len(comparison.requests) - 1}")
        with self._store.transaction() as connection:
            connection.execute(
                "UPDATE comparisons SET chosen = ? WHERE id = ? AND chosen IS NULL",
                [place, comparison.id],
            )

    def tally(self, owner: str | None) -> tuple[VoteCount, ...]:
        """An owner's (None: everybody's) votes by model and mode, the most successful first."""
        rows = self._store.rows(
            "SELECT json_extract(value, '$.model_key') AS model_key, "
            "coalesce(json_extract(value, '$.preset'), json_extract(value, '$.mode')) AS preset, "
            "sum(key = chosen) AS chosen, "
            "count(*) AS shown FROM comparisons, json_each(requests) "
            "WHERE (:owner IS NULL OR owner = :owner) AND chosen IS NOT NULL GROUP BY 1, 2 "
            "ORDER BY 1.0 * sum(key = chosen) / count(*) DESC, shown DESC, model_key, preset",
            {"owner": owner},
        )
        return tuple(VoteCount(**row) for row in rows)


def _comparison_of(row: Mapping[str, Any]) -> Comparison:
    requests = tuple(GenerationRequest.from_dict(each) for each in json.loads(row["requests"]))
    return Comparison(
        row["id"],
        row["owner"],
        requests,
        bool(row["blind"]),
        row["chosen"],
        parse_time(row["created_at"]),
    )
