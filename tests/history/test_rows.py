"""Values from files and old rows that are not what they should be."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from canvas import validation
from canvas.history.database import Database
from canvas.history.rows import ModelEvent, image_from_dict, parse_json_object, to_row
from canvas.request import MAX_SEED, GenerationRequest

from .conftest import make_image


def test_nothing_becomes_an_image_with_defaults() -> None:
    image = image_from_dict({})
    assert image.request == GenerationRequest("(no prompt)", model_key="")
    assert (image.id, image.parent_id, image.owner, image.client) == (None, None, "local", "")
    assert (image.generation_time, image.file_size, image.favourite) == (0, 0, False)
    assert image.created_at == datetime(1970, 1, 1, tzinfo=UTC)
    assert len(image.notes) == 1


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("generation_time", 0.5, 0.5),
        ("generation_time", -0.5, 0.0),
        ("generation_time", "soon", 0.0),
        ("file_size", MAX_SEED, MAX_SEED),
        ("file_size", MAX_SEED + 1, 0),
        ("id", 1, 1),
        ("id", MAX_SEED, MAX_SEED),
        ("id", MAX_SEED + 1, None),
        ("id", 0, None),
        ("id", -5, None),
        ("id", "7", None),
        ("favourite", 1, True),
        ("favourite", True, True),
        ("favourite", 0, False),
        ("favourite", 2, False),
        ("favourite", "yes", False),
        ("client", "cli", "cli"),
        ("client", "toaster", ""),
        ("client", ["cli"], ""),
        ("owner", "anna", "anna"),
        ("owner", 5, "local"),
        ("notes", ["a", "b"], ("a", "b")),
        ("notes", "text", ()),
        ("device", "\ud800", "?"),
        ("created_at", "2026-05-04 03:02:01", datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)),
        ("created_at", "2026-05-04T03:02:01+02:00", datetime(2026, 5, 4, 1, 2, 1, tzinfo=UTC)),
        ("created_at", "0001-01-01T00:00:00+02:00", datetime(1970, 1, 1, tzinfo=UTC)),
    ],
)
def test_an_invalid_value_becomes_the_default(name: str, value: Any, expected: Any) -> None:
    image = image_from_dict({"prompt": "a fox", name: value})
    assert getattr(image, name) == expected
    assert name == "notes" or image.notes == ()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"prompt": "a\tfox\x00\nin snow\ud800"}, {"prompt": "a\tfox\nin snow"}),
        ({"prompt": "x" * (validation.MAX_TEXT + 1)}, {"prompt": "x" * validation.MAX_TEXT}),
        ({"negative_prompt": "bl\x00urry"}, {"negative_prompt": "blurry"}),
        ({"width": -5, "seed": 7}, {"seed": 7}),
        ({"style": "ANIME", "image_format": "JPG"}, {"style": "anime", "image_format": "jpeg"}),
        ({"seed": None}, {}),
    ],
)
def test_a_request_keeps_its_valid_values(values: dict[str, Any], expected: dict[str, Any]) -> None:
    image = image_from_dict({"prompt": "a fox", "model_key": "tiny", **values})
    assert image.request == GenerationRequest(**{"prompt": "a fox", "model_key": "tiny", **expected})
    invalid = [name for name in values if name in ("prompt", "negative_prompt", "width")]
    assert len(image.notes) == len(invalid)
    assert all(note.startswith("Invalid metadata: ") for note in image.notes)


def test_a_random_seed_is_no_number_in_a_row(database: Database) -> None:
    images = database.save_images([make_image(seed=7), make_image(seed=-1)])
    assert [row["seed"] for row in database.rows("SELECT seed FROM generated_images ORDER BY id")] == [7, None]
    assert [database.image(number) for number in (1, 2)] == images


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", "null", "[" * 100_000])
def test_other_json_has_no_values(text: str) -> None:
    assert parse_json_object(text) == {}


def test_options_are_readable_text() -> None:
    assert "Füchse" in to_row(make_image(notes=("Füchse",)))["options"]


def test_model_events_without_a_size_are_read(database: Database) -> None:
    database.save_model_event(ModelEvent("tiny", model_size="3.2 GB"))
    with database.transaction() as connection:
        connection.execute("INSERT INTO model_downloads (model_name) VALUES ('old')")
    assert [event.model_size for event in database.model_events()] == ["", "3.2 GB"]
