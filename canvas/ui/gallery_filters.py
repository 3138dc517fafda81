"""The search box and filters of the Gallery tab."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import gradio as gr

from canvas import validation
from canvas.history.images import UserGallery
from canvas.history.queries import SORTS, Query, from_query_params, parse_datetime
from canvas.request import TASKS
from canvas.studio import Studio
from canvas.styles import STYLES
from canvas.ui.events import bind
from canvas.ui.i18n import gettext

DAYS = {"any time": 0, "last day": 1, "last week": 7, "last month": 30, "last year": 365}
CUSTOM_RANGE = "custom range"
OWNER_CHOICES = ("mine", "all users")


class GalleryFilters:
    """Search, filters and order; the administrator can also choose the owner."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        # On a phone only: the filters are folded away there
        self._show_filters = gr.Button("Filters", size="sm", elem_id="filters-button")
        with gr.Row(elem_id="filters"):
            self._text = gr.Textbox(
                label="Search", placeholder='fox "in the snow" -night', min_width=220, scale=3, elem_id="search"
            )
            self._model = self._choice("Model", [("all", ""), *studio.models])
            self._style = self._choice("Style", [("all", ""), *STYLES])
            tasks = [(task.replace("_", " "), task) for task in TASKS]
            self._task = self._choice("Task", [("all", ""), *tasks])
            self._size = self._choice("Size", [("all", "")])
            self._created = self._choice("Created", [*DAYS, CUSTOM_RANGE])
            self._since, self._until = self._day("From"), self._day("Until")
            self._sort = self._choice("Sort", list(SORTS))
            self._owner = self._choice("Owner", list(OWNER_CHOICES), visible=False)
            self._favourites = gr.Checkbox(label="Favourites only", min_width=150, scale=1)

    def _choice(self, label: str, choices: list[Any], *, visible: bool = True) -> gr.Dropdown:
        first = choices[0]
        value = first[1] if isinstance(first, tuple) else first
        return gr.Dropdown(choices, value=value, label=label, min_width=120, scale=1, visible=visible)

    def _day(self, label: str) -> gr.DateTime:
        return gr.DateTime(label=label, include_time=False, type="string", min_width=130, scale=1, visible=False)

    @property
    def widgets(self) -> set[Any]:
        return {self._text, self._favourites, self._since, self._until, *self._choices}

    @property
    def _choices(self) -> tuple[gr.Dropdown, ...]:
        return (self._model, self._style, self._task, self._size, self._created, self._sort, self._owner)

    @property
    def changes(self) -> list[Any]:
        inputs = [choice.input for choice in self._choices]
        days = [self._since.change, self._until.change]
        return [self._text.change, self._favourites.input, *days, *inputs]

    def bind_events(self) -> None:
        bind(self._show_filters.click, None, js="() => magicCanvas.toggleFilters()")
        bind(
            self._created.change,
            lambda created: [gr.update(visible=created == CUSTOM_RANGE)] * 2,
            self._created,
            [self._since, self._until],
        )

    @property
    def choice_outputs(self) -> set[Any]:
        return {self._model, self._size, self._owner}

    def update_choices(self, gallery: UserGallery) -> dict[Any, Any]:
        """Offer the models and sizes that exist and, to the administrator, the images of all users."""
        sizes = gallery.sizes(Query())
        choices = [(f"{width} × {height}", f"{width}x{height}") for width, height in sizes]
        return {
            self._model: gr.update(choices=[(gettext("all"), ""), *((key, key) for key in self._studio.models)]),
            self._size: gr.update(choices=[(gettext("all"), ""), *choices]),
            self._owner: gr.update(visible=gallery.sees_all),
        }

    def is_active(self, values: Mapping[Any, Any]) -> bool:
        filters = (self._text, self._model, self._style, self._task, self._size, self._favourites)
        return any(values[widget] for widget in filters) or values[self._created] != next(iter(DAYS))

    def query(self, values: Mapping[Any, Any], owner: str) -> Query:
        """The query of the filters, over this owner's images or those of all users."""
        created = validation.choice("created", values[self._created], [*DAYS, CUSTOM_RANGE])
        since = until = None
        if created == CUSTOM_RANGE:
            since = _parse_day("from", values[self._since])
            until = _parse_day("until", values[self._until])
        elif DAYS[created]:
            since = datetime.now(UTC) - timedelta(days=DAYS[created])
        return Query(
            text=values[self._text],
            owner=None if values[self._owner] == OWNER_CHOICES[1] else owner,
            model_key=values[self._model] or None,
            style=values[self._style] or None,
            task=values[self._task] or None,
            size=from_query_params({"size": values[self._size] or ""}).size,
            since=since,
            until=until and until + timedelta(days=1),  # including that day
            favourite=True if values[self._favourites] else None,
            sort=values[self._sort],
        )


def _parse_day(field: str, text: str | None) -> datetime | None:
    return parse_datetime(field, text.strip()) if text and text.strip() else None
