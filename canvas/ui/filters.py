"""The widgets that say which pictures of the gallery are wanted."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import gradio as gr

from canvas import validation
from canvas.history.queries import SORTS, Query
from canvas.styles import STYLES

if TYPE_CHECKING:
    from canvas.studio import Studio

DAYS = {"any time": 0, "last day": 1, "last week": 7, "last month": 30, "last year": 365}


class Filters:
    """Search, model, style, age, favourites and order."""

    def __init__(self, studio: Studio) -> None:
        with gr.Row(elem_id="filters"):
            self._text = gr.Textbox(
                label="Search",
                placeholder='fox "in the snow" -night',
                min_width=220,
                scale=3,
                elem_id="search",
            )
            self._model = self._choice(
                "Model", [("all", ""), *((key, key) for key in studio.models)]
            )
            self._style = self._choice(
                "Style", [("all", ""), *((style, style) for style in STYLES)]
            )
            self._age = self._choice("Made", list(DAYS))
            self._sort = self._choice("Sort", list(SORTS))
            self._favourites = gr.Checkbox(label="Favourites only", min_width=150, scale=1)

    def _choice(self, label: str, choices: list[Any]) -> gr.Dropdown:
        first = choices[0]
        value = first[1] if isinstance(first, tuple) else first
        return gr.Dropdown(choices, value=value, label=label, min_width=120, scale=1)

    @property
    def widgets(self) -> set[Any]:
        """All widgets, as the inputs of an event."""
        return {self._text, self._favourites, *self._choices}

    @property
    def _choices(self) -> tuple[gr.Dropdown, ...]:
        return self._model, self._style, self._age, self._sort

    @property
    def changes(self) -> list[Any]:
        """The events after which other pictures are wanted."""
        chosen = [choice.input for choice in self._choices]
        return [self._text.change, self._favourites.input, *chosen]

    def any(self, values: Mapping[Any, Any]) -> bool:
        """Whether less than everything is wanted."""
        wanted = (self._text, self._model, self._style, self._favourites)
        return any(values[one] for one in wanted) or DAYS[values[self._age]] > 0

    def query(self, values: Mapping[Any, Any], owner: str) -> Query:
        """What is wanted of this owner's pictures."""
        days = DAYS[validation.choice("made", values[self._age], DAYS)]
        return Query(
            text=values[self._text],
            owner=owner,
            model_key=values[self._model] or None,
            style=values[self._style] or None,
            since=datetime.now(UTC) - timedelta(days=days) if days else None,
            favourite=True if values[self._favourites] else None,
            sort=values[self._sort],
        )
