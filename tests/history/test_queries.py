from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from canvas.errors import InvalidInput
from canvas.history import queries
from canvas.history.database import COMMON_MATCHES, Database
from canvas.history.queries import MAX_PAGE, MAX_WORDS, SORTS, Query

from .bulk_data import many_images
from .conftest import make_image

START = datetime(2026, 1, 1, tzinfo=UTC)
PROMPTS = [
    "a red fox in the snow",
    "a blue fox on a rainy night",
    "Ein Füchslein, sci-fi castle",
    "two dragons AND a robot NOT a fox-hound",
    "日本の城 under the moon",
]


@pytest.fixture
def prompts(database: Database) -> Database:
    for hour, prompt in enumerate(PROMPTS):
        database.save_image(make_image(prompt=prompt, created_at=START + timedelta(hours=hour)))
    return database


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    database = Database(tmp_path_factory.mktemp("many") / "ai_images.db")
    database.save_images(many_images(COMMON_MATCHES + 500))
    yield database
    database.close()


def found(database: Database, **query: Any) -> list[int]:
    images = database.search(Query(**query))
    assert database.count(Query(**query)) == len(images)
    assert database.ids(Query(**query)) == [image.id for image in images]
    return sorted(image.id or 0 for image in images)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("fox", [1, 2, 4]),
        ("FOX snow", [1]),
        ("fox*", [1, 2, 4]),
        ("dragon", []),
        ("dragon*", [4]),
        ('"red fox"', [1]),
        ('"fox red"', []),
        ('"red fox', [1]),
        ("fox -snow", [2, 4]),
        ('fox -"red fox" -robot', [2]),
        ("-fox", [3, 5]),
        ("-fox -moon", [3]),
        ("fuchslein", [3]),
        ("sci-fi", [3]),
        ("日本*", [5]),
        ("AND", [4]),
        ("fox OR castle", []),
        ("fox AND", [4]),
        ("nothing", []),
        ("  ", [1, 2, 3, 4, 5]),
        ("- * ^ ( ) : ''", [1, 2, 3, 4, 5]),
        ("prompt:fox", []),
        ("(fox)", [1, 2, 4]),
    ],
)
def test_search_in_prompts(prompts: Database, text: str, ids: list[int]) -> None:
    assert found(prompts, text=text) == ids


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(text=st.text(max_size=60) | st.text('"*-^():+{}fox AND OR NOT NEAR', max_size=60))
def test_any_text_can_be_searched(prompts: Database, text: str) -> None:
    try:
        query = Query(text)
    except InvalidInput:
        return
    assert len(prompts.search(query)) == prompts.count(query)


def test_the_search_index_follows_changes(prompts: Database) -> None:
    with prompts.transaction() as connection:
        connection.execute("UPDATE generated_images SET prompt = 'an owl' WHERE id = 1")
        connection.execute("DELETE FROM generated_images WHERE id = 2")
    assert found(prompts, text="fox") == [4]
    assert found(prompts, text="owl") == [1]


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        ({"owner": "anna"}, [2]),
        ({"model_key": "small"}, [3]),
        ({"style": "anime"}, [3]),
        ({"task": "inpaint"}, [4]),
        ({"size": (512, 768)}, [4]),
        ({"favourite": True}, [5]),
        ({"favourite": False, "owner": "local"}, [1, 3, 4]),
        ({"since": START + timedelta(hours=3)}, [4, 5]),
        ({"until": START + timedelta(hours=1)}, [1]),
        ({"ids": (2, 4, 99)}, [2, 4]),
        ({"ids": ()}, []),
        ({"ids": (2, 4), "text": "fox", "owner": "anna"}, [2]),
        ({"text": "fox", "owner": "anna"}, [2]),
        ({"text": "-fox", "model_key": "small"}, [3]),
    ],
)
def test_filters(database: Database, filters: dict[str, Any], ids: list[int]) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"owner": "anna"},
        {"model_key": "small", "style": "anime"},
        {"task": "inpaint", "width": 512, "height": 768},
        {"favourite": True},
    ]
    for hour, (prompt, change) in enumerate(zip(PROMPTS, changes, strict=True)):
        database.save_image(make_image(prompt=prompt, created_at=START + timedelta(hours=hour), **change))
    assert found(database, **filters) == ids


