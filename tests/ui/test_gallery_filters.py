"""The filters of the gallery as queries, without a browser."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import gradio as gr
import pytest

from canvas import Studio
from canvas.errors import InvalidInput
from canvas.history.queries import Query
from canvas.ui.gallery_tab import CUSTOM_RANGE, GalleryFilters
from tests.history.conftest import make_image

Values = Callable[..., dict[Any, Any]]


@pytest.fixture
def filters(studio: Studio) -> GalleryFilters:
    with gr.Blocks(analytics_enabled=False):
        return GalleryFilters(studio)


@pytest.fixture
def values(filters: GalleryFilters) -> Values:
    """The values of the filters; those given are by label."""

    def read(**changes: Any) -> dict[Any, Any]:
        by_label = {str(widget.label): widget for widget in filters.widgets}
        assert changes.keys() <= by_label.keys()
        changes = {"Search": "", **changes}  # the page sends "" for an empty field
        return {widget: changes.get(label, widget.value) for label, widget in by_label.items()}

    return read


def test_days_and_the_owner_are_hidden_until_they_are_needed(filters: GalleryFilters) -> None:
    hidden = {str(widget.label) for widget in filters.widgets if not widget.visible}
    assert hidden == {"From", "Until", "Owner"}
    assert not any(widget.include_time for widget in filters.widgets if isinstance(widget, gr.DateTime))


def test_without_filters_all_images_of_the_owner_match(filters: GalleryFilters, values: Values) -> None:
    assert filters.query(values(), "ann") == Query(owner="ann")
    assert not filters.is_active(values())


@pytest.mark.parametrize(
    ("label", "value", "field", "expected"),
    [
        ("Search", "fox -night", "text", "fox -night"),
        ("Model", "starter", "model_key", "starter"),
        ("Style", "anime", "style", "anime"),
        ("Task", "inpaint", "task", "inpaint"),
        ("Size", "256x192", "size", (256, 192)),
        ("Favourites only", True, "favourite", True),
    ],
)
def test_each_filter_is_a_field_of_the_query(
    filters: GalleryFilters, values: Values, label: str, value: object, field: str, expected: object
) -> None:
    changed = values(**{label: value})
    assert getattr(filters.query(changed, "ann"), field) == expected
    assert filters.is_active(changed)


def test_order_and_owner_hide_nothing(filters: GalleryFilters, values: Values) -> None:
    changed = values(Sort="largest", Owner="all users")
    assert filters.query(changed, "ann") == Query(owner=None, sort="largest")
    assert not filters.is_active(changed)


def test_the_last_week(filters: GalleryFilters, values: Values) -> None:
    changed = values(Created="last week")
    query, now = filters.query(changed, "ann"), datetime.now(UTC)
    assert query.since is not None
    assert timedelta(days=6) < now - query.since < timedelta(days=8)
    assert query.until is None
    assert filters.is_active(changed)


def test_a_range_includes_both_days(filters: GalleryFilters, values: Values) -> None:
    query = filters.query(values(Created=CUSTOM_RANGE, From="2026-03-01", Until=" 2026-03-02 "), "ann")
    assert query.since is not None and query.until is not None
    assert query.until - query.since == timedelta(days=2)


@pytest.mark.parametrize("day", [None, "", "  "])
def test_a_range_may_be_open(filters: GalleryFilters, values: Values, day: str | None) -> None:
    query = filters.query(values(Created=CUSTOM_RANGE, From=day, Until=day), "ann")
    assert (query.since, query.until) == (None, None)


@pytest.mark.parametrize("change", [{"Created": "tomorrow"}, {"Created": CUSTOM_RANGE, "From": "soon"}])
def test_invalid_values_are_refused(filters: GalleryFilters, values: Values, change: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=r"Created|From"):
        filters.query(values(**change), "ann")


def test_the_existing_sizes_are_offered(studio: Studio, filters: GalleryFilters) -> None:
    studio.image_repository.save(make_image(width=64, height=72, owner="ann"))
    updates = filters.update_choices(studio.user_gallery("ann"))
    choices = [update["choices"] for update in updates.values() if "choices" in update]
    assert [("all", ""), ("64 × 72", "64x72")] in choices
    assert [("all", ""), *((key, key) for key in studio.models)] in choices
