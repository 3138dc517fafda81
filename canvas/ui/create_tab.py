"""The Create tab: prompt, settings, result, queue, recent images, and the offer of a first model."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gradio as gr

from canvas.errors import CanvasError
from canvas.history.third_party_metadata import read_metadata
from canvas.jobs.job import Job
from canvas.model_status import SUGGESTED, ModelStatus
from canvas.request import LOCAL, RANDOM_SEED
from canvas.studio import Studio
from canvas.ui import result_panel
from canvas.ui.events import EVERY_CLICK, bind, bind_select_model, current_owner, toast_html
from canvas.ui.generation_form import (
    BackendPicker,
    GenerationForm,
    LoraPicker,
    model_choices,
    model_title,
    require_prompt,
)
from canvas.ui.guidance_panel import GuidancePanel
from canvas.ui.html_panel import error_line, panel, render, text_line
from canvas.ui.i18n import error_text, gettext, translate_message
from canvas.ui.result_panel import CHANGING_ACTIONS, OPENING_ACTIONS, ImageActions

if TYPE_CHECKING:
    from canvas.ui.edit_tab import EditTab

POLL_BUSY = 0.4  # seconds between polls while a job of this owner is active
POLL_IDLE = 2.5  # seconds between polls otherwise: another tab or program may start a job
POLL_DOWNLOAD = 1.0  # seconds between polls while the first model is downloaded
STARTER = "starter"
RESET_EXACT_SIZE = "() => [0, 0]"


class CreateTab:
    """Layout and callbacks of the tab; other tabs update its `form`, `guidance` and `selected`."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self.form = GenerationForm(
            studio.models, studio.settings.model, studio.available_models, studio.model_capabilities
        )
        self.selected = gr.State(None)  # id of the selected image
        # That of the form, whose list need not have it any more, at which Gradio would fail in every `poll`
        self._model_key = gr.State(studio.settings.model)
        self._last_rendered: gr.State = gr.State({})  # hashes of what `poll` sent last
        self._refresh = gr.State(0.0)  # time of the latest click, which triggers `poll`
        self._saved = gr.BrowserState(None, storage_key="magic-canvas-form", secret="form")  # noqa: S106 - no secret: the visitor's own form
        self._restored = gr.State(False)  # whether the form has what `_saved` holds
        self._timer = gr.Timer(POLL_BUSY)
        with gr.Row(elem_id="workspace"):
            with gr.Column(elem_id="create-form", scale=0):
                with gr.Column(elem_id="prompt-form"):
                    self._render_form()
                with gr.Column(elem_id="settings-panel"):
                    self._render_settings()
            with gr.Column(elem_id="result"):
                self._starter_card = StarterCard(self._studio)
                self._undo = panel("undo")
                self._lightbox = panel("lightbox")
                self._current = panel("current-result")
                self._queue = panel("queue")
                self._recent = panel("recent")

    def _render_form(self) -> None:
        """What every image needs; everything else is in the panel that "Advanced" opens."""
        self.form.render("prompt", "model_key")
        self._model_status = panel("model-status")
        with gr.Row(elem_id="size"):
            self.form.render("aspect_ratio", "resolution")
        self.form.render("num_images", "preset")
        self._summary = panel("summary")
        with gr.Row(elem_id="prompt-actions"):
            self._settings_button = gr.Button("Advanced", elem_id="settings-button", size="sm", scale=0)
            self._stop = gr.Button("Stop", elem_id="stop", scale=0, visible=False)
            self._generate = gr.Button("Generate", variant="primary", elem_id="generate")
        self._enhanced_prompt = panel("enhanced-prompt")  # below the button, so that typing does not move it

    def _render_settings(self) -> None:
        self._load_settings = gr.UploadButton(
            "Load settings from an image", file_types=["image"], size="sm", elem_id="load-settings"
        )
        self.form.render("style", "negative_prompt")
        self._backend_picker = BackendPicker(self._studio, self.form)
        with gr.Row(elem_classes="seed-row"):
            self.form.render("seed")
            self._random_seed = gr.Button("Random", size="sm", scale=0, elem_id="random-seed")
        self.form.render("num_inference_steps", "guidance_scale", "scheduler")
        with gr.Row():
            self.form.render("width", "height")
        gr.Markdown("For larger images, upscale the result.", elem_classes="text-line")
        self.form.render("image_format", "quality", "prompt_weighting", "watermark")
        self._lora_picker = LoraPicker(self._studio, "create")
        self.guidance = GuidancePanel(self._studio, "create")
        self._close_settings = gr.Button("Close", size="sm", elem_id="close-settings")

    def bind_events(self, page: gr.Blocks, tab: gr.Tab, edit: EditTab, tabs: gr.Tabs) -> None:
        form = self.form
        self._actions = ImageActions(self._studio, self, edit, tabs)
        # Clicks do not write the panels: an answer that arrives after that of a later poll would
        # bring back what it replaced. One event writes them, and does not overlap with itself.
        bind(
            [self._timer.tick, self._refresh.change, self._model_key.change, page.load],
            self.poll,
            {self.selected, self._model_key, self._last_rendered},
            {self._current, self._queue, self._recent, self._stop, self._timer, self._last_rendered},
            trigger_mode="always_last",
            queue=False,
        )
        bind(
            [self._generate.click, form["prompt"].submit],
            self.generate,
            form.widgets | self.guidance.widgets,
            {self._refresh, self.selected, self._undo},
            **EVERY_CLICK,
        )
        bind(self._stop.click, self.stop, None, self._refresh)
        clicked = [self._current.click, self._queue.click, self._recent.click, self._undo.click]
        outputs = {self._refresh, self._undo} | self._actions.outputs
        bind(clicked, self.on_click, {self.selected}, outputs, **self._actions.options)
        bind(page.load, lambda: render("lightbox.html"), None, self._lightbox)
        bind(page.load, self.restore, {self._saved}, form.widgets | {self._model_status, self._restored})
        self._bind_form(page)
        self._starter_card.bind_events([page.load, tab.select], self.select_model, self.select_model_outputs)
        self._lora_picker.bind_events(page, form["prompt"])
        self._backend_picker.bind_events()
        self.guidance.bind_events(form["model_key"])

    def _bind_form(self, page: gr.Blocks) -> None:
        form = self.form
        bind(
            [self._restored.change, *(form[name].change for name in form), *self.guidance.changes],
            self.update_summary,
            form.widgets | self.guidance.widgets,
            {self._enhanced_prompt, self._summary, self._saved, form["preset"]},
            trigger_mode="always_last",
            queue=False,
        )
        status = {self._model_status}
        # On focus, too: another tab or program may have downloaded or added a model
        bind([page.load, form["model_key"].focus], self.list_models, None, {form["model_key"]})
        bind(form["model_key"].change, lambda model_key: model_key, form["model_key"], self._model_key)
        bind(form["model_key"].input, self.on_model_change, form.widgets, form.widgets | status).then(
            self.show_download_size, form.widgets, status, api_visibility="private"
        )
        bind_select_model(self._enhanced_prompt, self.select_model, self.select_model_outputs)
        bind(form["backend"].input, self.on_backend_change, form.widgets, status)
        bind(form["preset"].input, self.on_preset_change, form.widgets, form.widgets)
        for name in ("resolution", "aspect_ratio"):
            bind(form[name].input, None, None, [form["width"], form["height"]], js=RESET_EXACT_SIZE)
        bind(self._random_seed.click, None, None, [form["seed"]], js=f"() => {RANDOM_SEED}")
        upload = self._load_settings
        bind(upload.upload, self.load_settings, {upload}, form.widgets | self.guidance.outputs | {upload})
        for button in (self._settings_button, self._close_settings):
            bind(button.click, None, js="() => magicCanvas.toggleSettings()")

    # Buttons and clicks

    def generate(self, values: dict[Any, Any], http_request: gr.Request) -> dict[Any, Any]:
        """Submit the request of the form as one job, whose result shows the images of all its prompts."""
        owner, fields = current_owner(http_request), self.form.read(values)
        require_prompt(fields)
        request = self.guidance.apply(self.form.to_request(fields), values)
        self._studio.submit(request, owner, "page")
        return {self.selected: None, self._undo: "", self._refresh: time.time()}

    def stop(self, http_request: gr.Request) -> float:
        for job in self._studio.jobs(current_owner(http_request)):
            if job.kind == "generate" and not job.finished and job.status != "queued":
                job.cancel()
        return time.time()

    def on_click(self, values: dict[Any, Any], event: gr.EventData, http_request: gr.Request) -> dict[Any, Any]:
        """An action of the result, the queue, the recent images or the examples."""
        owner, selected, undo = current_owner(http_request), values[self.selected], ""
        if event.action == "example":
            return {self.form["prompt"]: event.prompt}
        if event.action in OPENING_ACTIONS:
            updates = self._actions.open(event, owner)
            return {**updates, self._refresh: time.time()}
        if event.action in CHANGING_ACTIONS:
            undo = self._actions.change(event, owner)
        if event.action == "remove":
            self._studio.job(str(event.job), owner).cancel()
        if event.action == "clear_queue":
            self._studio.clear_queue(owner)
        if event.action == "resume":
            self._studio.resume_job(str(event.job), owner)
        if event.action == "dismiss":
            self._studio.dismiss_job(str(event.job), owner)
        if event.action == "show":
            selected = self._studio.image(int(event.image), owner).id
        return {self.selected: selected, self._undo: undo, self._refresh: time.time()}

    def load_settings(self, values: dict[Any, Any], http_request: gr.Request) -> dict[Any, Any]:
        """Fill the form with the settings embedded in an uploaded image."""
        upload, owner = values[self._load_settings], current_owner(http_request)
        with self._studio.temp_files.take(upload, owner) as path:
            imported = read_metadata(path, self._studio.models)
        if not imported.values:
            gr.Warning(toast_html(gettext("No settings found"), gettext("The image contains no generation settings.")))
            return {self._load_settings: gr.skip()}
        if imported.warnings:
            title = gettext("Settings from {program}", program=imported.program)
            gr.Info(toast_html(title, " ".join(imported.warnings)))
        request = self.form.request_from(imported.values)
        updates = self.form.update_from_request(request)
        if "prompt" not in imported.values:
            updates.pop(self.form["prompt"])
        return updates | self.guidance.restore(request, owner)

    # Jobs and images

    def poll(self, values: dict[Any, Any], http_request: gr.Request) -> dict[Any, Any]:
        """Update the panels that have changed, also by another tab or another program."""
        owner, selected = current_owner(http_request), values[self.selected]
        panels = self._panels(owner, selected, values[self._model_key])
        # When a job changes its status, everything is sent again: an answer may have been lost
        state = (selected, [(job.id, job.status) for job in self._studio.jobs(owner)])
        hashes = {index: hash(str((content, state))) for index, content in enumerate(panels.values())}
        last = values[self._last_rendered]
        changed = {panel: panels[panel] for index, panel in enumerate(panels) if last.get(index) != hashes[index]}
        return {**changed, self._last_rendered: hashes if changed else gr.skip()}

    def _panels(self, owner: str, selected: int | None, model_key: str) -> dict[Any, Any]:
        active = [job for job in self._studio.jobs(owner) if not job.finished]
        running = any(job.kind == "generate" and job.status != "queued" for job in active)
        return {
            self._current: result_panel.render_current(self._studio, owner, selected, model_key),
            self._queue: result_panel.render_queue(self._studio, owner),
            self._recent: result_panel.render_recent(self._studio, owner, selected),
            self._stop: gr.update(visible=running),
            self._timer: gr.update(value=POLL_BUSY if active else POLL_IDLE),
        }

    # The form

    def update_summary(self, values: dict[Any, Any]) -> dict[Any, Any]:
        """Show what the model gets and how long it takes; save the form in the browser."""
        fields = self.form.read(values)
        prompt = fields["prompt"].strip()
        try:
            request = self.guidance.apply(self.form.to_request(fields | {"prompt": prompt or "…"}), values)
            requests = self._studio.expand_prompt(request)
            enhanced = result_panel.render_prompt_hints(self._studio, requests[0]) if prompt else ""
        except CanvasError as error:  # in the line, as a toast for every key would be too much
            return {self._enhanced_prompt: "", self._summary: error_line(error), self._saved: fields}
        summary = text_line(result_panel.request_summary(request, len(requests)))
        if note := result_panel.preset_note(self._studio, request):
            summary += text_line(note)
        return {
            self._enhanced_prompt: enhanced,
            self._summary: summary,
            self._saved: fields,
            self.form["preset"]: gr.Radio(choices=result_panel.preset_choices(self._studio, request)),
        }

    def restore(self, values: dict[Any, Any]) -> dict[Any, Any]:
        updates = self.form.restore(values[self._saved])
        backend = updates.get(self.form["backend"], LOCAL)
        return {**updates, **self._update_model_status(self.form.model_of(updates), backend), self._restored: True}

    def on_model_change(self, values: dict[Any, Any]) -> dict[Any, Any]:
        fields = self.form.read(values)
        updates = self.form.update_for_model(fields["model_key"], fields["preset"])
        return updates | self._update_model_status(fields["model_key"], fields["backend"])

    def select_model(self, model_key: str) -> dict[Any, Any]:
        """Updates of the form and the model's status that select a model."""
        form = self.form
        return {
            **form.update_for_model(model_key),
            **self._update_model_status(model_key, LOCAL),
            form["model_key"]: gr.Dropdown(choices=self._model_choices(), value=model_key),
            form["backend"]: LOCAL,
            form["preset"]: "quality",
        }

    @property
    def select_model_outputs(self) -> set[Any]:
        """The components that `select_model` updates."""
        return self.form.widgets | {self._model_status}

    def on_backend_change(self, values: dict[Any, Any]) -> dict[Any, Any]:
        """Show the model's status, which matters on this computer only."""
        fields = self.form.read(values)
        return self._update_model_status(fields["model_key"], fields["backend"])

    def list_models(self) -> dict[Any, Any]:
        """The models to choose from, each with whether it is downloaded."""
        return {self.form["model_key"]: gr.Dropdown(choices=self._model_choices())}

    def _model_choices(self) -> list[tuple[str, str]]:
        keys = dict.fromkeys([*self._studio.available_models, self._studio.settings.model])
        return model_choices(self._studio, keys)

    def on_preset_change(self, values: dict[Any, Any]) -> dict[Any, Any]:
        fields = self.form.read(values)
        return self.form.update_for_preset(fields["model_key"], fields["preset"])

    def show_download_size(self, values: dict[Any, Any]) -> dict[Any, Any]:
        """Show the exact size of the model's download, which the Hub knows."""
        fields = self.form.read(values)
        model_key = fields["model_key"]
        if fields["backend"] != LOCAL or self._studio.model_status(model_key).location != "hub":
            return {self._model_status: gr.skip()}
        try:
            status = self._studio.model_status(model_key, ask_hub=True)
        except CanvasError as error:  # the size and licence of the catalog stay
            status = self._studio.model_status(model_key)
            return {self._model_status: _status_line(status) + error_line(error)}
        return {self._model_status: _status_line(status)}

    def _update_model_status(self, model_key: str, backend: str) -> dict[Any, Any]:
        shown = backend == LOCAL
        return {self._model_status: _status_line(self._studio.model_status(model_key)) if shown else ""}


class StarterCard:
    """Offers a first model to download, chosen for this computer.

    Empty on public servers and once a model is downloaded.
    """

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._panel = panel("starter-card")
        self._dismissed = gr.BrowserState(False, storage_key="magic-canvas-starter-card", secret="card")  # noqa: S106 - no secret
        self._job = gr.State("")  # id of the download
        self._timer = gr.Timer(POLL_DOWNLOAD, active=False)

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
        html = render(
            "starter_card.html",
            job=job,
            title=model_title(self._studio.models[job.model_key]),
            text=result_panel.download_text(job),
            percent=result_panel.download_percent(job),
        )
        return {self._panel: html, self._timer: gr.Timer(active=True), self._job: job.id}

    def _hide(self) -> dict[Any, Any]:
        return {self._panel: "", self._timer: gr.Timer(active=False), self._job: ""}


def _status_line(status: ModelStatus) -> str:
    """What using a model takes: its download, or its memory where that is limited."""
    parts = status.parts(gettext, translate_message, brief=True)
    return text_line(" · ".join(parts)) if status.location == "hub" or len(parts) > 1 else ""
