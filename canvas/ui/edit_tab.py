"""The tab where pictures are changed: redrawn, repainted under a mask, extended, enlarged."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import gradio as gr

from canvas.catalog import get_model
from canvas.errors import CanvasError
from canvas.jobs.job import Job
from canvas.presets import PRESETS
from canvas.request import RANDOM_SEED, RESIZE_MODES, SCALES, GenerationRequest
from canvas.ui.events import bind, current_owner, show_errors
from canvas.ui.generation_form import ASPECT_RATIOS, size_from_resolution
from canvas.ui.html_panel import panel, render
from canvas.ui.i18n import error_text, gettext
from canvas.ui.pickers import LoraPicker
from canvas.ui.result_panel import data_url, render_images, render_progress, render_recent

if TYPE_CHECKING:
    from PIL import Image

    from canvas.studio import Studio


TASKS: Mapping[str, str] = MappingProxyType(
    {
        "Variations": "image_to_image",
        "Other seeds": "text_to_image",
        "Repaint": "inpaint",
        "Extend": "inpaint",
        "Enlarge": "upscale",
    }
)
SIDES = ("left", "top", "right", "bottom")
DETAIL = "Enlarge with detail"
# How much of the picture goes, at first, and which groups of the form belong to what is done.
STRENGTHS = {"Variations": 0.5, "Other seeds": 0.3, "Repaint": 0.9, "Enlarge": 0.3}
DESCRIPTIONS: Mapping[str, str] = MappingProxyType(
    {
        "Variations": "Draws the whole picture anew: the lower the strength, the nearer to it.",
        "Other seeds": "Makes a picture of yours again, on the way from its seed to others.",
        "Repaint": "Draws anew what you paint over, and leaves the rest as it is.",
        "Extend": "Draws what lies beyond the sides, so many pixels of it.",
        "Enlarge": "The same picture with more pixels.",
    }
)
DIFFUSION_OPS = ("Variations", "Repaint", "Extend", DETAIL)  # by the model of the form
FIELD_GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "words": (*DIFFUSION_OPS, "Other seeds"),
        "strength": ("Variations", "Other seeds", "Repaint", DETAIL),
        "number": ("Variations", "Other seeds"),
        **{what: (what,) for what in TASKS},
        "Enlarge": ("Enlarge", DETAIL),
        "paint": ("Repaint",),
        "sides": ("Extend",),
        "larger": ("Enlarge", DETAIL),
        "model": DIFFUSION_OPS,
        "loras": (*DIFFUSION_OPS, "Other seeds"),
        "fitting": ("Variations", "Repaint"),
    }
)
UPSCALER_LABELS: Mapping[str, str] = MappingProxyType(
    {
        "lanczos": "Plainly",
        "illustration": "A network for illustrations",
        "photo": "A network for photographs",
        "detail": "With new detail, drawn by the model",
    }
)
KEEP_SIZE = "As the picture"


class EditForm:
    """Layout and behaviour of the fields; `fitted` is where the fit is shown."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._fields: dict[str, Any] = {}
        self._groups: dict[str, gr.Column] = {}
        self._lay_out()

    def __getitem__(self, name: str) -> Any:
        return self._fields[name]

    @property
    def widgets(self) -> set[Any]:
        """All fields, as the inputs or outputs of an event."""
        return set(self._fields.values())

    def read(self, values: Mapping[Any, Any]) -> dict[str, Any]:
        """The values of the fields by name."""
        return {name: values[field] for name, field in self._fields.items()}

    def _lay_out(self) -> None:
        place = self._fields.__setitem__
        models = self._studio.models
        spec = get_model(self._studio.settings.model, models)
        place("what", gr.Radio(list(TASKS), value="Variations", label="What to do"))
        for what, about in DESCRIPTIONS.items():
            with self._group(what):
                gr.Markdown(about, elem_classes="line")
        with self._group("words"):
            place("prompt", gr.Textbox(label="What to draw", lines=2, elem_id="edit-prompt"))
        with self._group("larger"):
            place("scale", gr.Radio(list(SCALES), value=2, label="Times as large"))
            how = [(words, name) for name, words in UPSCALER_LABELS.items()]
            place("upscaler", gr.Dropdown(how, value="lanczos", label="How"))
        with self._group("sides"), gr.Row():
            for side in SIDES:
                place(side, gr.Number(0, label=f"Extend {side}", step=8, precision=0, min_width=90))
        with self._group("strength"):
            strength = gr.Slider(0.05, 1, value=0.5, step=0.05, label="Strength", buttons=[])
            place("strength", strength)
        with self._group("number"):
            place("num_images", gr.Slider(1, 4, value=4, step=1, label="How many", buttons=[]))
        with self._group("paint"):
            only = gr.Checkbox(label="Only the painted area, at full resolution")
            place("only_masked", only)
            place("mask_blur", gr.Slider(0, 64, value=8, step=1, label="Soft edge", buttons=[]))
        with self._group("model"):
            place("model_key", gr.Dropdown(list(models), value=spec.key, label="Model"))
            presets = [(preset.capitalize(), preset) for preset in PRESETS]
            place("preset", gr.Radio(presets, value="quality", label="Mode"))
        with self._group("fitting"), gr.Accordion("Shape", open=False):
            shapes = [KEEP_SIZE, *ASPECT_RATIOS]
            place("shape", gr.Dropdown(shapes, value=KEEP_SIZE, label="Shape of the result"))
            fits = [(fit.capitalize(), fit) for fit in RESIZE_MODES]
            place("resize_mode", gr.Radio(fits, value="crop", label="Where the shape differs"))
            colour = gr.ColorPicker("#ffffff", label="Behind what is transparent, and around")
            place("fill_color", colour)
            self.fitted = panel("edit-fit")
        with self._group("loras"):
            self._loras = LoraPicker(self._studio, "edit")

    def _group(self, name: str) -> gr.Column:
        shown = "Variations" in FIELD_GROUPS[name]
        self._groups[name] = gr.Column(visible=shown, elem_classes="edit-group")
        return self._groups[name]

    def bind_events(self, page: gr.Blocks) -> None:
        """Connect what was laid out; call inside the page's context."""
        # Not in the tab: what is there is not mounted, and so knows nothing, while the page loads
        self._saved = gr.BrowserState(None, storage_key="magic-canvas-edit", secret="form")  # noqa: S106 - no secret: the reader's own form
        what, upscaler = self._fields["what"], self._fields["upscaler"]
        bind(what.input, self.choose, {what}, {self._fields["strength"]})
        groups = set(self._groups.values())
        bind([what.change, upscaler.change], self.toggle_groups, {what, upscaler}, groups)
        bind(page.load, self.restore, {self._saved}, self.widgets)
        bind(
            [field.change for field in self._fields.values()],
            self.save,
            self.widgets,
            {self._saved},
            trigger_mode="always_last",
            queue=False,
        )
        self._loras.bind_events(page, self._fields["prompt"])

    def choose(self, values: Mapping[Any, Any]) -> dict[Any, Any]:
        """A strength that suits what was chosen."""
        strength = STRENGTHS.get(values[self._fields["what"]])
        return {self._fields["strength"]: gr.skip() if strength is None else strength}

    def toggle_groups(self, values: Mapping[Any, Any]) -> dict[Any, Any]:
        """Show what belongs to it, and nothing else."""
        what = values[self._fields["what"]]
        if what == "Enlarge" and values[self._fields["upscaler"]] == "detail":
            what = DETAIL
        return {
            group: gr.Column(visible=what in FIELD_GROUPS[name])
            for name, group in self._groups.items()
        }

    def save(self, values: Mapping[Any, Any]) -> dict[Any, Any]:
        """Keep the form in the browser."""
        return {self._saved: self.read(values)}

    def restore(self, values: Mapping[Any, Any]) -> dict[Any, Any]:
        """Put the form back as this browser left it; none of it where it does not fit."""
        saved = values[self._saved]
        as_it_is: dict[Any, Any] = {field: gr.skip() for field in self._fields.values()}
        if not isinstance(saved, dict) or set(saved) != set(self._fields):
            return as_it_is  # nothing was saved, or by another version
        try:
            get_model(saved["model_key"], self._studio.models)
            self.to_request({**saved, "prompt": saved["prompt"] or "…"}, "picture.png", (64, 64))
        except CanvasError:
            return as_it_is
        return {self._fields[name]: value for name, value in saved.items()}

    def to_request(
        self, given: Mapping[str, Any], image: str, size: tuple[int, int]
    ) -> GenerationRequest:
        """What the values of the form ask for, of a picture of that size; without a mask."""
        given = dict(given)
        what, shape = given.pop("what"), given.pop("shape")
        given["fill_color"] = _hex(given["fill_color"])
        sides = tuple(int(given.pop(side) or 0) for side in SIDES)
        given |= {"task": TASKS[what], "image": image}
        if shape != KEEP_SIZE and what in FIELD_GROUPS["fitting"]:
            spec = get_model(given["model_key"], self._studio.models)
            given["width"], given["height"] = size_from_resolution(spec, spec.resolution, shape)
        if what not in FIELD_GROUPS["number"]:
            given["num_images"] = 1
        if what == "Extend":
            given |= {"outpaint": sides, "strength": None}
        if what == "Enlarge" and given["upscaler"] != "detail":
            given["strength"] = None
        return GenerationRequest.from_dict({"seed": RANDOM_SEED, **given})


