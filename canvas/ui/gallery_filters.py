"""The widgets that say which pictures of the gallery are wanted."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import gradio as gr

from canvas import validation
from canvas.history.queries import SORTS, Query, from_query_params, parse_datetime
from canvas.request import TASKS
from canvas.styles import STYLES
from canvas.ui.events import bind
from canvas.ui.i18n import gettext

if TYPE_CHECKING:
    from canvas.history.images import UserGallery
    from canvas.studio import Studio

DAYS = {"any time": 0, "last day": 1, "last week": 7, "last month": 30, "last year": 365}
CUSTOM_RANGE = "between dates"
OWNER_CHOICES = ("mine", "everybody's")


class GalleryFilters:
    """Search, model, style, task, size, time, favourites and order; whose, for one who may."""

    def __init__(self, studio: Studio) -> None:
        with gr.Row(elem_id="filters"):
            self._text = gr.Textbox(
                label="Search",
                placeholder='fox "in the snow" -night',
                min_width=220,
                scale=3,
                elem_id="search",
            )
            self._model = self._choice("Model", [("all", ""), *studio.models])
            self._style = self._choice("Style", [("all", ""), *STYLES])
            tasks = [(task.replace("_", " "), task) for task in TASKS]
            self._task = self._choice("Task", [("all", ""), *tasks])
            self._size = self._choice("Size", [("all", "")])
            self._made = self._choice("Made", [*DAYS, CUSTOM_RANGE])
            self._since, self._until = self._day("From"), self._day("Until")
            self._sort = self._choice("Sort", list(SORTS))
            self._whose = self._choice("Whose", list(OWNER_CHOICES), visible=False)
            self._favourites = gr.Checkbox(label="Favourites only", min_width=150, scale=1)

    def _choice(self, label: str, choices: list[Any], *, visible: bool = True) -> gr.Dropdown:
        first = choices[0]
        value = first[1] if isinstance(first, tuple) else first
        return gr.Dropdown(
            choices, value=value, label=label, min_width=120, scale=1, visible=visible
        )

    def _day(self, label: str) -> gr.DateTime:
        return gr.DateTime(
            label=label, include_time=False, type="string", min_width=130, scale=1, visible=False
        )

    @property
    def widgets(self) -> set[Any]:
        """All widgets, as the inputs of an event."""
        return {self._text, self._favourites, self._since, self._until, *self._choices}

    @property
    def _choices(self) -> tuple[gr.Dropdown, ...]:
        narrowing = self._model, self._style, self._task, self._size
        return (*narrowing, self._made, self._sort, self._whose)

    @property
    def changes(self) -> list[Any]:
        """The events after which other pictures are wanted."""
        chosen = [choice.input for choice in self._choices]
        days = [self._since.change, self._until.change]
        return [self._text.change, self._favourites.input, *days, *chosen]

    def bind_events(self) -> None:
        """Show the two dates while they count; call inside the page's context."""
        bind(
            self._made.change,
            lambda made: [gr.update(visible=made == CUSTOM_RANGE)] * 2,
            self._made,
            [self._since, self._until],
        )

    @property
    def choice_outputs(self) -> set[Any]:
        """The components that `offer` updates."""
        return {self._size, self._whose}

    def update_choices(self, collection: UserGallery) -> dict[Any, Any]:
        """Updates that offer the sizes that there are, and to look at everybody's pictures."""
        sizes = collection.sizes(Query())
        choices = [(f"{width} × {height}", f"{width}x{height}") for width, height in sizes]
        return {
            self._size: gr.update(choices=[(gettext("all"), ""), *choices]),
            self._whose: gr.update(visible=collection.sees_all),
        }

    def is_active(self, values: Mapping[Any, Any]) -> bool:
        """Whether less than everything is wanted."""
        wanted = (self._text, self._model, self._style, self._task, self._size, self._favourites)
        return any(values[one] for one in wanted) or values[self._made] != next(iter(DAYS))

    def query(self, values: Mapping[Any, Any], owner: str) -> Query:
        """What is wanted, of this owner's pictures or of everybody's."""
        made = validation.choice("made", values[self._made], [*DAYS, CUSTOM_RANGE])
        since = until = None
        if made == CUSTOM_RANGE:
            since = _day_of("from", values[self._since])
            until = _day_of("until", values[self._until])
        elif DAYS[made]:
            since = datetime.now(UTC) - timedelta(days=DAYS[made])
        return Query(
            text=values[self._text],
            owner=None if values[self._whose] == OWNER_CHOICES[1] else owner,
            model_key=values[self._model] or None,
            style=values[self._style] or None,
            task=values[self._task] or None,
            size=from_query_params({"size": values[self._size] or ""}).size,
            since=since,
            until=until and until + timedelta(days=1),  # that day included
            favourite=True if values[self._favourites] else None,
            sort=values[self._sort],
        )


def _day_of(field: str, text: str | None) -> datetime | None:
    return parse_datetime(field, text.strip()) if text and text.strip() else None
