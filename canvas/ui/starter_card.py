"""The card on Create that offers a first model to download, chosen for this computer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from canvas.jobs.job import Job
from canvas.model_status import SUGGESTED
from canvas.studio import Studio
from canvas.ui.events import bind, current_owner, toast_html
from canvas.ui.generation_form import model_title
from canvas.ui.html_panel import panel, render
from canvas.ui.i18n import error_text, gettext
from canvas.ui.result_panel import download_text

STARTER = "starter"
POLL_INTERVAL = 1.0  # seconds between polls while the model is downloaded


class StarterCard:
    """Layout and callbacks of the card; it is empty on public servers and once a model is downloaded."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._panel = panel("starter-card")
        self._dismissed = gr.BrowserState(False, storage_key="magic-canvas-starter-card", secret="card")  # noqa: S106 - no secret
        self._job = gr.State("")  # id of the download
        self._timer = gr.Timer(POLL_INTERVAL, active=False)

    def bind_events(
        self, opened: list[Any], select_model: Callable[[str], dict[Any, Any]], form_outputs: set[Any]
    ) -> None:
        """`opened`: the events after which the card is rendered anew, as another page may have downloaded a model.

        `select_model` returns the updates, of `form_outputs`, that select a model in the form.
        """
        self._select_model = select_model
        if self._studio.settings.is_public:
            return
        outputs = {self._panel, self._timer, self._job}
        bind(opened, self.show, {self._dismissed}, outputs)
        bind(self._panel.click, self.on_click, {self._job}, outputs | {self._dismissed})
        bind(self._timer.tick, self.poll, {self._job}, outputs | form_outputs, queue=False)

    def show(self, values: dict[Any, Any], http_request: gr.Request) -> dict[Any, Any]:
        """Offer a model, or show its download, which another page may have started."""
        for job in self._studio.jobs(current_owner(http_request)):
            if job.kind == "download" and not job.finished and job.model_key in SUGGESTED:
                return self._show_download(job)
        return self._hide() if values[self._dismissed] else self._offer()

    def on_click(self, values: dict[Any, Any], event: gr.EventData, http_request: gr.Request) -> dict[Any, Any]:
        owner = current_owner(http_request)
        if event.action == "get_model":
            return self._show_download(self._studio.download_model(str(event.model), owner))
        if event.action == "cancel":
            self._studio.job(values[self._job], owner).cancel()
            return self._offer()
        return {**self._hide(), self._dismissed: True}

    def poll(self, values: dict[Any, Any], http_request: gr.Request) -> dict[Any, Any]:
        """Show the progress; select the model once it is downloaded."""
        job = self._studio.job(values[self._job], current_owner(http_request))
        if not job.finished:
            return self._show_download(job)
        if job.status != "done":
            return self._offer(error_text(job.error) if job.error and job.status == "failed" else "")
        title = model_title(self._studio.models[job.model_key])
        gr.Info(toast_html(gettext("Download finished"), gettext("{model} is selected.", model=title)))
        return {**self._hide(), **self._select_model(job.model_key)}

    def _offer(self, error: str = "") -> dict[Any, Any]:
        """Offer a model, once the device is known, if there is only the built-in one."""
        studio = self._studio
        if studio.settings.model != STARTER or not studio.device:
            return self._hide()
        status = studio.general_model()
        if status is None or status.location != "hub":
            return self._hide()
        html = render("starter_card.html", status=status, title=model_title(status.spec), error=error, job=None)
        return {self._panel: html, self._timer: gr.Timer(active=False), self._job: ""}

    def _show_download(self, job: Job) -> dict[Any, Any]:
        progress = job.progress
        done, total = (progress.bytes_done, progress.bytes_total) if progress else (0, 0)
        html = render(
            "starter_card.html",
            job=job,
            title=model_title(self._studio.models[job.model_key]),
            text=download_text(job),
            percent=round(100 * done / total, 1) if total else 0.0,
        )
        return {self._panel: html, self._timer: gr.Timer(active=True), self._job: job.id}

    def _hide(self) -> dict[Any, Any]:
        return {self._panel: "", self._timer: gr.Timer(active=False), self._job: ""}
