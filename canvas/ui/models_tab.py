"""The Models tab: where each model is, downloads, memory, and the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from canvas.catalog import ModelSpec
from canvas.jobs.job import Job
from canvas.model_status import ModelStatus
from canvas.studio import Studio
from canvas.ui.events import bind, current_owner, run_while_selected
from canvas.ui.html_panel import panel, render
from canvas.ui.i18n import error_text, gettext, translate_message
from canvas.ui.result_panel import download_text

POLL_INTERVAL = 1.0  # seconds between polls while the tab is selected


class ModelsTab:
    """Layout and callbacks of the tab; it polls only while it is selected."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._table = panel("models")
        self._timer = gr.Timer(POLL_INTERVAL, active=False)
        self._last_rendered = gr.State("")

    def bind_events(self, tab: gr.Tab, all_tabs: Sequence[gr.Tab]) -> None:
        outputs = [self._table, self._last_rendered]
        run_while_selected(self._timer, tab, all_tabs)
        bind(tab.select, self.show, None, outputs)
        bind(self._timer.tick, self.poll, self._last_rendered, outputs, queue=False)
        bind(self._table.click, self.on_click, None, outputs)

    def show(self, http_request: gr.Request) -> tuple[str, str]:
        html = self._render(current_owner(http_request))
        return html, html

    def poll(self, last_rendered: str, http_request: gr.Request) -> tuple[Any, Any]:
        html = self._render(current_owner(http_request))
        return (gr.skip(), gr.skip()) if html == last_rendered else (html, html)

    def on_click(self, event: gr.EventData, http_request: gr.Request) -> tuple[str, str]:
        owner, may_change = current_owner(http_request), not self._studio.settings.is_public
        if event.action == "agree" and may_change:
            self._studio.accept_licence(str(event.model))
            self._studio.download_model(str(event.model), owner)
        elif event.action == "download":
            self._studio.download_model(str(event.model), owner)
        elif event.action == "cancel":
            self._studio.job(str(event.job), owner).cancel()
        elif event.action == "unload" and may_change:
            self._studio.unload_model(str(event.model))
        elif event.action == "delete" and may_change:
            self._studio.delete_model(str(event.model))
        return self.show(http_request)

    def _render(self, owner: str) -> str:
        jobs = self._studio.jobs(owner)
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
        model_jobs = [job for job in jobs if job.model_key == spec.key]
        downloads = (
            job for job in model_jobs if job.status == "downloading" or (job.kind == "download" and not job.finished)
        )
        job = next(downloads, None)
        latest = model_jobs[-1] if model_jobs else None
        failed = latest and latest.status == "failed" and status.location == "hub"
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
            "error": str(latest.error) if latest and failed else "",
        }


def model_groups(studio: Studio) -> list[str]:
    """The groups of the models in the order of the catalog."""
    return list(dict.fromkeys(spec.group for spec in studio.models.values()))


def _percent(job: Job | None) -> float:
    progress = job.progress if job else None
    if progress is None or not progress.bytes_total:
        return 0.0
    return round(100 * progress.bytes_done / progress.bytes_total, 1)
