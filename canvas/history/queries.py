"""Queries for stored images and their SQL, which reads indexes rather than all rows."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from canvas import validation
from canvas.errors import InvalidInput
from canvas.history.rows import timestamp

MAX_WORDS = 50
MAX_PAGE = 1000
TERM = re.compile(r'(-?)(?:"([^"]*)"?|([^\s"]+))')
SORTS: Mapping[str, str] = {
    "newest": "created_at DESC, id DESC",
    "oldest": "created_at, id",
    "largest": "file_size DESC, id DESC",
    "slowest": "generation_time DESC, id DESC",
    "model": "model_used, created_at DESC, id DESC",
}
TIME_ORDERED = ("newest", "oldest")
MATCHES = "id IN (SELECT rowid FROM image_search WHERE image_search MATCH :{})"
MATCH = "image_search MATCH :included"
FTS_JOIN = "image_search CROSS JOIN generated_images ON id = image_search.rowid"
SELECTED = "id IN (SELECT value FROM json_each(:ids))"


@dataclass(frozen=True)
class Query:
    """A filter for images that have a file; every given field must match.

    `text` holds words, `prefixes*`, "phrases" and -excluded words of the prompt. `owner` None
    stands for all. `since` is inclusive, `until` exclusive. Raises InvalidInput.
    """

    text: str = ""
    owner: str | None = None
    model_key: str | None = None
    style: str | None = None
    task: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    size: tuple[int, int] | None = None
    favourite: bool | None = None
    ids: tuple[int, ...] | None = None
    sort: str = "newest"
    limit: int = 50
    offset: int = 0

    def __post_init__(self) -> None:
        validation.choice("sort", self.sort, SORTS)
        validation.integer("limit", self.limit, 0, MAX_PAGE)
        validation.integer("offset", self.offset, 0, 2**53)
        if len(TERM.findall(validation.text("search", self.text))) > MAX_WORDS:
            raise InvalidInput("search", self.text, f"at most {MAX_WORDS} words")


class Statement(NamedTuple):
    """SQL and its parameters."""

    sql: str
    parameters: dict[str, Any]


def to_query_params(query: Query) -> dict[str, str]:
    """URL parameters of a query, without owner, order and page."""
    values: dict[str, Any] = {name: getattr(query, name) for name in TEXT_PARAMS}
    values |= {
        "since": query.since and query.since.isoformat(),
        "until": query.until and query.until.isoformat(),
        "size": query.size and "x".join(map(str, query.size)),
        "favourite": "1" if query.favourite else None,
        "ids": None if query.ids is None else ",".join(map(str, query.ids)),
    }
    return {name: value for name, value in values.items() if value}


def from_query_params(params: Mapping[str, str]) -> Query:
    """The inverse of `to_query_params`; raises InvalidInput."""
    values: dict[str, Any] = {name: params[name] for name in TEXT_PARAMS if params.get(name)}
    for name, parse in PARAM_PARSERS.items():
        if text := params.get(name):
            values[name] = parse(name, text)
    return Query(**values)


def parse_datetime(field: str, text: str) -> datetime:
    """A datetime in UTC from ISO 8601; local time without a zone."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidInput(field, text, "a date such as 2026-05-31") from error


