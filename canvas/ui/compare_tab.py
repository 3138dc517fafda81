"""The tab where models are compared: one prompt and seed over several of them, one grid, a vote."""

from __future__ import annotations

from collections.abc import Mapping
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

import gradio as gr

from canvas.comparison import ComparisonEntry, ComparisonService
from canvas.errors import CanvasError, NotFound
from canvas.formatting import format_duration
from canvas.history.comparisons import Comparison
from canvas.presets import PRESETS
from canvas.request import RANDOM_SEED, GenerationRequest, ProgressUpdate
from canvas.ui.create_tab import CreateTab, text_line
from canvas.ui.events import bind, current_owner
from canvas.ui.html_panel import panel, render
from canvas.ui.i18n import error_text, gettext, ngettext
from canvas.ui.result_panel import data_url, progress_words

if TYPE_CHECKING:
    from canvas.studio import Studio

BUSY = 0.5  # seconds between two looks while the tab is open
EARLIER = 8  # comparisons that are listed below


class CompareTab:
    """Layout and behaviour of the tab; it looks at the jobs only while it is open."""

    def __init__(self, studio: Studio, create: CreateTab) -> None:
        self._studio = studio
        self._comparing = ComparisonService(studio)
        self._create = create
        self._shown = gr.State("")  # id of the comparison that was picked; none: the latest
        self._seen = gr.State("")
        self._timer = gr.Timer(BUSY, active=False)
        with gr.Column(elem_id="contest"):
            self._prompt = gr.Textbox(
                label="One prompt for all", lines=1, max_lines=6, elem_id="contest-prompt"
            )
            self._models = gr.CheckboxGroup(
                list(studio.models),
                value=[studio.settings.model],
                label="Models",
                elem_classes="pills",
            )
            with gr.Row(elem_id="contest-row"):
                self._modes = gr.CheckboxGroup(
                    [(preset.capitalize(), preset) for preset in PRESETS],
                    value=list(PRESETS),
                    label="Modes",
                    elem_classes="pills",
                    scale=2,
                )
                self._seed = gr.Number(
                    RANDOM_SEED, label="Seed, the same for all", precision=0, min_width=140
                )
                self._blind = gr.Checkbox(
                    label="Vote blind", info="Names and times are told afterwards", min_width=180
                )
            with gr.Row(elem_id="contest-deeds"):
                self._summary = panel("contest-summary")
                self._begin = gr.Button(
                    "Compare", variant="primary", elem_id="compare", scale=0, min_width=120
                )
        self._panel = panel("comparison")

    def bind_events(self, tab: gr.Tab, others: list[gr.Tab]) -> None:
        """Connect what was laid out; call inside the page's context."""
        form = {self._prompt, self._models, self._modes, self._seed, self._blind}
        now = {self._panel, self._shown, self._seen}
        created = self._create.controls["prompt"]
        bind(tab.select, lambda: gr.Timer(active=True), None, self._timer)
        bind([other.select for other in others], lambda: gr.Timer(active=False), None, self._timer)
        bind(tab.select, self.open, {self._prompt, created, self._shown}, {self._prompt, *now})
        bind([self._begin.click, self._prompt.submit], self.start, form, now)
        bind(self._panel.click, self.on_click, {self._shown}, now)
        bind(self._timer.tick, self.poll, {self._shown, self._seen}, now, queue=False)
        bind(
            [tab.select, *(widget.change for widget in (self._models, self._modes))],
            self.describe,
            {self._models, self._modes},
            {self._summary},
            trigger_mode="always_last",
        )

    def open(self, values: dict[Any, Any], request: gr.Request) -> dict[Any, Any]:
        """What is compared now; an empty prompt becomes that of Create."""
        words = values[self._prompt] or values[self._create.controls["prompt"]]
        return {self._prompt: words, **self._refresh(values[self._shown], current_owner(request))}

    def start(self, values: dict[Any, Any], request: gr.Request) -> dict[Any, Any]:
        """Queue what is to be compared and show it."""
        seed = RANDOM_SEED if values[self._seed] is None else values[self._seed]
        made = self._comparing.start(
            GenerationRequest(values[self._prompt], seed=seed),
            values[self._models],
            values[self._modes],
            blind=values[self._blind],
            owner=current_owner(request),
        )
        return self._refresh(made.id, current_owner(request))

    def on_click(
        self, values: dict[Any, Any], event: gr.EventData, request: gr.Request
    ) -> dict[Any, Any]:
        """A vote, a stop, or a look at an earlier comparison."""
        owner = current_owner(request)
        asked = self._comparing.get(str(event.comparison), owner)
        if event.action == "vote":
            self._comparing.vote(asked, int(event.place))
        elif event.action == "stop":
            self._comparing.stop(asked)
        return self._refresh(asked.id, owner)

    def poll(self, values: dict[Any, Any], request: gr.Request) -> dict[Any, Any]:
        """What has changed since the last look."""
        now = self._refresh(values[self._shown], current_owner(request))
        return {self._seen: gr.skip()} if now[self._seen] == values[self._seen] else now

    def describe(self, values: Mapping[Any, Any]) -> dict[Any, Any]:
        """How many pictures it will be, what is to be downloaded, how long it takes."""
        models, presets = values[self._models], values[self._modes]
        try:
            wishes = self._comparing.plan(GenerationRequest("…"), models, presets)
            seconds = [self._studio.estimate(wish) for wish in wishes]
            states = [self._studio.model_status(key) for key in models]
        except CanvasError as error:
            return {self._summary: text_line(error_text(error), "wrong")}
        words = [ngettext("{number} picture", "{number} pictures", len(wishes))]
        known = [one for one in seconds if one is not None]
        if known and len(known) == len(wishes):
            words.append(gettext("about {time}", time=format_duration(sum(known))))
        words += [
            f"{state.key}: " + gettext("{size} to download", size=state.download_size)
            for state in states
            if state.location == "hub"
        ]
        return {self._summary: text_line(" · ".join(words))}

    def _refresh(self, shown: str, owner: str) -> dict[Any, Any]:
        latest = self._comparing.latest(owner, EARLIER)
        try:
            picked = self._comparing.get(shown, owner) if shown else None
        except NotFound:  # everything was erased meanwhile
            picked = None
        picked = picked or (latest[0] if latest else None)
        html = self._html(picked, latest)
        return {self._panel: html, self._shown: picked.id if picked else "", self._seen: html}

    def _html(self, comparison: Comparison | None, latest: list[Comparison]) -> str:
        if comparison is None:
            return render("comparison.html", comparison=None)
        contenders = self._comparing.entries(comparison)
        hidden = comparison.blind and comparison.chosen is None
        active = any(contender.active for contender in contenders)
        return render(
            "comparison.html",
            comparison=comparison,
            prompt=comparison.requests[0].prompt,
            seed=comparison.requests[0].seed,
            cells=[
                self._cell(place, contender, hidden) for place, contender in enumerate(contenders)
            ],
            active=active,
            votable=not active
            and comparison.chosen is None
            and sum(1 for contender in contenders if contender.image) > 1,
            earlier=[(one.id, one.requests[0].prompt, winner_label(one)) for one in latest],
        )

    def _cell(self, place: int, contender: ComparisonEntry, hidden: bool) -> dict[str, Any]:
        request, job, image = contender.request, contender.job, contender.image
        step = job.progress if job and isinstance(job.progress, ProgressUpdate) else None
        facts = []
        if image and not hidden:
            facts = [
                format_duration(image.generation_time),
                f"{request.width} × {request.height}",
                ngettext("{number} step", "{number} steps", request.num_inference_steps or 0),
            ]
        words = "" if image else gettext("Not made")
        if job and contender.active:
            # What is loaded, and how many steps it takes, would tell who it is
            percent = round(100 * step.fraction) if step else 0
            words = f"{percent} %" if hidden else progress_words(self._studio, job)
        elif job and job.error and not image:
            words = gettext("This did not work") if hidden else error_text(job.error)
        return {
            "place": place,
            "name": gettext("Picture {letter}", letter=ascii_uppercase[place])
            if hidden
            else entry_label(request),
            "ratio": (request.width or 1) / (request.height or 1),
            "image": image,
            "preview": data_url(job.preview) if job and contender.active and job.preview else "",
            "active": contender.active,
            "words": words,
            "facts": facts,
        }


def entry_label(request: GenerationRequest) -> str:
    """Who made it."""
    return f"{request.model_key}, {gettext(request.preset)}"


def winner_label(comparison: Comparison) -> str:
    """Who won a comparison."""
    if comparison.chosen is None:
        return gettext("no vote yet")
    return gettext("chosen: {name}", name=entry_label(comparison.requests[comparison.chosen]))
