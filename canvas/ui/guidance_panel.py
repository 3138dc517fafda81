"""The section "Guide by an image" of the Create and Edit tabs: control images and reference images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import gradio as gr
from PIL.Image import Image

from canvas.errors import CanvasError, InvalidInput, LazyMessage
from canvas.formatting import format_bytes
from canvas.guidance import AUTO, MAX_CONTROL_IMAGES, MAX_REFERENCE_IMAGES, ControlImage, ReferenceImage
from canvas.models import controlnets
from canvas.request import GenerationRequest
from canvas.studio import Studio
from canvas.ui.events import bind, current_owner, toast_html
from canvas.ui.html_panel import error_line, panel, render, text_line
from canvas.ui.i18n import gettext, ngettext
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
NO_CONTROL, NO_REFERENCE = ControlImage(""), ReferenceImage("")
Guide = ControlImage | ReferenceImage


class Added(NamedTuple):
    """The images besides those in the fields, in the order in which they were added."""

    control: tuple[ControlImage, ...] = ()
    reference: tuple[ReferenceImage, ...] = ()

    def without(self, kind: str, index: int) -> Added:
        """The same without one image of "control" or "reference"; an index that does not exist changes nothing."""
        if kind not in self._fields or not 0 <= index < len(getattr(self, kind)):
            return self
        items = getattr(self, kind)
        return self._replace(**{kind: items[:index] + items[index + 1 :]})


class GuidancePanel:
    """Renders the section; `apply` adds its images to a request, from the values of `widgets`.

    Images are stored when they are chosen. The form has the item of each field, in a state, for what
    has no widget; "Add another image" moves it to the list of added ones.
    """

    def __init__(self, studio: Studio, elem_id_prefix: str) -> None:
        self._studio = studio
        self._section = gr.Accordion("Guide by an image", open=False, elem_classes="guidance-panel")
        with self._section:
            self._render_control(elem_id_prefix)
            self._render_reference(elem_id_prefix)
            self._added = gr.State(Added())
            self._list = panel(f"{elem_id_prefix}-guidance-added")

    def _render_control(self, elem_id_prefix: str) -> None:
        self._control = self._image("Control image: its structure is followed", f"{elem_id_prefix}-control-image")
        self._control_item = gr.State(NO_CONTROL)
        kinds = [(label, kind) for kind, label in KIND_LABELS.items()]
        self._kind = gr.Dropdown(kinds, value=AUTO, label="Kind", elem_id=f"{elem_id_prefix}-control-kind")
        self._seen = panel(f"{elem_id_prefix}-control-preview")
        self._model = gr.Dropdown(
            self._models(),
            value="",
            allow_custom_value=True,
            label="ControlNet",
            elem_id=f"{elem_id_prefix}-controlnet",
        )
        self._weight = gr.Slider(0, 2, value=1, step=0.05, label="Control strength", buttons=[])
        with gr.Row():
            self._start = gr.Slider(0, 0.95, value=0, step=0.05, label="Start", min_width=100, buttons=[])
            self._end = gr.Slider(0.05, 1, value=1, step=0.05, label="End", min_width=100, buttons=[])
        self._add_control = self._add_button(f"{elem_id_prefix}-add-control")

    def _render_reference(self, elem_id_prefix: str) -> None:
        label = "Reference image: its subject, style or face is taken on"
        self._reference = self._image(label, f"{elem_id_prefix}-reference-image")
        self._reference_item = gr.State(NO_REFERENCE)
        references = [(label, kind) for kind, label in REFERENCE_LABELS.items()]
        self._reference_kind = gr.Radio(references, value="subject", label="Takes on")
        self._reference_status = panel(f"{elem_id_prefix}-reference-status")
        self._reference_weight = gr.Slider(0, 2, value=0.6, step=0.05, label="Reference strength", buttons=[])
        self._add_reference = self._add_button(f"{elem_id_prefix}-add-reference")

    @staticmethod
    def _image(label: str, elem_id: str) -> gr.Image:
        sources: Any = ("upload", "clipboard")
        return gr.Image(type="pil", image_mode=None, label=label, sources=sources, height=180, elem_id=elem_id)

    @staticmethod
    def _add_button(elem_id: str) -> gr.Button:
        return gr.Button("Add another image", size="sm", visible=False, elem_id=elem_id)

    def _models(self) -> list[tuple[str, str]]:
        names = controlnets.list_names(self._studio.settings.controlnets_dir)
        return [("Usual for the kind", ""), *((name, name) for name in names)]

    @property
    def widgets(self) -> set[Any]:
        """The inputs that `apply` needs."""
        control = {self._control_item, self._kind, self._model, self._weight, self._start, self._end}
        return control | {self._reference_item, self._reference_kind, self._reference_weight, self._added}

    @property
    def outputs(self) -> set[Any]:
        """The components that `restore` updates."""
        shown = {self._section, self._control, self._seen, self._reference, self._reference_status, self._list}
        return self.widgets | shown | {self._add_control, self._add_reference}

    def bind_events(self, model_key: Any) -> None:
        """`model_key` is the widget that selects the model."""
        self._model_key = model_key
        inputs = {self._control, self._kind, self._model, model_key}
        # Not on `change`, which fires for what a callback sets, too
        shown = {self._control_item, self._kind, self._seen, self._add_control}
        bind(self._control.input, self.choose_control, inputs, shown)
        bind(self._kind.input, self.choose_kind, inputs | {self._control_item}, {self._control_item, self._seen})
        bind([self._model.input, model_key.change], self.show_control, inputs, {self._seen})
        bind(self._model.focus, lambda: gr.Dropdown(choices=self._models()), None, self._model)
        needs = {self._reference_item, self._reference_kind, self._reference_weight, model_key}
        chosen = {self._reference_item, self._reference_status, self._add_reference}
        bind(self._reference.input, self.choose_reference, needs | {self._reference}, chosen)
        bind([self._reference_kind.input, model_key.change], self.show_reference, needs, {self._reference_status})
        lists = {self._added, self._list}
        bind(self._add_control.click, self.add_control, self.widgets, lists | shown | {self._control})
        bind(self._add_reference.click, self.add_reference, self.widgets, lists | chosen | {self._reference})
        bind(self._list.click, self.remove, {self._added}, lists)

    @property
    def changes(self) -> list[Any]:
        """The events after which `apply` gives another request."""
        return [widget.change for widget in self.widgets]

    def choose_control(self, values: Mapping[Any, Any]) -> dict[Any, Any]:
        """Store the image and show what the model will see of it; another image is recognized anew."""
        image = values[self._control]
        if image is None:
            return self._empty_control()
        item = ControlImage(self._studio.inputs.upload(image, "control_images").name)
        shown = self.show_control({**values, self._kind: AUTO})
        return {self._control_item: item, self._kind: AUTO, self._add_control: gr.Button(visible=True), **shown}

    def _empty_control(self) -> dict[Any, Any]:
        hidden = gr.Button(visible=False)
        return {self._control_item: NO_CONTROL, self._kind: AUTO, self._seen: "", self._add_control: hidden}

    def choose_kind(self, values: Mapping[Any, Any]) -> dict[Any, Any]:
        """Whether something is detected in the image depends on the kind."""
        return {self._control_item: values[self._control_item]._replace(detect=None), **self.show_control(values)}

    def show_control(self, values: Mapping[Any, Any]) -> dict[Any, Any]:
        """Show what the model will see, of which kind it is and what has to be downloaded."""
        image = values[self._control]
        if image is None:
            return {self._seen: ""}
        item = ControlImage("", values[self._kind], model=values[self._model] or "")
        return {self._seen: self._render_seen(image, item, values[self._model_key])}

    def _render_seen(self, image: Image, item: ControlImage, model_key: str) -> str:
        lines = []
        try:
            item, seen = self._studio.control_preview(image, item)
            label = gettext(KIND_LABELS[item.kind])
            text = gettext("{kind}: detected in the image.", kind=label)
            if not item.detect:
                text = gettext("{kind}: the image is used as it is.", kind=label)
            lines.append(render("control_preview.html", preview=preview_url(seen), text=text))
        except CanvasError as error:
            item = item._replace(detect=True)
            lines.append(error_line(error))
        if item.model:
            return "".join(lines)
        try:
            size = self._studio.control_download_size(item.kind, model_key, detect=bool(item.detect))
            if size:
                lines.append(text_line(gettext("{size} download with the first image", size=format_bytes(size))))
        except CanvasError as error:
            lines.append(error_line(error))
        return "".join(lines)

    def choose_reference(self, values: Mapping[Any, Any]) -> dict[Any, Any]:
        image = values[self._reference]
        if image is None:
            return self._empty_reference()
        item = ReferenceImage(self._studio.inputs.upload(image, "reference_images").name)
        status = self.show_reference({**values, self._reference_item: item})
        return {self._reference_item: item, self._add_reference: gr.Button(visible=True), **status}

    def _empty_reference(self) -> dict[Any, Any]:
        hidden = gr.Button(visible=False)
        return {self._reference_item: NO_REFERENCE, self._reference_status: "", self._add_reference: hidden}

    def show_reference(self, values: Mapping[Any, Any]) -> dict[Any, Any]:
        """Show what has to be downloaded for the reference image, or why the model cannot use it."""
        item = self._reference_of(values)
        return {self._reference_status: self._render_needs(item, values[self._model_key]) if item else ""}

    def _render_needs(self, item: ReferenceImage, model_key: str) -> str:
        if item.model:
            return ""
        try:
            size = self._studio.reference_download_size(item.kind, model_key)
        except CanvasError as error:
            return error_line(error)
        return text_line(gettext("{size} download with the first image", size=format_bytes(size))) if size else ""

    # Several images

    def add_control(self, values: Mapping[Any, Any], http_request: gr.Request) -> dict[Any, Any]:
        """Move the control image to the list, so that another one can be chosen."""
        added = values[self._added]
        if item := self._control_of(values):
            _check_number("control_images", len(added.control) + 1, MAX_CONTROL_IMAGES - 1)
            added = added._replace(control=(*added.control, item))
        return {**self._update_list(added, current_owner(http_request)), **self._empty_control(), self._control: None}

    def add_reference(self, values: Mapping[Any, Any], http_request: gr.Request) -> dict[Any, Any]:
        added = values[self._added]
        if item := self._reference_of(values):
            _check_number("reference_images", len(added.reference) + 1, MAX_REFERENCE_IMAGES - 1)
            added = added._replace(reference=(*added.reference, item))
        list_updates = self._update_list(added, current_owner(http_request))
        return {**list_updates, **self._empty_reference(), self._reference: None}

    def remove(self, values: Mapping[Any, Any], event: gr.EventData, http_request: gr.Request) -> dict[Any, Any]:
        """Remove an image from the list."""
        added = values[self._added].without(str(event.list), int(event.index))
        return self._update_list(added, current_owner(http_request))

    def _update_list(self, added: Added, owner: str) -> dict[Any, Any]:
        rows = [
            (name, index, preview_url(self._studio.inputs.open_image(item.image, owner)), _describe(item))
            for name, items in added._asdict().items()
            for index, item in enumerate(items)
        ]
        return {self._added: added, self._list: render("guidance_images.html", rows=rows) if rows else ""}

    # The request

    def apply(self, request: GenerationRequest, values: Mapping[Any, Any]) -> GenerationRequest:
        """The request with the images of the section; raises InvalidInput."""
        added, control, reference = values[self._added], self._control_of(values), self._reference_of(values)
        return replace(
            request,
            control_images=(*added.control, *([control] if control else ())),
            reference_images=(*added.reference, *([reference] if reference else ())),
        )

    def _control_of(self, values: Mapping[Any, Any]) -> ControlImage | None:
        """The item of the control image in the field; None without one."""
        item: ControlImage = values[self._control_item]
        if not item.image:
            return None
        weight, start, end = (values[widget] for widget in (self._weight, self._start, self._end))
        model = (values[self._model] or "").strip()
        return item._replace(kind=values[self._kind], weight=weight, start=start, end=end, model=model)

    def _reference_of(self, values: Mapping[Any, Any]) -> ReferenceImage | None:
        item: ReferenceImage = values[self._reference_item]
        kind, weight = values[self._reference_kind], values[self._reference_weight]
        # The adapter of a restored item is that of its kind
        model = item.model if item.kind == kind else ""
        return item._replace(kind=kind, weight=weight, model=model) if item.image else None

    def restore(self, request: GenerationRequest, owner: str) -> dict[Any, Any]:
        """Fill in the images of a request; a message names those that are not stored any more, or do not act here."""
        is_stored = self._studio.inputs.is_stored_for
        controls = [
            item for item in request.control_images if item.kind in KIND_LABELS and is_stored(item.image, owner)
        ]
        references = [item for item in request.reference_images if is_stored(item.image, owner)]
        number = len(controls) + len(references)
        if lost := len(request.control_images) + len(request.reference_images) - number:
            text = ngettext(
                "{number} image that guided this one cannot be used again: it is not stored any more, or only "
                "inpainting takes it. Without it the result differs.",
                "{number} images that guided this one cannot be used again: they are not stored any more, or only "
                "inpainting takes them. Without them the result differs.",
                lost,
            )
            gr.Warning(toast_html(gettext("Guide by an image"), text), duration=None)
        added = Added(tuple(controls[:-1]), tuple(references[:-1]))
        control = controls[-1] if controls else NO_CONTROL
        reference = references[-1] if references else NO_REFERENCE
        return {
            self._section: gr.Accordion(open=number > 0),
            **self._fill_control(control, request.model_key, owner),
            **self._fill_reference(reference, request.model_key, owner),
            **self._update_list(added, owner),
        }

    def _fill_control(self, item: ControlImage, model_key: str, owner: str) -> dict[Any, Any]:
        updates = {self._weight: item.weight, self._start: min(item.start, 0.95), self._end: max(item.end, 0.05)}
        if not item.image:
            return {**updates, **self._empty_control(), self._control: None, self._model: ""}
        image = self._studio.inputs.open_image(item.image, owner)
        if self._is_usual(self._studio.usual_controlnet, item, model_key):
            item = item._replace(model="")
        return {
            **updates,
            self._control: image,
            self._control_item: item,
            self._kind: item.kind,
            self._model: item.model,
            self._seen: self._render_seen(image, item, model_key),
            self._add_control: gr.Button(visible=True),
        }

    @staticmethod
    def _is_usual(usual: Callable[[str, str], str], item: Guide, model_key: str) -> bool:
        try:
            return item.model == usual(item.kind, model_key)
        except InvalidInput:  # the model has none
            return False

    def _fill_reference(self, item: ReferenceImage, model_key: str, owner: str) -> dict[Any, Any]:
        updates = {self._reference_kind: item.kind, self._reference_weight: item.weight}
        if not item.image:
            return {**updates, **self._empty_reference(), self._reference: None}
        image = self._studio.inputs.open_image(item.image, owner)
        if self._is_usual(self._studio.usual_adapter, item, model_key):
            item = item._replace(model="")
        status, button = self._render_needs(item, model_key), gr.Button(visible=True)
        shown = {self._reference: image, self._reference_status: status, self._add_reference: button}
        return {**updates, **shown, self._reference_item: item}


def _check_number(field: str, number: int, largest: int) -> None:
    """Raise InvalidInput if there would be more images than a request takes, with one more to choose."""
    if number > largest:
        text = LazyMessage("At most {number} such images can be combined.", number=largest + 1)
        raise InvalidInput(field, number, message=text)


def _describe(item: Guide) -> str:
    if isinstance(item, ControlImage):
        return f"{gettext('Control image')}: {gettext(KIND_LABELS[item.kind])} · {item.weight:g}"
    return f"{gettext('Reference image')}: {gettext(REFERENCE_LABELS[item.kind])} · {item.weight:g}"
