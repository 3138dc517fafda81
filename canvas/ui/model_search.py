"""Finds models on the Hub or on this computer and adds them to the list of the Models tab."""

from __future__ import annotations

import time
from typing import Any

import gradio as gr

from canvas.engine.system_info import total_memory
from canvas.errors import CanvasError, InvalidInput, LazyMessage
from canvas.models.families import FAMILIES
from canvas.models.hub_search import SORTS, FoundModel
from canvas.studio import Studio
from canvas.ui.events import bind, current_owner
from canvas.ui.html_panel import error_line, panel, render

PLACEHOLDER = "Words, a model id such as Lykon/dreamshaper-8, a folder or a file"


class ModelSearch:
    """Layout and callbacks of the search; not part of the page of a public server."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._found: gr.State = gr.State([])  # of the last search
        with gr.Column(elem_id="model-search"):
            with gr.Row():
                self._text = gr.Textbox(
                    label="Add a model", placeholder=PLACEHOLDER, max_lines=1, scale=3, min_width=260
                )
                families = [("all", ""), *((family.label, family.key) for family in FAMILIES)]
                self._family = gr.Dropdown(families, value="", label="Architecture", min_width=130)
                self._sort = gr.Dropdown(list(SORTS), value=next(iter(SORTS)), label="Sort", min_width=130)
                self._button = gr.Button("Search", variant="primary", scale=0, min_width=110, elem_id="search-models")
            self._open_only = gr.Checkbox(label="Only models that need no access request")
            self._results = panel("found-models")

    def bind_events(self, refresh: gr.State) -> None:
        """`refresh` gets the time at which a model was added."""
        self._refresh = refresh
        form = {self._text, self._family, self._sort, self._open_only}
        bind(
            [self._button.click, self._text.submit],
            self.search,
            form,
            {self._results, self._found},
            trigger_mode="always_last",
            show_progress="minimal",
            show_progress_on=[self._results],
        )
        bind(self._results.click, self.on_click, {self._found}, {self._results, self._found, refresh})

    def search(self, values: dict[Any, Any]) -> dict[Any, Any]:
        """Show the models that the text finds, or why there are none."""
        try:
            found = self._studio.own_models.search(
                values[self._text],
                family=values[self._family],
                sort=values[self._sort],
                open_only=values[self._open_only],
            )
        except CanvasError as error:
            return {self._results: error_line(error), self._found: []}
        return {self._results: self._render(found), self._found: found}

    def on_click(self, values: dict[Any, Any], event: gr.EventData, http_request: gr.Request) -> dict[Any, Any]:
        """Add a model and download it, unless its licence has conditions."""
        found: list[FoundModel] = values[self._found]
        if event.action != "add_model":
            return {self._results: "", self._found: []}
        model = next((model for model in found if model.source == event.source), None)
        if model is None:
            message = LazyMessage("The search results have changed. Search again.")
            raise InvalidInput("source", str(event.source), message=message)
        spec = self._studio.own_models.add(model)
        if not spec.is_local and not spec.terms:
            self._studio.download_model(spec.key, current_owner(http_request))
        return {self._results: self._render(found), self._refresh: time.time()}

    def _render(self, found: list[FoundModel]) -> str:
        specs = self._studio.models.values()
        added = {spec.name for spec in specs} | {source for spec in specs for _, source in spec.components}
        return render("found_models.html", models=found, added=added, memory=total_memory())