def _hex(color: str) -> str:
    """Gradio's colour picker says `rgba(1, 2, 3, 1)` once it was used."""
    found = re.findall(r"\d+(?:\.\d+)?", color) if color.startswith("rgb") else []
    return "#" + "".join(f"{round(float(part)):02x}" for part in found[:3]) if found else color


PAINTS = ("#ff2bd6", "#19e6ff", "#ffe600")  # to tell the paint from any picture


class EditTab:
    """Layout and behaviour of the tab; `source` is the kept picture that it was last given."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._source = gr.State("")
        self._job = gr.State("")  # the id of the one that is shown
        with gr.Row(elem_id="edit-desk"):
            with gr.Column(elem_id="edit-before"):
                self._editor = gr.ImageEditor(
                    type="pil",
                    format="png",
                    label="Picture; paint over what is to be repainted",
                    elem_id="edit-picture",
                    sources=("upload", "clipboard", "webcam"),
                    transforms=(),
                    layers=False,
                    brush=gr.Brush(colors=list(PAINTS), color_mode="fixed"),
                )
                self._told = panel("edit-told")
                self._strip = panel("edit-strip")
            with gr.Column(elem_id="edit-form"):
                self._form = EditForm(studio)
                self._make = gr.Button("Make", variant="primary", elem_id="edit-make")
                self._stop = gr.Button("Stop", elem_id="edit-stop", visible=False)
            with gr.Column(elem_id="edit-after"):
                self._result = panel("edit-result")

    def bind_events(self, page: gr.Blocks, tab: gr.Tab) -> None:
        """Connect what was laid out; call inside the page's context."""
        inputs = {self._editor, self._source, *self._form.widgets}
        bind(tab.select, self.show, {self._source}, {self._strip, self._told})
        bind(self._strip.click, self.pick, {self._source}, self.load_image_outputs)
        bind(
            self._result.click,
            self.on_click,
            {self._source},
            self.load_image_outputs | {self._result},
        )
        bind(self._stop.click, self.stop, {self._job})
        self._form.bind_events(page)
        fitting = [
            self._form[name].change for name in ("shape", "resize_mode", "fill_color", "what")
        ]
        bind(
            [
                *fitting,
                self._form["model_key"].change,
                self._editor.upload,
                self._editor.clear,
                self._source.change,
            ],
            self.preview,
            inputs,
            {self._form.fitted},
            trigger_mode="always_last",
        )
        gr.on(  # not through `bind`, whose wrapper hides that this is a generator
            self._make.click,
            self.generate,
            inputs,
            {self._result, self._strip, self._job, self._make, self._stop},
            api_visibility="private",
            show_progress="hidden",
            concurrency_limit=None,
        )

    def preview(self, values: Mapping[Any, Any]) -> dict[Any, Any]:
        """The picture as the model will get it."""
        picture = (values[self._editor] or {}).get("background")
        given = self._form.read(values)
        if picture is None or given["what"] not in FIELD_GROUPS["fitting"]:
            return {self._form.fitted: ""}
        try:
            wish = self._form.to_request(
                given | {"prompt": "a picture"}, "picture.png", picture.size
            )
            fitted = self._studio.inputs.preview_fit(picture, wish)
        except CanvasError as error:
            return {self._form.fitted: render("line.html", words=error_text(error), kind="wrong")}
        shown = render(
            "fit.html",
            picture=data_url(fitted),
            width=fitted.width,
            height=fitted.height,
            words=_fit_words(picture.size, fitted.size, wish.resize_mode),
        )
        return {self._form.fitted: shown}

    def show(self, _: Mapping[Any, Any], request: gr.Request) -> dict[Any, Any]:
        """The owner's latest pictures, to pick one; and what the page may say of a file."""
        latest = render_recent(self._studio, current_owner(request), None)
        return {self._strip: latest, self._told: render("edit_told.html")}

    def pick(
        self, _: Mapping[Any, Any], event: gr.EventData, request: gr.Request
    ) -> dict[Any, Any]:
        """Put a kept picture into the editor, with its prompt."""
        return self.load_image(int(event.image), current_owner(request))

    def on_click(
        self, _: Mapping[Any, Any], event: gr.EventData, request: gr.Request
    ) -> dict[Any, Any]:
        """A click on what was made: look at one of several, or go on with it."""
        owner = current_owner(request)
        if event.action == "pick":
            return self.load_image(int(event.image), owner)
        one = self._studio.image(int(event.image), owner)
        return {self._result: render_images([one], in_editor=True)}

    def stop(self, values: Mapping[Any, Any], request: gr.Request) -> None:
        """End the job that is shown."""
        if values[self._job]:
            self._studio.job(values[self._job], current_owner(request)).cancel()

    @property
    def load_image_outputs(self) -> set[Any]:
        """The components that `fill` updates."""
        names = ("prompt", "what", "strength")
        return {self._editor, self._source, *(self._form[name] for name in names)}

    def load_image(self, image_id: int, owner: str, what: str | None = None) -> dict[Any, Any]:
        """Updates that put a kept picture into the editor; raises NotFound for another's.

        `what` is to be done with it; None leaves that as it is.
        """
        image = self._studio.image(image_id, owner)
        picture = self._studio.inputs.open_image(image.filename, owner)
        return {
            self._editor: {"background": picture, "layers": [], "composite": None},
            self._source: image.filename,
            self._form["prompt"]: image.request.prompt,
            self._form["what"]: what or gr.skip(),
            self._form["strength"]: STRENGTHS[what] if what else gr.skip(),
        }

    def generate(self, values: Mapping[Any, Any], request: gr.Request) -> Iterator[dict[Any, Any]]:
        """Queue what is asked for and show it until it is done; the job outlives the tab."""
        owner = current_owner(request)
        job = show_errors(self._submit)(values, owner)
        for state in job.watch():
            if not state.finished:
                shown = render_progress(self._studio, state)
                yield {self._result: shown, self._job: job.id, **self._buttons(works=True)}
        shown = render_images(job.images, in_editor=True) if job.images else ""
        made = render_recent(self._studio, owner, None)
        yield {self._result: shown, self._strip: made, **self._buttons(works=False)}
        if job.status == "failed":
            show_errors(job.wait)()  # says why

    def _buttons(self, *, works: bool) -> dict[Any, Any]:
        return {self._make: gr.Button(visible=not works), self._stop: gr.Button(visible=works)}

    def _submit(self, values: Mapping[Any, Any], owner: str) -> Job:
        return self._studio.submit(self._wish(values, owner), owner, "page")

    def _wish(self, values: Mapping[Any, Any], owner: str) -> GenerationRequest:
        given = self._form.read(values)
        if given["what"] == "Other seeds":
            return self._other_seeds(given, values[self._source], owner)
        edited = values[self._editor] or {}
        background = edited.get("background")
        if background is None:
            raise CanvasError(
                gettext(
                    "Choose a picture first: drop one into the editor, or pick one of yours "
                    "below it."
                )
            )
        source = self._named(background, values[self._source], owner)
        wish = self._form.to_request(given, source, background.size)
        if given["what"] != "Repaint":
            return wish
        mask = self._mask(edited.get("layers") or [], background)
        return replace(wish, mask_image=mask)

    def _other_seeds(self, given: Mapping[str, Any], source: str, owner: str) -> GenerationRequest:
        """The picked picture's own request, on the way from its seed to others."""
        kept = self._studio.inputs.find_image(source, owner)
        if kept is None or kept.task != "text_to_image":
            raise CanvasError(
                gettext(
                    "Pick a picture of yours below the editor first, one that was made from words "
                    "alone."
                )
            )
        return replace(
            kept.request,
            prompt=given["prompt"],
            variation_seed=random.randrange(2**32),
            variation_strength=given["strength"],
            num_images=int(given["num_images"]),
        )

    def _named(self, background: Image.Image, source: str, owner: str) -> str:
        """The kept picture's own name while the editor still shows it, else that of a new one."""
        if source:
            kept = self._studio.inputs.open_image(source, owner).convert("RGB")
            if (
                background.size == kept.size
                and background.convert("RGB").tobytes() == kept.tobytes()
            ):
                return source
        return self._studio.inputs.upload(background).name

    def _mask(self, layers: list[Image.Image], background: Image.Image) -> str:
        from PIL import Image, ImageChops

        mask = Image.new("L", background.size)
        for layer in layers:
            if layer.size == mask.size:
                mask = ImageChops.lighter(mask, layer.getchannel("A"))
        if mask.getbbox() is None:
            raise CanvasError(
                gettext("Paint over what is to be repainted first, with the brush of the editor.")
            )
        return self._studio.inputs.upload(mask, "mask_image").name


def _fit_words(before: tuple[int, int], after: tuple[int, int], fit: str) -> str:
    sizes = {"size": "{} × {}".format(*after), "whole": "{} × {}".format(*before)}
    if before[0] * after[1] == before[1] * after[0]:
        return gettext("{size} of {whole}", **sizes)
    return {
        "crop": gettext("{size} of {whole}, cut", **sizes),
        "pad": gettext("{size} of {whole}, filled up", **sizes),
        "stretch": gettext("{size} of {whole}, stretched", **sizes),
    }[fit]