def test_images_without_file_are_not_found(prompts: Database) -> None:
    prompts.mark_missing([1, 2])
    assert found(prompts) == [3, 4, 5]
    assert found(prompts, text="fox") == [4]


@pytest.mark.slow
@pytest.mark.parametrize("sort", list(SORTS))
@pytest.mark.parametrize("text", ["", "picture", "unicorn", "-fox"])
def test_pages_join_to_all_ids_in_order(many: Database, sort: str, text: str) -> None:
    query = {"text": text, "owner": "local", "sort": sort}
    pages = [many.search(Query(**query, limit=700, offset=offset)) for offset in range(0, 2800, 700)]
    ids = [image.id for image in itertools.chain.from_iterable(pages)]
    assert ids == many.ids(Query(**query))
    assert len(set(ids)) == len(ids) == many.count(Query(**query))
    rows = many.rows("SELECT id, created_at, file_size, generation_time, model_used, prompt "
                     "FROM generated_images WHERE owner = 'local'")  # fmt: skip
    keys: dict[str, Any] = {
        "newest": lambda row: (row["created_at"], row["id"]),
        "largest": lambda row: (row["file_size"], row["id"]),
        "slowest": lambda row: (row["generation_time"], row["id"]),
    }
    if sort in keys:
        word = text.removeprefix("-")
        expected = [row for row in rows if (word in row["prompt"]) != text.startswith("-")]
        expected.sort(key=keys[sort], reverse=True)
        assert ids == [row["id"] for row in expected]


@pytest.mark.parametrize("owner", ["local", None])
@pytest.mark.parametrize("text", ["", "fox", "fox -snow", "-fox", '"a b" c*'])
@pytest.mark.parametrize("sort", list(SORTS))
def test_no_query_scans_the_table(many: Database, owner: str | None, text: str, sort: str) -> None:
    for filters in (
        {},
        {"favourite": True},
        {"task": "inpaint"},
        {"size": (512, 768)},
        {"model_key": "tiny", "style": "anime", "task": "x", "size": (1, 1)},
        {"since": START, "until": START},
        {"ids": (1, 2)},
    ):
        query = Query(text, owner=owner, sort=sort, **filters)  # type: ignore[arg-type]
        for statement in (
            queries.page(query, common=True),
            queries.page(query, common=False),
            queries.total(query),
            queries.all_ids(query),
            queries.sizes(query),
        ):
            plan = many.rows(f"EXPLAIN QUERY PLAN {statement.sql}", statement.parameters)
            details = [row["detail"] for row in plan]
            assert not [line for line in details if line.startswith("SCAN generated_images")]
            assert any(line.startswith("SEARCH generated_images USING") for line in details)


def test_pages_use_a_covering_index(many: Database) -> None:
    for query in (Query(), Query(owner="local"), Query(owner="local", favourite=True)):
        statement = queries.page(query, common=False)
        plan = many.rows(f"EXPLAIN QUERY PLAN {statement.sql}", statement.parameters)
        inner = [row["detail"] for row in plan if "COVERING INDEX images_of_" in row["detail"]]
        assert len(inner) == 1


@pytest.mark.parametrize(
    "filters", [{"task": "inpaint"}, {"size": (512, 768)}, {"since": START}, {"since": START, "until": START}]
)
@pytest.mark.parametrize("owner", ["local", None])
def test_filters_use_a_covering_index(many: Database, owner: str | None, filters: dict[str, Any]) -> None:
    for statement in (
        queries.page(Query(owner=owner, **filters), common=False),
        queries.sizes(Query(owner=owner, **filters)),
    ):
        plan = many.rows(f"EXPLAIN QUERY PLAN {statement.sql}", statement.parameters)
        assert any("COVERING INDEX images_of_" in row["detail"] for row in plan)


