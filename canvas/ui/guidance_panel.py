"""The section "Guide by an image" of the Create and Edit tabs: a control image and a reference image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import gradio as gr

from canvas.errors import CanvasError
from canvas.formatting import format_bytes
from canvas.guidance import AUTO, ControlImage, ReferenceImage
from canvas.models import controlnets
from canvas.request import GenerationRequest
from canvas.studio import Studio
from canvas.ui.events import bind
from canvas.ui.html_panel import error_line, panel, render, text_line
from canvas.ui.i18n import gettext
from canvas.ui.result_panel import preview_url

KIND_LABELS: Mapping[str, str] = MappingProxyType(
    {
        AUTO: "Recognize",
        "canny": "Canny edges",
        "lineart": "Line art",
        "scribble": "Scribble",
        "soft_edge": "Soft edges",
        "depth": "Depth",
        "pose": "Pose",
        "tile": "Details (tile)",
    }
)
REFERENCE_LABELS: Mapping[str, str] = MappingProxyType({"subject": "Subject", "style": "Style", "face": "Face"})


class GuidancePanel:
    """Renders the section; `apply` adds its images to a request, from the values of `widgets`.

    Images are stored when they are chosen, and the form has their names.
    """

    def __init__(self, studio: Studio, elem_id_prefix: str) -> None:
        self._studio = studio
        with gr.Accordion("Guide by an image", open=False, elem_classes="guidance-panel"):
            self._control = self._image("Control image: its structure is followed", f"{elem_id_prefix}-control-image")
            self._control_name = gr.State("")
            kinds = [(label, kind) for kind, label in KIND_LABELS.items()]
            self._kind = gr.Dropdown(kinds, value=AUTO, label="Kind", elem_id=f"{elem_id_prefix}-control-kind")
            self._seen = panel(f"{elem_id_prefix}-control-preview")
            own = [(name, name) for name in controlnets.list_names(studio.settings.controlnets_dir)]
            self._model = gr.Dropdown(
                [("Usual for the kind", ""), *own],
                value="",
                allow_custom_value=True,
                label="ControlNet",
                elem_id=f"{elem_id_prefix}-controlnet",
            )
            self._weight = gr.Slider(0, 2, value=1, step=0.05, label="Control strength", buttons=[])
            with gr.Row():
                self._start = gr.Slider(0, 0.95, value=0, step=0.05, label="Start", min_width=100, buttons=[])
                self._end = gr.Slider(0.05, 1, value=1, step=0.05, label="End", min_width=100, buttons=[])
            label = "Reference image: its subject, style or face is taken on"
            self._reference = self._image(label, f"{elem_id_prefix}-reference-image")
            self._reference_name = gr.State("")
            references = [(label, kind) for kind, label in REFERENCE_LABELS.items()]
            self._reference_kind = gr.Radio(references, value="subject", label="Takes on")
            self._reference_weight = gr.Slider(0, 2, value=0.6, step=0.05, label="Reference strength", buttons=[])

    @staticmethod
    def _image(label: str, elem_id: str) -> gr.Image:
        sources: Any = ("upload", "clipboard")
        return gr.Image(type="pil", image_mode=None, label=label, sources=sources, height=180, elem_id=elem_id)

    @property
    def widgets(self) -> set[Any]:
        """The inputs that `apply` needs."""
        control = {self._control_name, self._kind, self._model, self._weight, self._start, self._end}
        return control | {self._reference_name, self._reference_kind, self._reference_weight}

    def bind_events(self, model_key: Any) -> None:
        """`model_key` is the widget that selects the model."""
        self._model_key = model_key
        shown = {self._control_name, self._kind, self._seen}
        inputs = {self._control, self._kind, self._model, model_key}
        bind(self._control.change, self.choose_control, inputs, shown)
        bind([self._kind.input, self._model.input], self.show_control, inputs, {self._seen})
        bind(self._reference.change, self.choose_reference, {self._reference}, {self._reference_name})

    def choose_control(self, values: Mapping[Any, Any]) -> dict[Any, Any]:
        """Store the image and show what the model will see of it; another image is recognized anew."""
        image = values[self._control]
        if image is None:
            return {self._control_name: "", self._kind: gr.skip(), self._seen: ""}
        name = self._studio.inputs.upload(image, "control_images").name
        shown = self.show_control({**values, self._kind: AUTO})
        return {self._control_name: name, self._kind: AUTO, **shown}

    def show_control(self, values: Mapping[Any, Any]) -> dict[Any, Any]:
        """Show what the model will see, of which kind it is and what has to be downloaded."""
        image, kind, model_key = (values[widget] for widget in (self._control, self._kind, self._model_key))
        if image is None:
            return {self._seen: ""}
        lines = []
        try:
            item, seen = self._studio.control_preview(image, ControlImage("", kind))
            label = gettext(KIND_LABELS[item.kind])
            text = gettext("{kind}: detected in the image.", kind=label)
            if not item.detect:
                text = gettext("{kind}: the image is used as it is.", kind=label)
            lines.append(render("control_preview.html", preview=preview_url(seen), text=text))
        except CanvasError as error:
            item = ControlImage("", kind, detect=True)
            lines.append(error_line(error))
        if values[self._model]:
            return {self._seen: "".join(lines)}
        try:
            size = self._studio.control_download_size(item.kind, model_key, detect=bool(item.detect))
            if size:
                lines.append(text_line(gettext("{size} download with the first image", size=format_bytes(size))))
        except CanvasError as error:
            lines.append(error_line(error))
        return {self._seen: "".join(lines)}

    def choose_reference(self, values: Mapping[Any, Any]) -> dict[Any, Any]:
        image = values[self._reference]
        name = self._studio.inputs.upload(image, "reference_images").name if image is not None else ""
        return {self._reference_name: name}

    def apply(self, request: GenerationRequest, values: Mapping[Any, Any]) -> GenerationRequest:
        """The request with the images of the section; raises InvalidInput."""
        if name := values[self._control_name]:
            weight, start, end = (values[widget] for widget in (self._weight, self._start, self._end))
            model = (values[self._model] or "").strip()
            item = ControlImage(name, values[self._kind], weight, start, end, model=model)
            request = replace(request, control_images=(item,))
        if name := values[self._reference_name]:
            reference = ReferenceImage(name, values[self._reference_weight], values[self._reference_kind])
            request = replace(request, reference_images=(reference,))
        return request
