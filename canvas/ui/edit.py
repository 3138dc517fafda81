"""The tab where pictures are changed: redrawn, repainted under a mask, extended, enlarged."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import gradio as gr

from canvas.catalog import get_model
from canvas.errors import InvalidInput
from canvas.jobs import Job
from canvas.request import RANDOM_SEED, GenerationRequest
from canvas.tasks import FITS, SCALES, UPSCALERS
from canvas.ui.events import in_words, listen
from canvas.ui.owner import owner_of
from canvas.ui.panel import panel, render
from canvas.ui.stage import data_url, progress_words, stage, strip

if TYPE_CHECKING:
    from PIL import Image

    from canvas.studio import Studio

NOTHING = "Choose a picture first: drop one into the editor, or pick one of yours below it."
TASKS: Mapping[str, str] = MappingProxyType(
    {
        "Variations": "image_to_image",
        "Repaint": "inpaint",
        "Extend": "inpaint",
        "Enlarge": "upscale",
    }
)
SIDES = ("left", "top", "right", "bottom")


class Edit:
    """Layout and behaviour of the tab; `source` is the kept picture that it was last given."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._source = gr.State("")
        self._fields: dict[str, gr.components.Component] = {}
        with gr.Row(elem_id="edit-desk"):
            with gr.Column():
                self._editor = gr.ImageEditor(
                    type="pil",
                    format="png",
                    label="Picture; paint over what is to be repainted",
                    elem_id="edit-picture",
                    transforms=(),
                    layers=False,
                    brush=gr.Brush(colors=["#ff3b30"], color_mode="fixed"),
                )
                self._strip = panel("edit-strip")
            with gr.Column(elem_id="edit-form"):
                self._lay_out_form()
                self._make = gr.Button("Make", variant="primary", elem_id="edit-make")
                self._result = panel("edit-result")

    def _lay_out_form(self) -> None:
        models = self._studio.models
        spec = get_model(self._studio.settings.model, models)
        with gr.Row():
            self._place("what", gr.Radio(list(TASKS), value="Variations", label="What to do"))
        self._place("prompt", gr.Textbox(label="What to draw", lines=2, elem_id="edit-prompt"))
        self._place("model_key", gr.Dropdown(list(models), value=spec.key, label="Model"))
        self._place("strength", gr.Slider(0.05, 1, value=0.5, step=0.05, label="Strength"))
        self._place("num_images", gr.Slider(1, 4, value=4, step=1, label="How many"))
        with gr.Accordion("Repaint and extend", open=False):
            self._place(
                "only_masked", gr.Checkbox(label="Only the painted area, at full resolution")
            )
            self._place("mask_feather", gr.Slider(0, 64, value=8, step=1, label="Soft edge"))
            with gr.Row():
                for side in SIDES:
                    self._place(side, gr.Number(0, label=f"Extend {side}", step=8, precision=0))
        with gr.Accordion("Enlarge and fit", open=False):
            self._place("scale", gr.Radio(list(SCALES), value=2, label="Times as large"))
            self._place("upscaler", gr.Dropdown(list(UPSCALERS), value="lanczos", label="How"))
            self._place("fit", gr.Radio(list(FITS), value="crop", label="Where the shape differs"))
            self._place("background", gr.ColorPicker("#ffffff", label="Behind what is transparent"))

    def _place(self, name: str, widget: gr.components.Component) -> None:
        self._fields[name] = widget

    def wire(self, tab: gr.Tab) -> None:
        """Connect what was laid out; call inside the page's context."""
        inputs = {self._editor, self._source, *self._fields.values()}
        listen(tab.select, self.show, {self._source}, {self._strip})
        listen(
            self._strip.click,
            self.pick,
            {self._source},
            self.filled,
        )
        gr.on(  # not through `listen`, whose wrapper hides that this is a generator
            self._make.click,
            self.make,
            inputs,
            {self._result, self._strip},
            api_visibility="private",
            show_progress="hidden",
            concurrency_limit=None,
        )

    def show(self, _: Mapping[Any, Any], request: gr.Request) -> dict[Any, Any]:
        """The owner's latest pictures, to pick one."""
        return {self._strip: strip(self._studio, owner_of(request), None)}

    def pick(
        self, _: Mapping[Any, Any], event: gr.EventData, request: gr.Request
    ) -> dict[Any, Any]:
        """Put a kept picture into the editor, with its prompt."""
        return self.fill(int(event.image), owner_of(request))

    @property
    def filled(self) -> set[Any]:
        """The components that `fill` updates."""
        return {self._editor, self._source, self._fields["prompt"], self._fields["what"]}

    def fill(self, image_id: int, owner: str, what: str = "Variations") -> dict[Any, Any]:
        """Updates that put a kept picture into the editor; raises NotFound for another's."""
        image = self._studio.image(image_id, owner)
        picture = self._studio.shelf.picture(image.filename, owner)
        return {
            self._editor: {"background": picture, "layers": [], "composite": None},
            self._source: image.filename,
            self._fields["prompt"]: image.request.prompt,
            self._fields["what"]: what,
        }

    def make(self, values: Mapping[Any, Any], request: gr.Request) -> Iterator[dict[Any, Any]]:
        """Queue what is asked for and show it until it is done; the job outlives the tab."""
        owner = owner_of(request)
        job = in_words(self._submit)(values, owner)
        for state in job.watch():
            if not state.finished:
                yield {self._result: self._making(state)}
        in_words(job.wait)()  # says why where there is no picture
        shown = stage(self._studio, owner, job.images[0].id if len(job.images) == 1 else None)
        yield {self._result: shown, self._strip: strip(self._studio, owner, None)}

    def _submit(self, values: Mapping[Any, Any], owner: str) -> Job:
        return self._studio.submit(self._wish(values, owner), owner, "page")

    def _making(self, job: Job) -> str:
        preview = data_url(job.preview) if job.preview else ""
        return render("edit_making.html", words=progress_words(self._studio, job), preview=preview)

    def _wish(self, values: Mapping[Any, Any], owner: str) -> GenerationRequest:
        given = {name: values[widget] for name, widget in self._fields.items()}
        what = given.pop("what")
        given["background"] = _hex(given["background"])
        sides = tuple(int(given.pop(side) or 0) for side in SIDES)
        edited = values[self._editor] or {}
        background = edited.get("background")
        if background is None:
            raise InvalidInput("image", None, NOTHING)
        given |= {
            "task": TASKS[what],
            "image": self._named(background, values[self._source], owner),
        }
        if what != "Variations":
            given["num_images"] = 1
        if what == "Repaint":
            given["mask_image"] = self._mask(edited.get("layers") or [], background)
        if what == "Extend":
            given |= {"extend": sides, "strength": None}
        return GenerationRequest.from_dict({"seed": RANDOM_SEED, **given})

    def _named(self, background: Image.Image, source: str, owner: str) -> str:
        """The kept picture's own name while the editor still shows it, else that of a new one."""
        if source:
            kept = self._studio.shelf.picture(source, owner).convert("RGB")
            if (
                background.size == kept.size
                and background.convert("RGB").tobytes() == kept.tobytes()
            ):
                return source
        return self._studio.shelf.hand_in(background).name

    def _mask(self, layers: list[Image.Image], background: Image.Image) -> str:
        from PIL import Image, ImageChops

        mask = Image.new("L", background.size)
        for layer in layers:
            if layer.size == mask.size:
                mask = ImageChops.lighter(mask, layer.getchannel("A"))
        if mask.getbbox() is None:
            raise InvalidInput("mask_image", None, "paint over what is to be repainted")
        return self._studio.shelf.hand_in(mask, "mask_image").name


def _hex(color: str) -> str:
    """Gradio's colour picker says `rgba(1, 2, 3, 1)` once it was used."""
    found = re.findall(r"\d+(?:\.\d+)?", color) if color.startswith("rgb") else []
    return "#" + "".join(f"{round(float(part)):02x}" for part in found[:3]) if found else color
