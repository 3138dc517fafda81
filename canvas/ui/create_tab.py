"""The tab where pictures are made: prompt, settings, the picture, the strip."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from canvas.errors import CanvasError
from canvas.history.third_party_metadata import read_metadata
from canvas.request import LOCAL, RANDOM_SEED
from canvas.ui import result_panel
from canvas.ui.events import bind, current_owner, toast_html
from canvas.ui.generation_form import GenerationForm
from canvas.ui.html_panel import panel, render
from canvas.ui.i18n import error_text, gettext
from canvas.ui.pickers import BackendPicker, LoraPicker

if TYPE_CHECKING:
    from canvas.studio import Studio

POLL_BUSY = 0.4  # seconds between two looks while something of this owner is being made
POLL_IDLE = 2.5  # seconds between two looks otherwise: another tab may have begun something
NO_EXACT_SIZE = "() => [0, 0]"


class CreateTab:
    """Layout and behaviour of the tab; other tabs fill its form through `controls`."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self.controls = GenerationForm(
            studio.models, studio.settings.model, studio.available_models
        )
        self.selected = gr.State(None)  # id of the picture that was picked; clicks write it
        self._last_rendered: gr.State = gr.State({})  # what the panels show; only looks write it
        self._saved = gr.BrowserState(None, storage_key="magic-canvas-form", secret="form")  # noqa: S106 - no secret: the reader's own form
        self._timer = gr.Timer(POLL_BUSY)
        self._lay_out()

    def _lay_out(self) -> None:
        with gr.Column(elem_id="wish"):
            self.controls.render("prompt")
            self._sent = panel("sent")
            with gr.Row(elem_id="wish-row"):
                self._settings_button = gr.Button(
                    "Settings", elem_id="drawer-button", size="sm", scale=0
                )
                self._summary = panel("summary")
                self.controls.render("preset")
                self._stop = gr.Button("Stop", elem_id="stop", scale=0, visible=False)
                self._generate = gr.Button(
                    "Generate", variant="primary", elem_id="generate", scale=0
                )
        with gr.Row(elem_id="desk"):
            with gr.Column(elem_id="easel"):
                self._stage = panel("stage")
                self._queue = panel("queue")
                self._strip = panel("strip")
            with gr.Column(elem_id="drawer", scale=0):
                self._lay_out_settings()

    def _lay_out_settings(self) -> None:
        self.controls.render("model_key")
        self._state = panel("model-state")
        self._where = BackendPicker(self._studio, self.controls)
        self.controls.render("style", "resolution", "aspect_ratio", "num_images")
        with gr.Row(elem_classes="seed-row"):
            self.controls.render("seed")
            self._random_seed_button = gr.Button("🎲 Random", size="sm", scale=0, elem_id="dice")
        self.controls.render("negative_prompt")
        with gr.Accordion("Advanced", open=False):
            self.controls.render("num_inference_steps", "guidance_scale", "scheduler")
            with gr.Row():
                self.controls.render("width", "height")
            self.controls.render("image_format", "quality")
            self.controls.render("prompt_weighting", "watermark")
        self._loras = LoraPicker(self._studio, "create")
        self._read = gr.UploadButton(
            "Take settings from a picture",
            file_types=["image"],
            size="sm",
            elem_id="read-picture",
        )

    def bind_events(self, page: gr.Blocks) -> None:
        """Connect what was laid out; call inside the page's context."""
        form = self.controls
        panels = {self._stage, self._queue, self._strip, self._stop, self._timer}
        live = panels | {self._last_rendered}
        bind(
            [self._generate.click, form["prompt"].submit],
            self.generate,
            form.widgets,
            panels | {self.selected},
            trigger_mode="multiple",  # every click counts, also while one is on its way
        )
        bind(self._stop.click, self.stop, {self.selected}, panels)
        for part in (self._stage, self._queue, self._strip):
            bind(
                part.click, self.on_click, {self.selected}, panels | form.widgets | {self.selected}
            )
        bind(self._timer.tick, self.poll, {self.selected, self._last_rendered}, live, queue=False)
        bind(page.load, self.poll, {self.selected, self._last_rendered}, live)
        bind(page.load, self.restore, {self._saved}, form.widgets | {self._state}).then(
            self.update_summary_on_load, form.widgets, self._load_outputs, api_visibility="private"
        )
        self._loras.bind_events(page, form["prompt"])
        self._wire_form()
        self._where.bind_events()

    @property
    def _summary_outputs(self) -> set[Any]:
        return {self._sent, self._summary, self._saved, self.controls["preset"]}

    @property
    def _load_outputs(self) -> set[Any]:
        return {self._summary, self.controls["preset"]}

    def _wire_form(self) -> None:
        form = self.controls
        bind(
            [form[name].change for name in form],
            self.update_summary,
            form.widgets,
            self._summary_outputs,
            trigger_mode="always_last",
            queue=False,
        )
        bind(
            form["model_key"].input,
            self.on_model_change,
            form.widgets,
            form.widgets | {self._state},
        ).then(self.ask_hub, form.widgets, {self._state}, api_visibility="private")
        bind(form["backend"].input, self.on_backend_change, form.widgets, {self._state})
        bind(form["preset"].input, self.on_preset_change, form.widgets, form.widgets)
        for name in ("resolution", "aspect_ratio"):
            bind(form[name].input, None, None, [form["width"], form["height"]], js=NO_EXACT_SIZE)
        bind(self._random_seed_button.click, None, None, [form["seed"]], js=f"() => {RANDOM_SEED}")
        bind(self._read.upload, self.load_settings, {self._read}, form.widgets | {self._read})
        bind(self._settings_button.click, None, js="() => magicCanvas.toggleDrawer()")

    # What the buttons do

    def generate(self, values: dict[Any, Any], request: gr.Request) -> dict[Any, Any]:
        """Queue what the form asks for and show it."""
        wish = self.controls.request(self.controls.read(values))
        self._studio.submit_expanded(wish, current_owner(request), "page")
        return {self.selected: None, **self._panels(current_owner(request), None)}

    def stop(self, values: dict[Any, Any], request: gr.Request) -> dict[Any, Any]:
        """Stop what is being made; what waits behind it goes on."""
        owner = current_owner(request)
        for job in self._studio.jobs(owner):
            if job.kind == "generate" and not job.finished and job.status != "queued":
                job.cancel()
        return self._panels(owner, values[self.selected])

    def on_click(
        self, values: dict[Any, Any], event: gr.EventData, request: gr.Request
    ) -> dict[Any, Any]:
        """A click on a picture, an example, or a waiting job."""
        owner, selected = current_owner(request), values[self.selected]
        if event.action == "example":
            return {self.controls["prompt"]: event.prompt}
        if event.action in ("use", "again"):
            wish = self._studio.image(int(event.image), owner).request
            again = event.action == "again"
            return self.controls.update_from_request(
                wish if again else replace(wish, seed=RANDOM_SEED)
            )
        if event.action == "remove":
            self._studio.job(str(event.job), owner).cancel()
        if event.action == "resume":
            self._studio.resume_job(str(event.job), owner)
        if event.action == "dismiss":
            self._studio.dismiss_job(str(event.job), owner)
        if event.action == "show":
            selected = self._studio.image(int(event.image), owner).id
        return {self.selected: selected, **self._panels(owner, selected)}

    # What the page shows by itself

    def poll(self, values: dict[Any, Any], request: gr.Request) -> dict[Any, Any]:
        """What has changed since the last look, so that a reload or another tab loses nothing."""
        owner, selected = current_owner(request), values[self.selected]
        panels = self._panels(owner, selected)
        # Clicks write the panels too: whenever jobs move on, everything is sent again
        moved = (selected, [(job.id, job.status) for job in self._studio.jobs(owner)])
        now = {place: hash(str((content, moved))) for place, content in enumerate(panels.values())}
        changed = [place for place in now if values[self._last_rendered].get(place) != now[place]]
        if not changed:
            return {self._last_rendered: gr.skip()}
        shown = list(panels.items())
        return {**dict(shown[place] for place in changed), self._last_rendered: now}

    def _panels(self, owner: str, selected: int | None) -> dict[Any, Any]:
        active = [job for job in self._studio.jobs(owner) if not job.finished]
        working = any(job.kind == "generate" and job.status != "queued" for job in active)
        return {
            self._stage: result_panel.render_current(self._studio, owner, selected),
            self._queue: result_panel.render_queue(self._studio, owner),
            self._strip: result_panel.render_recent(self._studio, owner, selected),
            self._stop: gr.update(visible=working),
            self._timer: gr.update(value=POLL_BUSY if active else POLL_IDLE),
        }

    def update_summary(self, values: dict[Any, Any]) -> dict[Any, Any]:
        """What the model will get and how long it takes; keeps the form in the browser."""
        fields = self.controls.read(values)
        try:
            request = self.controls.request(fields | {"prompt": fields["prompt"].strip() or "…"})
            wishes = self._studio.expand_prompt(request)
            words = (
                result_panel.render_enhanced_prompt(self._studio, wishes[0])
                if fields["prompt"].strip()
                else ""
            )
        except CanvasError as error:  # said in the line, not as a message at every key
            return {
                self._sent: "",
                self._summary: text_line(error_text(error), "wrong"),
                self._saved: fields,
            }
        summary = text_line(result_panel.request_summary(request, len(wishes)))
        if note := result_panel.preset_note(self._studio, request):
            summary += text_line(note)
        shown = {self._sent: words, self._summary: summary, self._saved: fields}
        presets = gr.Radio(choices=result_panel.preset_choices(self._studio, request))
        return {**shown, self.controls["preset"]: presets}

    def update_summary_on_load(self, values: dict[Any, Any]) -> dict[Any, Any]:
        """`describe` without the prompt, which the visitor may be writing by now."""
        described = self.update_summary(values)
        return {place: described[place] for place in self._load_outputs & described.keys()}

    def restore(self, values: dict[Any, Any]) -> dict[Any, Any]:
        """Put the form back as this browser left it."""
        updates = self.controls.restore(values[self._saved])
        where = updates.get(self.controls["backend"], LOCAL)
        return {**updates, self._state: self._state_line(self.controls.model_of(updates), where)}

    def on_model_change(self, values: dict[Any, Any]) -> dict[Any, Any]:
        """Set what suits the model and say what picking it means."""
        fields = self.controls.read(values)
        state = self._state_line(fields["model_key"], fields["backend"])
        return {
            **self.controls.update_for_model(fields["model_key"], fields["preset"]),
            self._state: state,
        }

    def on_backend_change(self, values: dict[Any, Any]) -> dict[Any, Any]:
        """Say of the model what counts there."""
        fields = self.controls.read(values)
        return {self._state: self._state_line(fields["model_key"], fields["backend"])}

    def on_preset_change(self, values: dict[Any, Any]) -> dict[Any, Any]:
        """Set what the mode does; Advanced shows it and may override it."""
        fields = self.controls.read(values)
        return self.controls.update_for_preset(fields["model_key"], fields["preset"])

    def load_settings(self, values: dict[Any, Any]) -> dict[Any, Any]:
        """Fill the form with what a picture says of itself; tells what could not be read."""
        path = Path(values[self._read])
        try:
            found = read_metadata(path, self._studio.models)
        finally:
            path.unlink(missing_ok=True)  # Gradio's copy of the upload: it has been read
        if not found.values:
            said = gettext("This picture says nothing about how it was made.")
            gr.Warning(toast_html(gettext("No settings"), said))
            return {self._read: gr.skip()}
        if found.warnings:
            title = gettext("Settings by {program}", program=found.program)
            gr.Info(toast_html(title, " ".join(found.warnings)))
        return self.controls.update_partial(found.values)

    def ask_hub(self, values: dict[Any, Any]) -> dict[Any, Any]:
        """The exact size of what would be downloaded, once the Hub has said it."""
        fields = self.controls.read(values)
        model_key = fields["model_key"]
        if fields["backend"] != LOCAL or self._studio.model_status(model_key).location != "hub":
            return {self._state: gr.skip()}
        try:
            state = self._studio.model_status(model_key, ask_hub=True)
            return {self._state: text_line(" · ".join(state.parts(gettext)))}
        except CanvasError as error:
            return {self._state: text_line(error_text(error), "wrong")}

    def _state_line(self, model_key: str, where: str) -> str:
        about = text_line(gettext(self._studio.models[model_key].description))
        if where != LOCAL:
            return about
        return about + text_line(" · ".join(self._studio.model_status(model_key).parts(gettext)))


def text_line(words: str, kind: str = "quiet") -> str:
    """One line of text as a panel shows it."""
    return render("line.html", words=words, kind=kind)