def test_query_params_round_trip(database: Database) -> None:
    query = Query(
        text='fox -"in snow" ü&=',
        model_key="tiny",
        style="anime",
        task="inpaint",
        size=(512, 768),
        since=START,
        until=START + timedelta(days=3, seconds=1),
        favourite=True,
        ids=(1, 22),
    )
    assert queries.from_query_params(queries.to_query_params(query)) == query
    assert queries.from_query_params(queries.to_query_params(Query())) == Query()
    assert queries.to_query_params(Query(owner="anna")) == {}


@pytest.mark.parametrize(
    ("name", "text"), [("size", "512"), ("size", "axb"), ("since", "soon"), ("until", "2026-99-99"), ("ids", "1,,2")]
)
def test_invalid_query_params_are_rejected(name: str, text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        queries.from_query_params({name: text})
    assert caught.value.field == name


def test_file_names_are_looked_up_by_index(many: Database) -> None:
    plan = many.rows("EXPLAIN QUERY PLAN SELECT * FROM generated_images WHERE filename = 'x'")
    assert "images_by_filename" in plan[0]["detail"]


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"sort": "random"}, "sort"),
        ({"limit": -1}, "limit"),
        ({"limit": 10**6}, "limit"),
        ({"offset": -1}, "offset"),
        ({"offset": 2**53 + 1}, "offset"),
        ({"text": "a\0b"}, "search"),
        ({"text": "a " * (MAX_WORDS + 1)}, "search"),
        ({"text": "a" * 100_000}, "search"),
    ],
)
def test_invalid_queries_are_rejected(values: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Query(**values)
    assert caught.value.field == field


def test_the_limits_of_queries_are_allowed(prompts: Database) -> None:
    assert prompts.search(Query(limit=0)) == []
    assert len(prompts.search(Query(limit=MAX_PAGE))) == len(PROMPTS)
    assert prompts.search(Query(offset=2**53)) == []
    assert prompts.search(Query("a " * MAX_WORDS)) != []


@pytest.mark.parametrize(
    ("query", "common", "by_time"),
    [
        (Query(), False, True),
        (Query("fox"), False, False),
        (Query("fox"), True, True),
        (Query("fox", sort="largest"), True, False),
        (Query(ids=(1, 2)), False, False),
        (Query("fox", ids=(1, 2)), True, False),
    ],
)
def test_only_common_words_are_searched_in_order_of_time(
    many: Database, query: Query, common: bool, by_time: bool
) -> None:
    statement = queries.page(query, common)
    plan = many.rows(f"EXPLAIN QUERY PLAN {statement.sql}", statement.parameters)
    assert any("COVERING INDEX images_of_" in row["detail"] for row in plan) == by_time


def test_words_are_counted_by_their_matches(many: Database) -> None:
    statement = queries.total(Query("fox"))
    plan = many.rows(f"EXPLAIN QUERY PLAN {statement.sql}", statement.parameters)
    assert not [row for row in plan if "images_of_" in row["detail"]]


def test_words_are_common_with_many_matches(many: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    page, asked = queries.page, []

    def recorded(query: Query, common: bool) -> queries.Statement:
        asked.append(common)
        return page(query, common)

    monkeypatch.setattr(queries, "page", recorded)
    for text in ("picture", "unicorn", ""):
        many.search(Query(text, limit=1))
    assert asked == [True, False, False]


def test_matches_are_counted_up_to_a_limit(prompts: Database) -> None:
    found = [prompts.rows(*queries.matches(Query(text), limit)) for text, limit in (("fox", 2), ("fox", 9), ("", 9))]
    assert found == [[{"matches": 2}], [{"matches": 3}], [{"matches": 0}]]


def test_sizes_are_listed_by_frequency(database: Database) -> None:
    for width, height in ((512, 768), (64, 64), (512, 768), (None, None)):
        database.save_image(make_image(width=width, height=height))
    assert [tuple(row.values()) for row in database.rows(*queries.sizes(Query()))] == [(512, 768), (64, 64)]
