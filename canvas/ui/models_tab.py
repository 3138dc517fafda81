"""The tab of the models: where each is, download and free, and what computes here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from canvas.jobs.job import Job
from canvas.model_status import ModelStatus
from canvas.ui.events import bind, current_owner
from canvas.ui.html_panel import panel, render
from canvas.ui.i18n import gettext
from canvas.ui.result_panel import download_words

if TYPE_CHECKING:
    from canvas.catalog import ModelSpec
    from canvas.studio import Studio

INTERVAL = 1.0  # seconds between two looks while the tab is open


class ModelsTab:
    """Layout and behaviour of the tab; it looks at the models only while it is open."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._table = panel("models")
        self._timer = gr.Timer(INTERVAL, active=False)
        self._seen = gr.State("")

    def bind_events(self, tab: gr.Tab, others: list[gr.Tab]) -> None:
        """Connect what was laid out; call inside the page's context."""
        live = [self._table, self._seen]
        bind(tab.select, lambda: gr.Timer(active=True), None, self._timer)
        bind([other.select for other in others], lambda: gr.Timer(active=False), None, self._timer)
        bind(tab.select, self.show, None, live)
        bind(self._timer.tick, self.poll, self._seen, live, queue=False)
        bind(self._table.click, self.on_click, None, live)

    def show(self, request: gr.Request) -> tuple[str, str]:
        """The table as it is now."""
        html = self._html(current_owner(request))
        return html, html

    def poll(self, seen: str, request: gr.Request) -> tuple[Any, Any]:
        """The table where it has changed."""
        html = self._html(current_owner(request))
        return (gr.skip(), gr.skip()) if html == seen else (html, html)

    def on_click(self, event: gr.EventData, request: gr.Request) -> tuple[str, str]:
        """A click on download, cancel or free."""
        owner = current_owner(request)
        if event.action == "download":
            self._studio.download_model(str(event.model), owner)
        elif event.action == "cancel":
            self._studio.job(str(event.job), owner).cancel()
        elif event.action == "free" and not self._studio.settings.is_public:
            self._studio.unload_model(str(event.model))
        elif event.action == "delete" and not self._studio.settings.is_public:
            self._studio.delete_model(str(event.model))
        return self.show(request)

    def _html(self, owner: str) -> str:
        jobs = self._studio.jobs(owner)
        rows = [
            self._row(spec, self._studio.model_status(key), jobs)
            for key, spec in self._studio.models.items()
        ]
        return render(
            "models.html",
            rows=rows,
            device=self._studio.device_if_known,
            public=self._studio.settings.is_public,
        )

    def _row(self, spec: ModelSpec, state: ModelStatus, jobs: list[Job]) -> dict[str, Any]:
        of_model = [job for job in jobs if job.model_key == spec.key]
        fetching = [
            job
            for job in of_model
            if job.status == "downloading" or (job.kind == "download" and not job.finished)
        ]
        failed = bool(of_model) and of_model[-1].status == "failed" and state.location == "hub"
        job = fetching[0] if fetching else None
        place, *more = state.parts(gettext)
        return {
            "spec": spec,
            "state": state,
            "place": place,
            "more": " · ".join(more),
            "job": job,
            "words": download_words(job) if job else "",
            "percent": _percent(job),
            "error": str(of_model[-1].error) if failed else "",
        }


def _percent(job: Job | None) -> float:
    progress = job.progress if job else None
    if progress is None or not progress.bytes_total:
        return 0.0
    return round(100 * progress.bytes_done / progress.bytes_total, 1)
