"""The Models tab: where each model is, downloads, memory, the device, and the search for models to add."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import gradio as gr

from canvas.catalog import OWN_GROUP, ModelSpec, get_model
from canvas.engine.system_info import total_memory
from canvas.errors import CanvasError, InvalidInput, LazyMessage
from canvas.jobs.job import Job
from canvas.model_status import ModelStatus
from canvas.models.families import FAMILIES
from canvas.models.hub_search import SORTS, FoundModel
from canvas.models.own_models import EDITABLE
from canvas.studio import Studio
from canvas.ui.events import EVERY_CLICK, bind, bind_select_model, current_owner, run_while_selected
from canvas.ui.generation_form import model_title
from canvas.ui.html_panel import error_line, panel, render
from canvas.ui.i18n import error_text, gettext, translate_message
from canvas.ui.result_panel import download_percent, download_text

if TYPE_CHECKING:
    from canvas.ui.create_tab import CreateTab

POLL_BUSY, POLL_IDLE = 1.0, 4.0  # seconds between polls while the tab is selected
SEARCH_PLACEHOLDER = "Words, a model id such as Lykon/dreamshaper-8, a folder or a file"
GB = 10**9


class ModelsTab:
    """Layout and callbacks of the tab; it polls only while it is selected."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._search = None if studio.settings.is_public else ModelSearch(studio)
        self._table = panel("models")
        self._dialog = panel("model-dialog")
        self._timer = gr.Timer(POLL_IDLE, active=False)
        self._last_rendered = gr.State("")
        self._refresh = gr.State(0.0)  # time of the latest click, which triggers `poll`

    def bind_events(self, tab: gr.Tab, all_tabs: Sequence[gr.Tab], create: CreateTab, tabs: gr.Tabs) -> None:
        run_while_selected(self._timer, tab, all_tabs)
        # Only this event writes the table: the answers of several could arrive in the wrong order
        bind(
            [tab.select, self._timer.tick, self._refresh.change],
            self.poll,
            self._last_rendered,
            [self._table, self._last_rendered, self._timer],
            trigger_mode="always_last",
            queue=False,
        )
        clicks = [self._table.click, self._dialog.click]
        bind(clicks, self.on_click, None, [self._refresh, self._dialog], **EVERY_CLICK)

        def select_model(model_key: str) -> dict[Any, Any]:
            return {**create.select_model(model_key), tabs: gr.Tabs(selected="create")}

        bind_select_model(self._table, select_model, create.select_model_outputs | {tabs})
        if self._search:
            self._search.bind_events(self._refresh)

    def poll(self, last_rendered: str, http_request: gr.Request) -> tuple[Any, Any, Any]:
        jobs = self._studio.jobs(current_owner(http_request))
        html = self._render(jobs)
        if html == last_rendered:
            return gr.skip(), gr.skip(), gr.skip()
        return html, html, gr.update(value=POLL_IDLE if all(job.finished for job in jobs) else POLL_BUSY)

    def on_click(self, event: gr.EventData, http_request: gr.Request) -> tuple[float, str]:
        owner, may_change = current_owner(http_request), not self._studio.settings.is_public
        dialog = ""
        if event.action == "agree" and may_change:
            self._studio.accept_licence(str(event.model))
            self._studio.download_model(str(event.model), owner)
        elif event.action == "download":
            self._studio.download_model(str(event.model), owner)
        elif event.action == "cancel":
            self._studio.job(str(event.job), owner).cancel()
        elif event.action == "dismiss_error":
            self._studio.forget_job(str(event.job), owner)
        elif may_change and event.action in ("unload", "delete", "remove_model"):
            self._unload_or_remove(event.action, str(event.model))
        elif may_change and event.action in ("edit_defaults", "save_defaults", "reset_defaults"):
            dialog = self._edit_defaults(event)
        return time.time(), dialog

    def _unload_or_remove(self, action: str, model_key: str) -> None:
        if action == "unload":
            self._studio.unload_model(model_key)
        elif action == "delete":
            self._studio.delete_model(model_key)
        else:
            self._studio.unload_model(model_key)
            self._studio.own_models.remove(model_key)

    def _edit_defaults(self, event: gr.EventData) -> str:
        """Save or restore the defaults of a model; returns the dialog, "" once that is done."""
        spec, error = get_model(str(event.model), self._studio.models), ""
        if event.action == "reset_defaults":
            self._studio.own_models.reset(spec.key)
            return ""
        if event.action == "save_defaults":
            try:
                self._studio.own_models.edit(
                    spec.key, {name: _number(name, getattr(event, name, "")) for name in EDITABLE}
                )
                return ""
            except CanvasError as refused:
                error = error_text(refused)
        return render("model_defaults.html", spec=spec, title=model_title(spec), error=error)

    def _render(self, jobs: list[Job]) -> str:
        rows = [self._row(spec, self._studio.model_status(key), jobs) for key, spec in self._studio.models.items()]
        groups = {group: [row for row in rows if row["spec"].group == group] for group in model_groups(self._studio)}
        return render(
            "models.html",
            groups=groups,
            device=self._studio.device_if_known,
            workers=self._workers(),
            public=self._studio.settings.is_public,
        )

    def _workers(self) -> list[dict[str, str]]:
        """Several workers with their models; nothing for visitors."""
        studio = self._studio
        if studio.settings.is_public or (len(studio.backends) < 2 and not studio.settings.cluster):
            return []
        return [
            {
                "name": backend.name,
                "error": error_text(backend.error) if backend.error else "",
                "text": ", ".join(studio.models_of(backend)) or gettext("no model in memory"),
            }
            for backend in studio.backends
        ]

    def _row(self, spec: ModelSpec, status: ModelStatus, jobs: list[Job]) -> dict[str, Any]:
        # Rounded: otherwise every file that any program writes would send the table again
        unit = GB if status.free_bytes >= 10 * GB else GB // 10
        status = replace(status, free_bytes=status.free_bytes // unit * unit)
        model_jobs = [job for job in jobs if job.model_key == spec.key]
        downloads = (
            job for job in model_jobs if job.status == "downloading" or (job.kind == "download" and not job.finished)
        )
        job = next(downloads, None)
        latest = model_jobs[-1] if model_jobs else None
        failed = latest if latest and latest.status == "failed" and status.location == "hub" else None
        location, *details = status.parts(gettext, translate_message)
        return {
            "spec": spec,
            "agreed": self._studio.licences.accepts(spec),
            "status": status,
            "location": location,
            "details": " · ".join(details),
            "job": job,
            "progress": download_text(job) if job else "",
            "percent": download_percent(job) if job else 0.0,
            "error": error_text(failed.error) if failed and failed.error else "",
            "failed_job": failed.id if failed else "",
            "title": model_title(spec),
            "removable": self._studio.own_models.is_own(spec.key),
        }


class ModelSearch:
    """Finds models on the Hub or on this computer and adds them to the list; not for visitors of a public server."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._found: gr.State = gr.State([])  # of the last search
        with gr.Column(elem_id="model-search"):
            with gr.Row():
                self._text = gr.Textbox(
                    label="Add a model", placeholder=SEARCH_PLACEHOLDER, max_lines=1, scale=3, min_width=260
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


def model_groups(studio: Studio) -> list[str]:
    """The groups of the models in the order of the catalog, the visitor's own first."""
    groups = dict.fromkeys(spec.group for spec in studio.models.values())
    return sorted(groups, key=lambda group: group != OWN_GROUP)


def _number(field: str, text: object) -> float:
    try:
        return float(str(text))
    except ValueError:
        raise InvalidInput(field, str(text), LazyMessage("a number")) from None
