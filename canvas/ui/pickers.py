"""Form parts shared by the tabs: where to run a request, and which LoRA to add to a prompt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import gradio as gr

from canvas.catalog import get_model
from canvas.errors import CanvasError
from canvas.request import BACKENDS, LOCAL
from canvas.studio import Studio
from canvas.ui.events import bind, current_owner, toast_html
from canvas.ui.generation_form import GenerationForm, model_title
from canvas.ui.html_panel import error_line, panel, render
from canvas.ui.i18n import format_bytes, gettext, translate_message


def model_choices(studio: Studio, keys: Iterable[str]) -> list[tuple[str, str]]:
    """The choices of a model widget: name, what it draws, size and whether it is downloaded; and the keys."""
    return [(" · ".join(_model_label(studio, key)), key) for key in keys]


def _model_label(studio: Studio, key: str) -> list[str]:
    spec = studio.models[key]
    parts = [model_title(spec), gettext(spec.specialty) if spec.specialty else ""]
    if spec.is_local:
        parts.append(gettext("no download"))
    else:
        parts += [spec.size, gettext("downloaded") if studio.is_on_disk(key) else gettext("not downloaded")]
    return [part for part in parts if part]


class BackendPicker:
    """The choice of a backend and the consent that a remote one requires.

    Hidden when only this computer is available.
    """

    def __init__(self, studio: Studio, form: GenerationForm) -> None:
        self._studio = studio
        self._form = form
        form.render("backend")
        available = studio.remote_backends.available()
        form["backend"].choices = [(BACKENDS[backend], backend) for backend in available]
        form["backend"].visible = len(available) > 1
        self._consent = panel("consent")

    def bind_events(self) -> None:
        # Not the whole form: its size may have the range of the model that was just selected
        inputs = [self._form["backend"], self._form["model_key"]]
        bind([widget.change for widget in inputs], self.show, inputs, self._consent)
        bind(self._consent.click, self.grant_consent, inputs, self._consent)

    def show(self, backend: str, model_key: str, http_request: gr.Request) -> str:
        """What is sent to the backend and what it costs, with the button to agree."""
        spec, remote = get_model(model_key, self._studio.models), self._studio.remote_backends
        return render(
            "consent.html",
            backend=backend,
            model=model_key,
            unavailable=translate_message(remote.unavailable_reason(backend, spec) or ""),
            terms="" if backend == LOCAL else translate_message(remote.consent_text(backend, spec)),
            agreed=remote.has_consent(current_owner(http_request), backend, spec),
        )

    def grant_consent(self, backend: str, model_key: str, event: gr.EventData, http_request: gr.Request) -> str:
        """Record consent to the terms above the button, even if the form has changed since."""
        spec = get_model(str(event.model), self._studio.models)
        self._studio.remote_backends.grant_consent(current_owner(http_request), str(event.backend), spec)
        return self.show(backend, model_key, http_request)


class LoraPicker:
    """Selects a LoRA and writes it into a prompt as `<lora:name:weight>`."""

    def __init__(self, studio: Studio, elem_id_prefix: str) -> None:
        self._studio = studio
        with gr.Accordion("LoRA", open=False, elem_classes="lora-picker"):
            self._name = gr.Dropdown(
                [],
                value=None,
                allow_custom_value=True,
                label="LoRA",
                info="A file in loras/, or owner/name on the Hub",
                elem_id=f"{elem_id_prefix}-lora",
            )
            self._weight = gr.Slider(-2, 2, value=1, step=0.05, label="Weight", buttons=[])
            self._info = panel(f"{elem_id_prefix}-lora-info")
            self._add = gr.Button("Add to prompt", size="sm")

    def bind_events(self, page: gr.Blocks, prompt: gr.Textbox) -> None:
        self._prompt = prompt
        bind([page.load, self._name.focus], self.list, None, {self._name})
        bind(self._name.change, self.show_info, {self._name}, {self._info})
        bind(self._add.click, self.insert_tag, {self._name, self._weight, prompt}, {prompt})
        bind(self._info.click, self.insert_trigger_word, {prompt}, {prompt})

    def list(self) -> dict[Any, Any]:
        return {self._name: gr.Dropdown(choices=list(self._studio.inputs.list_loras()))}

    def show_info(self, values: Mapping[Any, Any]) -> dict[Any, Any]:
        """The LoRA's base model and trigger words, or the size of its download."""
        name = (values[self._name] or "").strip()
        if not name:
            return {self._info: ""}
        try:
            lora = self._studio.inputs.get_lora(name)
            size = None if lora else self._studio.inputs.lora_download_size(name)
        except CanvasError as error:
            return {self._info: error_line(error)}
        download = "" if size is None else gettext("{size} download with the first image", size=format_bytes(size))
        return {self._info: render("lora.html", lora=lora, download=download)}

    def insert_tag(self, values: Mapping[Any, Any]) -> dict[Any, Any]:
        name = (values[self._name] or "").strip()
        if not name:
            hint = gettext("Select a LoRA first, or enter the owner/name of one on the Hub.")
            gr.Warning(toast_html(gettext("No LoRA selected"), hint))
            return {self._prompt: gr.skip()}
        prompt = values[self._prompt]
        return {self._prompt: f"{prompt} <lora:{name}:{values[self._weight]:g}>".strip()}

    def insert_trigger_word(self, values: Mapping[Any, Any], event: gr.EventData) -> dict[Any, Any]:
        """Append a trigger word to the prompt unless it is there already."""
        prompt = values[self._prompt].strip()
        if event.word in prompt:
            return {self._prompt: gr.skip()}
        return {self._prompt: ", ".join(part for part in (prompt, event.word) if part)}
