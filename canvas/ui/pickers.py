"""Wearing LoRAs: pick one, see what it is and takes, put it and its words into a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import gradio as gr

from canvas.catalog import get_model
from canvas.errors import CanvasError
from canvas.formatting import format_bytes
from canvas.request import BACKENDS, LOCAL
from canvas.ui.events import bind, current_owner, toast_html
from canvas.ui.generation_form import GenerationForm
from canvas.ui.html_panel import panel, render
from canvas.ui.i18n import error_text, gettext, translate_message

if TYPE_CHECKING:
    from canvas.studio import Studio


class BackendPicker:
    """Lays out the choice in the form; not seen where there is only this computer."""

    def __init__(self, studio: Studio, controls: GenerationForm) -> None:
        self._studio = studio
        self._controls = controls
        controls.render("backend")
        offered = studio.remote_backends.available()
        controls["backend"].choices = [(BACKENDS[place], place) for place in offered]
        controls["backend"].visible = len(offered) > 1
        self._terms = panel("elsewhere")

    def bind_events(self) -> None:
        """Connect what was laid out; call inside the page's context."""
        form = self._controls
        # Not the whole form: a size may come with the bounds of the model that was just picked
        asked = [form["backend"], form["model_key"]]
        bind([widget.change for widget in asked], self.show, asked, self._terms)
        bind(self._terms.click, self.agree, asked, self._terms)

    def show(self, where: str, model_key: str, request: gr.Request) -> str:
        """Who would get what, and what it costs."""
        spec, elsewhere = get_model(model_key, self._studio.models), self._studio.remote_backends
        return render(
            "elsewhere.html",
            where=where,
            model=model_key,
            missing=translate_message(elsewhere.unavailable_reason(where, spec) or ""),
            terms="" if where == LOCAL else translate_message(elsewhere.consent_text(where, spec)),
            agreed=elsewhere.has_consent(current_owner(request), where, spec),
        )

    def agree(self, where: str, model_key: str, event: gr.EventData, request: gr.Request) -> str:
        """The user agrees to what stands above the button, even if the form has moved on."""
        spec = get_model(str(event.model), self._studio.models)
        self._studio.remote_backends.grant_consent(current_owner(request), str(event.where), spec)
        return self.show(where, model_key, request)


class LoraPicker:
    """Layout and behaviour; writes into a prompt as `<lora:name:weight>`."""

    def __init__(self, studio: Studio, place: str) -> None:
        self._studio = studio
        with gr.Accordion("LoRA", open=False, elem_classes="lora-picker"):
            self._name = gr.Dropdown(
                [],
                value=None,
                allow_custom_value=True,
                label="LoRA",
                info="From the folder loras/, or owner/name of the Hub",
                elem_id=f"{place}-lora",
            )
            self._weight = gr.Slider(-2, 2, value=1, step=0.05, label="Weight", buttons=[])
            self._about = panel(f"{place}-lora-about")
            self._wear = gr.Button("Add to the prompt", size="sm")

    def bind_events(self, page: gr.Blocks, prompt: gr.Textbox) -> None:
        """Connect it to the prompt that it writes into; call inside the page's context."""
        self._prompt = prompt
        inputs = {self._name, self._weight, prompt}
        bind([page.load, self._name.focus], self.list, None, {self._name})
        bind(self._name.change, self.show_info, {self._name}, {self._about})
        bind(self._wear.click, self.insert_tag, inputs, {prompt})
        bind(self._about.click, self.insert_trigger_word, {prompt}, {prompt})

    def list(self) -> dict[Any, Any]:
        """The files of the folder as they are now."""
        return {self._name: gr.Dropdown(choices=list(self._studio.inputs.list_loras()))}

    def show_info(self, values: Mapping[Any, Any]) -> dict[Any, Any]:
        """What the LoRA was made for and its words, or what fetching it takes."""
        name = (values[self._name] or "").strip()
        if not name:
            return {self._about: ""}
        try:
            lora = self._studio.inputs.get_lora(name)
            size = None if lora else self._studio.inputs.lora_download_size(name)
        except CanvasError as error:
            return {self._about: render("line.html", words=error_text(error), kind="wrong")}
        told = ""
        if size is not None:
            told = gettext("{size} to download with the first picture", size=format_bytes(size))
        return {self._about: render("lora.html", lora=lora, told=told)}

    def insert_tag(self, values: Mapping[Any, Any]) -> dict[Any, Any]:
        """Put the LoRA with its weight behind the prompt."""
        name = (values[self._name] or "").strip()
        if not name:
            which = gettext("Pick a LoRA first, or write owner/name of one on the Hub.")
            gr.Warning(toast_html(gettext("Which?"), which))
            return {self._prompt: gr.skip()}
        written = values[self._prompt]
        return {self._prompt: f"{written} <lora:{name}:{values[self._weight]:g}>".strip()}

    def insert_trigger_word(self, values: Mapping[Any, Any], event: gr.EventData) -> dict[Any, Any]:
        """Put one of its words into the prompt, once."""
        written = values[self._prompt].strip()
        if event.word in written:
            return {self._prompt: gr.skip()}
        return {self._prompt: ", ".join(part for part in (written, event.word) if part)}
