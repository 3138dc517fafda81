"""The Edit tab: edits by instruction, image to image, seed variation, inpaint, outpaint and upscale."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import gradio as gr
from PIL import Image, ImageChops

from canvas.catalog import get_model
from canvas.errors import CanvasError, InvalidInput, LazyMessage, NotFound
from canvas.jobs.job import Job
from canvas.request import RANDOM_SEED, RESIZE_MODES, SCALES, GeneratedImage, GenerationRequest
from canvas.studio import Studio
from canvas.ui.events import bind, bind_next, current_owner, show_errors
from canvas.ui.generation_form import (
    ASPECT_RATIOS,
    Form,
    LoraPicker,
    model_choices,
    model_title,
    preset_options,
    require_prompt,
    size_from_resolution,
)
from canvas.ui.guidance_panel import GuidancePanel
from canvas.ui.html_panel import error_line, image_url, panel, render, text_line
from canvas.ui.i18n import gettext
from canvas.ui.page_blocks import COPY_DRAWING, drawing_of
from canvas.ui.result_panel import (
    EDIT_OPERATIONS,
    OPENING_ACTIONS,
    ImageActions,
    preview_url,
    render_images,
    render_progress,
    render_recent,
    stored_images,
)

if TYPE_CHECKING:
    from canvas.ui.create_tab import CreateTab


INSTRUCTION = "instruction"  # offered where a model for it is on disk


class Operation(NamedTuple):
    """What can be done with an image; `strength` is the initial value of the slider, if any."""

    label: str
    task: str
    description: str
    strength: float | None = None


OPERATIONS: Mapping[str, Operation] = MappingProxyType(
    {
        INSTRUCTION: Operation(
            "Edit by instruction",
            "image_to_image",
            "Changes what the prompt says, such as “make it night”, and keeps the rest.",
        ),
        "image_to_image": Operation(
            "Image to image",
            "image_to_image",
            "Redraws the whole image. Lower strength stays closer to the original.",
            0.5,
        ),
        "seed_variation": Operation(
            "Seed variation", "text_to_image", "Varies one of your images by blending its seed with new ones.", 0.3
        ),
        "inpaint": Operation(
            "Inpaint", "inpaint", "Replaces the area that you paint over. The rest stays unchanged.", 0.9
        ),
        "outpaint": Operation("Outpaint", "inpaint", "Adds this many pixels on each side."),
        "upscale": Operation("Upscale", "upscale", "Increases the resolution of the image.", 0.3),
    }
)
VERBS = ("inpaint", "outpaint", "upscale")  # operations whose labels are verbs
DETAIL = "upscale_detail"  # stands for "upscale" with a diffusion model in FIELD_GROUPS
DIFFUSION = (INSTRUCTION, "image_to_image", "inpaint", "outpaint", DETAIL)  # operations that use the model
# The operations for which a group of fields is visible
FIELD_GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        **{name: (name,) for name in OPERATIONS},  # the descriptions
        "upscale": ("upscale", DETAIL),
        "prompt": (*DIFFUSION, "seed_variation"),
        "upscaler": ("upscale", DETAIL),
        "sides": ("outpaint",),
        "strength": ("image_to_image", "seed_variation", "inpaint", DETAIL),
        "num_images": (INSTRUCTION, "image_to_image", "seed_variation"),
        "mask": ("inpaint",),
        "model": DIFFUSION,
        "size": ("image_to_image", "inpaint"),
        "loras": (*DIFFUSION, "seed_variation"),
        "guidance": DIFFUSION,
    }
)
SIDES = ("left", "top", "right", "bottom")
UPSCALER_LABELS: Mapping[str, str] = MappingProxyType(
    {
        "lanczos": "Simple resize",
        "illustration": "Upscaling network for illustrations",
        "photo": "Upscaling network for photos",
        "detail": "Diffusion model that adds detail",
    }
)
DRAWING_SECONDS = 30.0  # that the editor may take to draw an image, on a slow connection
COMPARED_SIDE = 768  # pixels of an upload in "Before and after"
SAME_RATIO = 0.02  # difference of proportions that comparing does not show
KEEP_SIZE = "Same as the image"
BRUSH_COLORS = ("#ff2bd6", "#19e6ff", "#ffe600")  # stand out from most images


class EditForm(Form):
    """The fields of the tab and their visibility; `fit_preview` shows the resized image."""

    def __init__(self, studio: Studio) -> None:
        super().__init__()
        self._studio = studio
        self._groups: dict[str, gr.Column] = {}
        add = self._widgets.__setitem__
        default_model = get_model(studio.settings.model, studio.models).key
        operations = [(operation.label, name) for name, operation in OPERATIONS.items() if name != INSTRUCTION]
        add("operation", gr.Radio(operations, value="image_to_image", label="Task"))
        for name, operation in OPERATIONS.items():
            with self._group(name):
                gr.Markdown(operation.description, elem_classes="text-line")
        with self._group("prompt"):
            add("prompt", gr.Textbox(label="Prompt", lines=2, elem_id="edit-prompt"))
        with self._group("upscaler"):
            add("scale", gr.Radio(list(SCALES), value=2, label="Scale"))
            upscalers = [(label, name) for name, label in UPSCALER_LABELS.items()]
            add("upscaler", gr.Dropdown(upscalers, value="lanczos", label="Upscaler"))
        with self._group("sides"), gr.Row():
            for side in SIDES:
                add(side, gr.Number(0, label=side.capitalize(), step=8, precision=0, min_width=90))
        with self._group("strength"):
            add("strength", gr.Slider(0.05, 1, value=0.5, step=0.05, label="Strength", buttons=[]))
        with self._group("num_images"):
            add("num_images", gr.Slider(1, 4, value=4, step=1, label="Number of images", buttons=[]))
        with self._group("mask"):
            add("only_masked", gr.Checkbox(label="Only the masked area, at full resolution"))
            add("mask_blur", gr.Slider(0, 64, value=8, step=1, label="Mask blur", buttons=[]))
        with self._group("model"):
            choices = [(model_title(spec), key) for key, spec in studio.models.items()]
            add("model_key", gr.Dropdown(choices, value=default_model, label="Model"))
            add("preset", gr.Radio(preset_options(), value="quality", label="Speed"))
        with self._group("size"), gr.Accordion("Size and aspect ratio", open=False):
            add("aspect_ratio", gr.Dropdown([KEEP_SIZE, *ASPECT_RATIOS], value=KEEP_SIZE, label="Aspect ratio"))
            resize_modes = [(mode.capitalize(), mode) for mode in RESIZE_MODES]
            add("resize_mode", gr.Radio(resize_modes, value="crop", label="Resize mode"))
            add("fill_color", gr.ColorPicker("#ffffff", label="Fill colour"))
            self.fit_preview = panel("edit-fit-preview")
        with self._group("loras"):
            self._lora_picker = LoraPicker(studio, "edit")
        with self._group("guidance"):
            self.guidance = GuidancePanel(studio, "edit")

    def _group(self, name: str) -> gr.Column:
        visible = "image_to_image" in FIELD_GROUPS[name]
        self._groups[name] = gr.Column(visible=visible, elem_classes="edit-group")
        return self._groups[name]

    def bind_events(self, page: gr.Blocks) -> None:
        # Created here, not in the tab: components of a hidden tab are not mounted on page load
        self._saved = gr.BrowserState(None, storage_key="magic-canvas-edit", secret="form")  # noqa: S106 - no secret: the visitor's own form
        operation, upscaler = self["operation"], self["upscaler"]
        groups = set(self._groups.values())
        model = self["model_key"]
        bind(operation.input, self.on_operation, {operation, model}, {self["strength"], model})
        bind(model.input, self.on_model, {operation, model}, {operation})
        bind([operation.change, upscaler.change], self.toggle_groups, {operation, upscaler}, groups)
        bind(page.load, self.restore, {self._saved}, self.widgets)
        bind(
            [self[name].change for name in self],
            self.save,
            self.widgets,
            {self._saved},
            trigger_mode="always_last",
            queue=False,
        )
        self._lora_picker.bind_events(page, self["prompt"])
        self.guidance.bind_events(self["model_key"])
        # On focus, too: another tab or program may have downloaded or added a model
        bind(model.focus, self.list_models, {operation}, {operation, model})

    def list_models(self, values: Mapping[Any, Any]) -> dict[Any, Any]:
        """The models to choose from for the operation, and the operations for which there are models."""
        return {self["model_key"]: self._model_update(values[self["operation"]]), self["operation"]: self.operations()}

    def operations(self, **update: Any) -> gr.Radio:
        """The operations to choose from."""
        names = [name for name in OPERATIONS if name != INSTRUCTION or self._studio.instruction_models]
        return gr.Radio(choices=[(gettext(OPERATIONS[name].label), name) for name in names], **update)

    def _model_update(self, operation: str, **update: Any) -> gr.Dropdown:
        keys = self._studio.instruction_models if operation == INSTRUCTION else self._studio.models
        return gr.Dropdown(choices=model_choices(self._studio, keys), **update)

    def on_operation(self, values: Mapping[Any, Any]) -> dict[Any, Any]:
        operation, strength = values[self["operation"]], OPERATIONS[values[self["operation"]]].strength
        model = {self["model_key"]: self._model_update(operation)}
        if operation == INSTRUCTION and values[self["model_key"]] not in self._studio.instruction_models:
            model = self.select(INSTRUCTION)
        return {**model, self["strength"]: gr.skip() if strength is None else strength}

    def on_model(self, values: Mapping[Any, Any]) -> dict[Any, Any]:
        """A model that edits by instruction has no strength, which image to image is about."""
        is_instruction = values[self["model_key"]] in self._studio.instruction_models
        if values[self["operation"]] != "image_to_image" or not is_instruction:
            return {self["operation"]: gr.skip()}
        return {self["operation"]: self.operations(value=INSTRUCTION)}

    def select(self, operation: str) -> dict[Any, Any]:
        """Updates of the model for an operation that needs one of its own."""
        if operation != INSTRUCTION:
            return {self["model_key"]: self._model_update(operation)}
        return {self["model_key"]: self._model_update(operation, value=self._studio.instruction_models[0])}

    def toggle_groups(self, values: Mapping[Any, Any]) -> dict[Any, Any]:
        operation = values[self["operation"]]
        if operation == "upscale" and values[self["upscaler"]] == "detail":
            operation = DETAIL
        return {group: gr.Column(visible=operation in FIELD_GROUPS[name]) for name, group in self._groups.items()}

    def save(self, values: Mapping[Any, Any]) -> dict[Any, Any]:
        return {self._saved: self.read(values)}

    def restore(self, values: Mapping[Any, Any]) -> dict[Any, Any]:
        """Restore the form from the browser's storage, unless it is not valid any more."""
        saved = values[self._saved]
        unchanged: dict[Any, Any] = {widget: gr.skip() for widget in self.widgets}
        unchanged |= {self["operation"]: self.operations(), **self.select("image_to_image")}
        if self._studio.instruction_models:  # the first choice
            unchanged |= {self["operation"]: self.operations(value=INSTRUCTION), **self.select(INSTRUCTION)}
        if not isinstance(saved, dict) or set(saved) != set(self) or saved["operation"] not in OPERATIONS:
            return unchanged  # nothing was saved, or by another version
        try:
            get_model(saved["model_key"], self._studio.models)
            self.check_model(saved)
            self.to_request({**saved, "prompt": saved["prompt"] or "…"}, "image.png")
        except CanvasError:
            return unchanged
        updates = {self[name]: value for name, value in saved.items()}
        updates[self["operation"]] = self.operations(value=saved["operation"])
        updates[self["model_key"]] = self._model_update(saved["operation"], value=saved["model_key"])
        return updates

    def check_model(self, fields: Mapping[str, Any]) -> None:
        """Raise InvalidInput if the operation needs another model."""
        if fields["operation"] == INSTRUCTION and fields["model_key"] not in self._studio.instruction_models:
            text = "The model {model} does not edit by instruction. Choose one that does, such as FLUX.2 klein."
            raise InvalidInput(
                "model_key", fields["model_key"], message=LazyMessage(text, model=str(fields["model_key"]))
            )

    def to_request(self, fields: Mapping[str, Any], image_name: str) -> GenerationRequest:
        """The request of these values for a stored image, without a mask; raises InvalidInput."""
        values = dict(fields)
        operation, aspect_ratio = values.pop("operation"), values.pop("aspect_ratio")
        sides = tuple(int(values.pop(side) or 0) for side in SIDES)
        values |= {"task": OPERATIONS[operation].task, "image": image_name}
        values["fill_color"] = _hex_color(values["fill_color"])
        if aspect_ratio != KEEP_SIZE and operation in FIELD_GROUPS["size"]:
            spec = get_model(values["model_key"], self._studio.models)
            values["width"], values["height"] = size_from_resolution(spec, spec.resolution, aspect_ratio)
        if operation not in FIELD_GROUPS["num_images"]:
            values["num_images"] = 1
        if operation == "outpaint":
            values |= {"outpaint": sides, "strength": None}
        if operation == INSTRUCTION:
            values["strength"] = 1.0
        if operation == "upscale" and values["upscaler"] != "detail":
            values["strength"] = None
        return GenerationRequest.from_dict({"seed": RANDOM_SEED, **values})


