"""The card on Create that offers a first model to download, chosen for this computer."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import gradio as gr

from canvas.catalog import ModelSpec
from canvas.engine.memory_plan import ACTIVATION_BYTES, memory_of
from canvas.jobs.job import Job
from canvas.model_status import ModelStatus
from canvas.studio import Studio
from canvas.ui.events import bind, current_owner, toast_html
from canvas.ui.generation_form import model_title
from canvas.ui.html_panel import panel, render
from canvas.ui.i18n import error_text, gettext
from canvas.ui.result_panel import download_text

# Models for photos and art, the best images first. None has a licence to agree to.
SUGGESTED = ("z-image", "sdxl", "dreamshaper", "sdxs")
STARTER = "starter"
MAX_SECONDS = 15.0  # that an image of a suggested model may take, except of the last one
SPARE_BYTES = 2_000_000_000  # that stay free on the disk
POLL_INTERVAL = 1.0  # seconds between polls while the model is downloaded
UNITS = {"GB": 10**9, "MB": 10**6}


class StarterCard:
    """Layout and callbacks of the card; it is empty on public servers and once a model is downloaded."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._panel = panel("starter-card")
        self._dismissed = gr.BrowserState(False, storage_key="magic-canvas-starter-card", secret="card")  # noqa: S106 - no secret
        self._job = gr.State("")  # id of the download
        self._timer = gr.Timer(POLL_INTERVAL, active=False)

    def bind_events(
        self, page: gr.Blocks, select_model: Callable[[str], dict[Any, Any]], form_outputs: set[Any]
    ) -> None:
        """`select_model` returns the updates, of `form_outputs`, that select a model in the form."""
        self._select_model = select_model
        if self._studio.settings.is_public:
            return
        outputs = {self._panel, self._timer, self._job}
        bind(page.load, self.show, {self._dismissed}, outputs)
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
        status = suggest_model(self._studio)
        if status is None:
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


def suggest_model(studio: Studio) -> ModelStatus | None:
    """The best model that this computer has the memory, disk and speed for, if it has only the built-in one.

    Waits until the device is known.
    """
    models = studio.models
    if studio.settings.model != STARTER or any(studio.is_on_disk(key) for key in models if key != STARTER):
        return None
    device, fits = studio.device, []
    memory = memory_of(device)[1]
    for key in (key for key in SUGGESTED if key in models):
        status = studio.model_status(key)
        size = size_in_bytes(models[key])
        if status.free_bytes > size + SPARE_BYTES and memory > size + ACTIVATION_BYTES:
            fits.append(status)
    quick = [status for status in fits if status.seconds is not None and status.seconds <= MAX_SECONDS]
    return next(iter(quick), fits[-1] if fits else None)


def size_in_bytes(spec: ModelSpec) -> int:
    """The size in the catalog, such as "1.8 GB", in bytes; 0 without one."""
    match = re.fullmatch(r"([\d.]+) (GB|MB)", spec.size)
    return int(float(match[1]) * UNITS[match[2]]) if match else 0
