"""The Compare tab: one prompt and seed over several models and presets, and a vote."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

import gradio as gr

from canvas.comparison import ComparisonEntry, ComparisonService
from canvas.errors import CanvasError, NotFound
from canvas.history.comparisons import Comparison
from canvas.presets import PRESETS
from canvas.request import RANDOM_SEED, GenerationRequest, ProgressUpdate
from canvas.studio import Studio
from canvas.ui.create_tab import CreateTab
from canvas.ui.events import EVERY_CLICK, bind, current_owner, run_while_selected
from canvas.ui.generation_form import preset_options
from canvas.ui.html_panel import error_line, panel, render, text_line
from canvas.ui.i18n import error_text, format_duration, gettext, ngettext
from canvas.ui.result_panel import preview_url, progress_text

POLL_BUSY, POLL_IDLE = 0.5, 4.0  # seconds between polls while the tab is selected
MAX_EARLIER = 8  # comparisons in the list below


class CompareTab:
    """Layout and callbacks of the tab; it polls the jobs only while it is selected."""

    def __init__(self, studio: Studio, create: CreateTab) -> None:
        self._studio = studio
        self._comparisons = ComparisonService(studio)
        self._create = create
        self._selected = gr.State("")  # id of the comparison that is shown; "" for the latest
        self._last_rendered = gr.State("")
        self._refresh = gr.State(0.0)  # time of the latest click, which triggers `poll`
        self._timer = gr.Timer(POLL_IDLE, active=False)
        with gr.Column(elem_id="compare"):
            self._prompt = gr.Textbox(label="Prompt for all models", lines=1, max_lines=6, elem_id="compare-prompt")
            self._models = gr.CheckboxGroup(
                list(studio.models), value=[studio.settings.model], label="Models", elem_classes="pills"
            )
            with gr.Row(elem_id="compare-options"):
                self._presets = gr.CheckboxGroup(
                    preset_options(), value=list(PRESETS), label="Presets", elem_classes="pills", scale=2
                )
                self._seed = gr.Number(RANDOM_SEED, label="Seed for all models", precision=0, min_width=140)
                self._blind = gr.Checkbox(
                    label="Vote blind", info="Names and times are revealed after you vote", min_width=180
                )
            with gr.Row(elem_id="compare-actions"):
                self._summary = panel("compare-summary")
                self._start = gr.Button("Compare", variant="primary", elem_id="compare-start", scale=0, min_width=120)
        self._panel = panel("comparison")

    def bind_events(self, tab: gr.Tab, all_tabs: Sequence[gr.Tab]) -> None:
        form = {self._prompt, self._models, self._presets, self._seed, self._blind}
        prompt = self._create.form["prompt"]
        run_while_selected(self._timer, tab, all_tabs)
        bind(tab.select, self.open, {self._prompt, prompt}, {self._prompt, self._models})
        changed = {self._selected, self._refresh}
        bind([self._start.click, self._prompt.submit], self.start, form, changed)
        bind(self._panel.click, self.on_click, None, changed, **EVERY_CLICK)
        # Only this event writes the panel: the answers of several could arrive in the wrong order
        bind(
            [tab.select, self._timer.tick, self._refresh.change],
            self.poll,
            {self._selected, self._last_rendered},
            {self._panel, self._last_rendered, self._timer},
            trigger_mode="always_last",
            queue=False,
        )
        bind(
            [tab.select, self._models.change, self._presets.change],
            self.update_summary,
            {self._models, self._presets},
            {self._summary},
            trigger_mode="always_last",
        )

    def open(self, values: dict[Any, Any]) -> dict[Any, Any]:
        """Fill an empty prompt with that of the Create tab, and list the models, of which one may be new."""
        prompt = values[self._prompt] or values[self._create.form["prompt"]]
        return {self._prompt: prompt, self._models: gr.CheckboxGroup(choices=list(self._studio.models))}

    def start(self, values: dict[Any, Any], http_request: gr.Request) -> dict[Any, Any]:
        seed = RANDOM_SEED if values[self._seed] is None else values[self._seed]
        comparison = self._comparisons.start(
            GenerationRequest(values[self._prompt], seed=seed),
            values[self._models],
            values[self._presets],
            blind=values[self._blind],
            owner=current_owner(http_request),
        )
        return {self._selected: comparison.id, self._refresh: time.time()}

    def on_click(self, event: gr.EventData, http_request: gr.Request) -> dict[Any, Any]:
        owner = current_owner(http_request)
        comparison = self._studio.comparisons.get(str(event.comparison), owner)
        if event.action == "vote":
            self._comparisons.vote(comparison, int(event.position))
        elif event.action == "stop":
            self._comparisons.stop(comparison)
        return {self._selected: comparison.id, self._refresh: time.time()}

    def poll(self, values: dict[Any, Any], http_request: gr.Request) -> dict[Any, Any]:
        """Show the selected comparison, or the latest, if it has changed."""
        owner, comparison_id = current_owner(http_request), values[self._selected]
        latest = self._studio.comparisons.latest(owner, MAX_EARLIER)
        try:
            comparison = self._studio.comparisons.get(comparison_id, owner) if comparison_id else None
        except NotFound:  # deleted meanwhile
            comparison = None
        comparison = comparison or (latest[0] if latest else None)
        entries = self._comparisons.entries(comparison) if comparison else []
        html = self._render(comparison, entries, latest)
        if html == values[self._last_rendered]:
            return {self._last_rendered: gr.skip()}
        active = any(entry.active for entry in entries)
        timer = gr.update(value=POLL_BUSY if active else POLL_IDLE)
        return {self._panel: html, self._last_rendered: html, self._timer: timer}

    def update_summary(self, values: Mapping[Any, Any]) -> dict[Any, Any]:
        """Show the number of images, their estimated time and the models to download."""
        models, presets = values[self._models], values[self._presets]
        try:
            requests = self._comparisons.plan(GenerationRequest("…"), models, presets)
            seconds = [self._studio.estimate(request) for request in requests]
            statuses = [self._studio.model_status(key) for key in models]
        except CanvasError as error:
            return {self._summary: error_line(error)}
        parts = [ngettext("{number} image", "{number} images", len(requests))]
        known = [estimate for estimate in seconds if estimate is not None]
        if known and len(known) == len(requests):
            parts.append(gettext("about {time}", time=format_duration(sum(known))))
        parts += [f"{status.key}: {status.download_text(gettext)}" for status in statuses if status.location == "hub"]
        return {self._summary: text_line(" · ".join(parts))}

    def _render(
        self, comparison: Comparison | None, entries: Sequence[ComparisonEntry], latest: list[Comparison]
    ) -> str:
        if comparison is None:
            return render("comparison.html", comparison=None)
        undecided = comparison.chosen is None
        hidden = comparison.blind and undecided
        active = any(entry.active for entry in entries)
        num_images = sum(1 for entry in entries if entry.image)
        return render(
            "comparison.html",
            comparison=comparison,
            prompt=comparison.requests[0].prompt,
            seed=comparison.requests[0].seed,
            cells=[self._cell(position, entry, hidden) for position, entry in enumerate(entries)],
            active=active,
            can_vote=undecided and not active and num_images > 1,
            earlier=[(one.id, one.requests[0].prompt, winner_label(one)) for one in latest],
        )

    def _cell(self, position: int, entry: ComparisonEntry, hidden: bool) -> dict[str, Any]:
        request, job, image = entry.request, entry.job, entry.image
        name = gettext("Image {letter}", letter=ascii_uppercase[position]) if hidden else entry_label(request)
        details = []
        if image and not hidden:
            details = [
                format_duration(image.generation_time),
                f"{request.width} × {request.height}",
                ngettext("{number} step", "{number} steps", request.num_inference_steps or 0),
            ]
        text = "" if image else gettext("Not generated")
        if job and entry.active:
            # The progress text would reveal a hidden entry: it names the model and the steps
            step = job.progress if isinstance(job.progress, ProgressUpdate) else None
            percent = round(100 * step.fraction) if step else 0
            text = f"{percent} %" if hidden else progress_text(self._studio, job)
        elif job and job.error and not image:
            text = gettext("Something went wrong") if hidden else error_text(job.error)
        return {
            "position": position,
            "name": name,
            "ratio": (request.width or 1) / (request.height or 1),
            "image": image,
            "preview": preview_url(job.preview) if job and entry.active and job.preview else "",
            "active": entry.active,
            "text": text,
            "details": details,
        }


def entry_label(request: GenerationRequest) -> str:
    """Model and preset of an entry."""
    return f"{request.model_key}, {gettext(request.preset)}"


def winner_label(comparison: Comparison) -> str:
    """The winner of a comparison, if there was a vote."""
    if comparison.chosen is None:
        return gettext("no vote yet")
    return gettext("winner: {name}", name=entry_label(comparison.requests[comparison.chosen]))