def _hex_color(color: str) -> str:
    """`#rrggbb` of a color; Gradio's picker returns `rgba(1, 2, 3, 1)` once it was used."""
    parts = re.findall(r"\d+(?:\.\d+)?", color)[:3] if color.startswith("rgb") else []
    return "#" + "".join(f"{round(float(part)):02x}" for part in parts) if parts else color


class EditTab:
    """Layout and callbacks of the tab."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._source = gr.State("")  # name of the stored image that was loaded into the editor
        self._replaced = gr.State(("", 0.0))  # name of the image before that one, and when it was replaced
        self._job = gr.State("")  # id of the job that is shown
        with gr.Row(elem_id="edit-workspace"):
            with gr.Column(elem_id="edit-source"):
                self._editor = gr.ImageEditor(
                    type="pil",
                    format="png",
                    label="Image. To inpaint, paint over the area to change.",
                    elem_id="edit-image",
                    sources=("upload", "clipboard", "webcam"),
                    transforms=(),
                    layers=False,
                    brush=gr.Brush(colors=list(BRUSH_COLORS), color_mode="fixed"),
                )
                self._drawing = drawing_of(self._editor)
                self._notes = panel("edit-notes")
                self._recent = panel("edit-recent")
            with gr.Column(elem_id="edit-form"):
                self._form = EditForm(studio)
                self._generate = gr.Button("Generate", variant="primary", elem_id="edit-generate")
                self._stop = gr.Button("Stop", elem_id="edit-stop", visible=False)
                self._size = panel("edit-size")
            with gr.Column(elem_id="edit-output"):
                self._result = panel("edit-result")

    def bind_events(self, page: gr.Blocks, tab: gr.Tab, create: CreateTab, tabs: gr.Tabs) -> None:
        form, source = self._form, {self._source}
        self._actions = ImageActions(self._studio, create, self, tabs)
        inputs = {self._drawing, self._source, self._replaced, *form.widgets}
        copy: dict[str, Any] = {"inputs": [self._editor], "outputs": [self._drawing], "js": COPY_DRAWING}
        bind(tab.select, self.show, source, {self._recent, self._notes})
        bind(
            self._recent.click,
            self.on_recent_click,
            source,
            self.load_image_outputs,
            trigger_mode="always_last",
            **self.load_image_options,
        )
        result_outputs = self._actions.outputs | {self._result, self._recent}
        shown = source | {self._job}
        bind(self._result.click, self.on_result_click, shown, result_outputs, **self._actions.options)
        form.bind_events(page)
        resized_by = ("aspect_ratio", "resize_mode", "fill_color", "operation", "model_key", "scale", *SIDES)
        editor_changes = [self._editor.upload, self._editor.clear, self._source.change]
        changes = [*(form[name].change for name in resized_by), *editor_changes]
        copied = bind(changes, None, trigger_mode="always_last", **copy)
        bind_next(copied, self.show_size, inputs, {form.fit_preview, self._size}, trigger_mode="always_last")
        outputs = {self._result, self._recent, self._job, self._generate, self._stop}
        all_inputs = inputs | form.guidance.widgets
        bind_next(bind(self._generate.click, None, **copy), self.generate, all_inputs, outputs)
        bind(self._stop.click, self.stop, {self._job})
        bind(form["operation"].change, self.name_button, {form["operation"]}, {self._generate})

    def show(self, _: Mapping[Any, Any], http_request: gr.Request) -> dict[Any, Any]:
        """Show the owner's latest images; page.js reveals the notes when they apply."""
        recent = render_recent(self._studio, current_owner(http_request), None)
        return {self._recent: recent, self._notes: render("edit_notes.html")}

    def name_button(self, values: Mapping[Any, Any]) -> dict[Any, Any]:
        """Name the button after the task, where that is a verb."""
        operation = values[self._form["operation"]]
        label = OPERATIONS[operation].label if operation in VERBS else "Generate"
        return {self._generate: gr.Button(gettext(label))}

    def show_size(self, values: Mapping[Any, Any]) -> dict[Any, Any]:
        """Show the size of the result, and the input image as it will be resized for the model."""
        image = (values[self._drawing] or {}).get("background")
        fields = self._form.read(values)
        preview = self._form.fit_preview
        if image is None:
            return {preview: "", self._size: ""}
        try:
            request = self._form.to_request(fields | {"prompt": "…"}, "image.png")
            width, height = self._studio.inputs.result_size(request, image.size)
            fit = self._render_fit(image, request) if fields["operation"] in FIELD_GROUPS["size"] else ""
        except CanvasError as error:
            return {preview: "", self._size: error_line(error)}
        return {preview: fit, self._size: text_line(gettext("Result: {size}", size=f"{width} × {height}"))}

    def _render_fit(self, image: Image.Image, request: GenerationRequest) -> str:
        resized = self._studio.inputs.preview_fit(image, request)
        return render(
            "fit_preview.html",
            preview=preview_url(resized),
            width=resized.width,
            height=resized.height,
            text=_fit_text(image.size, resized.size, request.resize_mode),
        )

    @property
    def load_image_outputs(self) -> set[Any]:
        names = ("prompt", "operation", "strength", "model_key")
        return {self._editor, self._source, self._replaced, *(self._form[name] for name in names)}

    @property
    def load_image_options(self) -> dict[str, Any]:
        """Options of events with these outputs: the editor must not show their progress, see `Drawing`."""
        return {"show_progress_on": self._notes}

    def load_image(self, image_id: int, owner: str, operation: str | None = None, replaced: str = "") -> dict[Any, Any]:
        """Load a stored image into the editor; raises NotFound for another owner's.

        None leaves the selected operation as it is.
        """
        image = self._studio.image(image_id, owner)
        pixels = self._studio.inputs.open_image(image.filename, owner)
        if operation == "inpaint" and self._studio.instruction_models:
            operation = INSTRUCTION  # the first choice
        strength = OPERATIONS[operation].strength if operation else None
        model = self._form.select(operation) if operation else {self._form["model_key"]: gr.skip()}
        return {
            **model,
            self._editor: {"background": pixels, "layers": [], "composite": None},
            self._source: image.filename,
            self._replaced: (replaced, time.time()),
            self._form["prompt"]: "" if operation == INSTRUCTION else image.request.prompt,
            self._form["operation"]: self._form.operations(value=operation) if operation else gr.skip(),
            self._form["strength"]: strength if strength is not None else gr.skip(),
        }

    def on_recent_click(
        self, values: Mapping[Any, Any], event: gr.EventData, http_request: gr.Request
    ) -> dict[Any, Any]:
        return self.load_image(int(event.image), current_owner(http_request), replaced=values[self._source])

    def on_result_click(
        self, values: Mapping[Any, Any], event: gr.EventData, http_request: gr.Request
    ) -> dict[Any, Any]:
        """An action of an image of the result; "edit" loads it into the editor."""
        owner = current_owner(http_request)
        if event.action in EDIT_OPERATIONS:
            operation = "upscale" if event.action == "upscale" else None
            return self.load_image(int(event.image), owner, operation, replaced=values[self._source])
        if event.action in OPENING_ACTIONS:
            return self._actions.open(event, owner)
        undo = self._actions.change(event, owner)
        job = self._studio.job(values[self._job], owner)
        recent = render_recent(self._studio, owner, None)
        return {self._result: undo + self._render_result(job, owner), self._recent: recent}

    def _render_result(self, job: Job, owner: str) -> str:
        images = stored_images(self._studio, job.images, owner)
        return (
            render_images(images, job, in_editor=True, before=self._before_url(job, images[0], owner)) if images else ""
        )

    def _before_url(self, job: Job, result: GeneratedImage, owner: str) -> str:
        """The URL of the image that a result was made from; "" without one, or if their proportions differ."""
        name = job.request.image if job.request else None
        if not name:
            return ""
        try:
            before = self._studio.inputs.open_image(name, owner)
        except NotFound:  # deleted meanwhile
            return ""
        width, height = result.request.size
        if abs(before.width * height - before.height * width) > max(before.size) * max(width, height) * SAME_RATIO:
            return ""
        stored = self._studio.inputs.find_image(name, owner)
        return image_url(stored) if stored else preview_url(before, COMPARED_SIDE)

    def generate(self, values: Mapping[Any, Any], http_request: gr.Request) -> Iterator[dict[Any, Any]]:
        """Submit the request and show the job until it is finished; it outlives the tab."""
        owner = current_owner(http_request)
        job = show_errors(self._submit)(values, owner)
        for state in job.subscribe():
            if not state.finished:
                html = render_progress(self._studio, state)
                yield {self._result: html, self._job: job.id, **self._buttons(running=True)}
        html = self._render_result(job, owner)
        recent = render_recent(self._studio, owner, None)
        yield {self._result: html, self._recent: recent, **self._buttons(running=False)}
        if job.status == "failed":
            show_errors(job.wait)()  # raises the error

    def _buttons(self, *, running: bool) -> dict[Any, Any]:
        return {self._generate: gr.Button(visible=not running), self._stop: gr.Button(visible=running)}

    def stop(self, values: Mapping[Any, Any], http_request: gr.Request) -> None:
        if values[self._job]:
            self._studio.job(values[self._job], current_owner(http_request)).cancel()

    def _submit(self, values: Mapping[Any, Any], owner: str) -> Job:
        return self._studio.submit(self._build_request(values, owner), owner, "page")

    def _build_request(self, values: Mapping[Any, Any], owner: str) -> GenerationRequest:
        """The request of the form, with the edited image and its mask uploaded."""
        fields = self._form.read(values)
        self._form.check_model(fields)
        if fields["operation"] != "upscale":  # its prompt is optional
            require_prompt(fields)
        if fields["operation"] == "seed_variation":
            return self._seed_variation(fields, values[self._source], owner)
        image, name, layers = self._edited_image(values, owner)
        if image is None:
            message = "Choose an image first: drop one into the editor or pick one from the list."
            raise InvalidInput("image", None, message=LazyMessage(message))
        if fields["operation"] == "outpaint" and not any(fields[side] for side in SIDES):
            message = "Enter how many pixels to add on at least one side."
            raise InvalidInput("outpaint", None, message=LazyMessage(message))
        request = self._form.to_request(fields, name or self._studio.inputs.upload(image).name)
        if request.needs_model:
            request = self._form.guidance.apply(request, values)
        if fields["operation"] != "inpaint":
            return request
        return replace(request, mask_image=self._upload_mask(layers, image))

    def _seed_variation(self, fields: Mapping[str, Any], source: str, owner: str) -> GenerationRequest:
        """The request of the loaded image with a variation seed."""
        image = self._studio.inputs.find_image(source, owner)
        if image is None or image.task != "text_to_image":
            message = "Pick one of your text-to-image results below the editor first."
            raise InvalidInput("image", source, message=LazyMessage(message))
        return replace(
            image.request,
            prompt=fields["prompt"],
            variation_seed=random.randrange(2**32),
            variation_strength=fields["strength"],
            num_images=int(fields["num_images"]),
        )

    def _edited_image(self, values: Mapping[Any, Any], owner: str) -> tuple[Image.Image | None, str, list[Image.Image]]:
        """What the editor shows: the image, its name if it is stored, and the painted layers."""
        content = values[self._drawing] or {}
        image, layers = content.get("background"), content.get("layers") or []
        source, (replaced, replaced_at) = values[self._source], values[self._replaced]
        if image is None or not source:
            return image, "", layers
        stored = self._studio.inputs.open_image(source, owner)
        if _same_pixels(image, stored):
            return image, source, layers
        # The browser draws an image some time after it gets it, and sends the former one until then.
        if replaced and time.time() - replaced_at < DRAWING_SECONDS:
            former = self._studio.inputs.open_image(replaced, owner)
            if _same_pixels(image, former):
                return stored, source, []
        return image, "", layers

    def _upload_mask(self, layers: list[Image.Image], image: Image.Image) -> str:
        mask = Image.new("L", image.size)
        for layer in layers:
            if layer.size == mask.size:
                mask = ImageChops.lighter(mask, layer.getchannel("A"))
        if mask.getbbox() is None:
            message = "Paint over the area to change first, using the brush of the editor."
            raise InvalidInput("mask_image", None, message=LazyMessage(message))
        return self._studio.inputs.upload(mask, "mask_image").name


def _same_pixels(first: Image.Image, second: Image.Image) -> bool:
    return first.size == second.size and first.convert("RGB").tobytes() == second.convert("RGB").tobytes()


def _fit_text(before: tuple[int, int], after: tuple[int, int], resize_mode: str) -> str:
    sizes = {"before": "{} × {}".format(*before), "after": "{} × {}".format(*after)}
    if before[0] * after[1] == before[1] * after[0]:
        return gettext("{before} scaled to {after}", **sizes)
    return {
        "crop": gettext("{before} cropped to {after}", **sizes),
        "pad": gettext("{before} padded to {after}", **sizes),
        "stretch": gettext("{before} stretched to {after}", **sizes),
    }[resize_mode]