def _parse_size(field: str, text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d{1,5}x\d{1,5}", text):
        raise InvalidInput(field, text, "a size such as 512x768")
    return tuple(map(int, text.split("x")))


def _parse_ids(field: str, text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d{1,15}(,\d{1,15})*", text):
        raise InvalidInput(field, text, "image ids separated by commas")
    return tuple(map(int, text.split(",")))


TEXT_PARAMS = ("text", "model_key", "style", "task")
PARAM_PARSERS: Mapping[str, Callable[[str, str], Any]] = {
    "since": parse_datetime,
    "until": parse_datetime,
    "size": _parse_size,
    "favourite": lambda *_: True,
    "ids": _parse_ids,
}


def page(query: Query, common: bool) -> Statement:
    """Select the rows of one page.

    If the words are `common`, the images are scanned in order of time until the page is full;
    otherwise the matches are looked up and sorted.
    """
    source, where, parameters = _source(query, common and query.sort in TIME_ORDERED)
    order = SORTS[query.sort]
    return Statement(
        f"SELECT * FROM generated_images WHERE id IN (SELECT id FROM {source} "  # noqa: S608 - texts are parameters
        f"WHERE {where} ORDER BY {order} LIMIT :limit OFFSET :offset) ORDER BY {order}",
        {**parameters, "limit": query.limit, "offset": query.offset},
    )


def total(query: Query) -> Statement:
    """Select the number of images (`images`) and the bytes of their files (`bytes`)."""
    return _select("count(*) AS images, ifnull(sum(file_size), 0) AS bytes", query)


def all_ids(query: Query) -> Statement:
    """Select the ids of all pages in the query's order."""
    return _select("id", query, f"ORDER BY {SORTS[query.sort]}")


def sizes(query: Query) -> Statement:
    """Select width and height of the images, most frequent first."""
    clauses = "AND image_width > 0 GROUP BY 1, 2 ORDER BY count(*) DESC, 1, 2 LIMIT 50"
    return _select("image_width AS width, image_height AS height", query, clauses)


def _select(columns: str, query: Query, clauses: str = "") -> Statement:
    source, where, parameters = _source(query)
    return Statement(f"SELECT {columns} FROM {source} WHERE {where} {clauses}", parameters)  # noqa: S608


def matches(query: Query, limit: int) -> Statement:
    """Count the images whose prompts have the words, up to `limit`."""
    included, _ = search_terms(query.text)
    return Statement(
        "SELECT count(*) AS matches FROM (SELECT rowid FROM image_search "
        "WHERE image_search MATCH :included LIMIT :limit)",
        {"included": included or '""', "limit": limit},
    )


def search_terms(text: str) -> tuple[str, str]:
    """FTS5 expressions of the included and the excluded words; any text is safe."""
    included: list[str] = []
    excluded: list[str] = []
    for minus, phrase, word in TERM.findall(validation.text("search", text)):
        term = phrase or word
        if not any(character.isalnum() for character in term):
            continue
        # Quoted, so that AND, NEAR, ^, column: and brackets have no special meaning.
        quoted = f'"{term.rstrip("*")}"' + ("*" if word.endswith("*") else "")
        (excluded if minus else included).append(quoted)
    without = " OR ".join(excluded)
    if included and excluded:
        return f"({' AND '.join(included)}) NOT ({without})", ""
    return " AND ".join(included), without


def _source(query: Query, scan: bool = False) -> tuple[str, str, dict[str, Any]]:
    """The FROM and WHERE clauses and their parameters."""
    included, excluded = search_terms(query.text)
    by_ids = query.ids is not None
    from_words = bool(included) and not scan and not by_ids
    # A plus keeps SQLite from using an index for that condition: the index is chosen here, since
    # the planner does not know how many images have the words.
    column = "+" if from_words or by_ids else ""
    conditions = [f"{column}missing = 0"]
    parameters: dict[str, Any] = {}
    for name, value, condition in (
        ("owner", query.owner, f"{column}owner = :owner"),
        ("model_key", query.model_key, "+model_used = :model_key"),
        ("style", query.style, "+style = :style"),
        ("task", query.task, "+task = :task"),
        ("favourite", query.favourite, "+favourite = :favourite"),
        ("since", query.since and timestamp(query.since), f"{column}created_at >= :since"),
        ("until", query.until and timestamp(query.until), f"{column}created_at < :until"),
        ("ids", json.dumps(query.ids) if by_ids else None, SELECTED),
        ("included", included or None, MATCH if from_words else f"+{MATCHES.format('included')}"),
        ("excluded", excluded or None, f"NOT +{MATCHES.format('excluded')}"),
    ):
        if value is not None:
            conditions.append(condition)
            parameters[name] = value
    if query.size is not None:
        conditions.append("+image_width = :width AND +image_height = :height")
        parameters["width"], parameters["height"] = query.size
    return FTS_JOIN if from_words else "generated_images", " AND ".join(conditions), parameters
