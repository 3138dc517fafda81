"""What to look for among the pictures, and the SQL that finds it without reading them all."""

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
MATCH = "image_search MATCH :wanted"
FTS_JOIN = "image_search CROSS JOIN generated_images ON id = image_search.rowid"
SELECTED = "id IN (SELECT value FROM json_each(:ids))"


@dataclass(frozen=True)
class Query:
    """Pictures that have a file and fit everything that is given; raises InvalidInput.

    `text` is words, `pre*` for beginnings, "phrases" and -words that must not be there.
    `owner` None means of all. `since` is inclusive, `until` is not. `ids` limits to a selection.
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
    """What of a query a link has to say, as texts; `from_query_params` is the inverse but for the owner."""
    asked: dict[str, Any] = {name: getattr(query, name) for name in LINKED}
    asked |= {
        "since": query.since and query.since.isoformat(),
        "until": query.until and query.until.isoformat(),
        "size": query.size and "x".join(map(str, query.size)),
        "favourite": "1" if query.favourite else None,
        "ids": None if query.ids is None else ",".join(map(str, query.ids)),
    }
    return {name: value for name, value in asked.items() if value}


def from_query_params(asked: Mapping[str, str]) -> Query:
    """The query of a link; raises InvalidInput."""
    values: dict[str, Any] = {name: asked[name] for name in LINKED if asked.get(name)}
    for name, pattern, read, allowed in PARTS:
        text = asked.get(name)
        if not text:
            continue
        if not pattern.fullmatch(text):
            raise InvalidInput(name, text, allowed)
        values[name] = read(name, text)
    return Query(**values)


def parse_datetime(field: str, text: str) -> datetime:
    """A moment from ISO 8601; without a zone it is meant as this machine has it."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidInput(field, text, "a date such as 2026-05-31") from error


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text))


LINKED = ("text", "model_key", "style", "task")
ANY = re.compile(r".*", re.DOTALL)
PARTS: tuple[tuple[str, re.Pattern[str], Callable[[str, str], Any], str], ...] = (
    ("since", ANY, parse_datetime, ""),
    ("until", ANY, parse_datetime, ""),
    (
        "size",
        re.compile(r"\d{1,5}x\d{1,5}"),
        lambda _, text: _numbers(text),
        "512x768 for 512 × 768",
    ),
    ("favourite", ANY, lambda _, text: True, ""),
    (
        "ids",
        re.compile(r"\d{1,15}(,\d{1,15})*"),
        lambda _, text: _numbers(text),
        "numbers of pictures with commas between them",
    ),
)


def page(query: Query, common: bool) -> Statement:
    """The rows of one page; `common` says that the words are in many pictures.

    Then the pictures are walked in order of time until the page is full; otherwise those
    with the words are looked up and sorted.
    """
    source, where, parameters = _source(query, common and query.sort in TIME_ORDERED)
    order = SORTS[query.sort]
    return Statement(
        f"SELECT * FROM generated_images WHERE id IN (SELECT id FROM {source} "  # noqa: S608 - texts are parameters
        f"WHERE {where} ORDER BY {order} LIMIT :limit OFFSET :offset) ORDER BY {order}",
        {**parameters, "limit": query.limit, "offset": query.offset},
    )


def total(query: Query) -> Statement:
    """The number of pictures (`pictures`) and the bytes of their files (`bytes`)."""
    source, where, parameters = _source(query)
    return Statement(
        "SELECT count(*) AS pictures, ifnull(sum(file_size), 0) AS bytes "  # noqa: S608
        f"FROM {source} WHERE {where}",
        parameters,
    )


def all_ids(query: Query) -> Statement:
    """The ids of all pages, in the query's order."""
    source, where, parameters = _source(query)
    return Statement(
        f"SELECT id FROM {source} WHERE {where} ORDER BY {SORTS[query.sort]}",  # noqa: S608
        parameters,
    )


def sizes(query: Query) -> Statement:
    """Width and height of the pictures, the most frequent first."""
    source, where, parameters = _source(query)
    return Statement(
        f"SELECT image_width AS width, image_height AS height FROM {source} WHERE {where} "  # noqa: S608
        "AND image_width > 0 GROUP BY 1, 2 ORDER BY count(*) DESC, 1, 2 LIMIT 50",
        parameters,
    )


def matches(query: Query, limit: int) -> Statement:
    """Counts in how many pictures the words are, up to `limit`."""
    wanted, _ = search_terms(query.text)
    return Statement(
        "SELECT count(*) AS matches FROM (SELECT rowid FROM image_search "
        "WHERE image_search MATCH :wanted LIMIT :limit)",
        {"wanted": wanted or '""', "limit": limit},
    )


def search_terms(text: str) -> tuple[str, str]:
    """FTS5 expressions of what must and of what must not be there; any text is safe."""
    wanted: list[str] = []
    unwanted: list[str] = []
    for minus, phrase, word in TERM.findall(validation.text("search", text)):
        term = phrase or word
        if not any(character.isalnum() for character in term):
            continue
        # Quoted, so that AND, NEAR, ^, column: and brackets are words like any others.
        quoted = f'"{term.rstrip("*")}"' + ("*" if word.endswith("*") else "")
        (unwanted if minus else wanted).append(quoted)
    without = " OR ".join(unwanted)
    if wanted and unwanted:
        return f"({' AND '.join(wanted)}) NOT ({without})", ""
    return " AND ".join(wanted), without


def _source(query: Query, walk: bool = False) -> tuple[str, str, dict[str, Any]]:
    """The tables, the conditions and their parameters."""
    wanted, unwanted = search_terms(query.text)
    by_ids = query.ids is not None
    from_words = bool(wanted) and not walk and not by_ids
    # A plus keeps SQLite from using an index for that condition: where the pictures come from
    # is decided here, by what is known of the words, and not by the planner, which knows nothing.
    column = "+" if from_words or by_ids else ""
    identity = "" if by_ids else "+"
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
        ("ids", json.dumps(query.ids) if by_ids else None, identity + SELECTED),
        ("wanted", wanted or None, MATCH if from_words else f"+{MATCHES.format('wanted')}"),
        ("unwanted", unwanted or None, f"NOT +{MATCHES.format('unwanted')}"),
    ):
        if value is not None:
            conditions.append(condition)
            parameters[name] = value
    if query.size is not None:
        conditions.append("+image_width = :width AND +image_height = :height")
        parameters["width"], parameters["height"] = query.size
    return FTS_JOIN if from_words else "generated_images", " AND ".join(conditions), parameters
