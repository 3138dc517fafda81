"""The Models tab: where each model is, downloads, memory, and the device."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import gradio as gr

from canvas.catalog import OWN_GROUP, ModelSpec, get_model
from canvas.errors import CanvasError, InvalidInput, LazyMessage
from canvas.jobs.job import Job
from canvas.model_status import ModelStatus
from canvas.models.own_models import EDITABLE
from canvas.studio import Studio
from canvas.ui.events import bind, bind_select_model, current_owner, run_while_selected
from canvas.ui.generation_form import model_title
from canvas.ui.html_panel import panel, render
from canvas.ui.i18n import error_text, gettext, translate_message
from canvas.ui.model_search import ModelSearch
from canvas.ui.result_panel import download_text

if TYPE_CHECKING:
    from canvas.ui.create_tab import CreateTab

POLL_BUSY, POLL_IDLE = 1.0, 4.0  # seconds between polls while the tab is selected

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
        bind([self._table.click, self._dialog.click], self.on_click, None, [self._refresh, self._dialog])

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
            "percent": _percent(job),
            "error": error_text(failed.error) if failed and failed.error else "",
            "failed_job": failed.id if failed else "",
            "title": model_title(spec),
            "removable": self._studio.own_models.is_own(spec.key),
        }


def model_groups(studio: Studio) -> list[str]:
    """The groups of the models in the order of the catalog, the visitor's own first."""
    groups = dict.fromkeys(spec.group for spec in studio.models.values())
    return sorted(groups, key=lambda group: group != OWN_GROUP)


def _number(field: str, text: object) -> float:
    try:
        return float(str(text))
    except ValueError:
        raise InvalidInput(field, str(text), LazyMessage("a number")) from None


def _percent(job: Job | None) -> float:
    progress = job.progress if job else None
    if progress is None or not progress.bytes_total:
        return 0.0
    return round(100 * progress.bytes_done / progress.bytes_total, 1)
