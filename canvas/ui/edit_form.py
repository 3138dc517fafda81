"""The form beside a picture that is changed: its fields, and which of them belong to what."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import gradio as gr

from canvas.catalog import get_model
from canvas.errors import CanvasError
from canvas.modes import MODES
from canvas.request import RANDOM_SEED, GenerationRequest
from canvas.tasks import FITS, SCALES
from canvas.ui.events import listen
from canvas.ui.loras import LoraPicker
from canvas.ui.panel import panel
from canvas.ui.sizes import ASPECT_RATIOS, size_of

if TYPE_CHECKING:
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
ABOUT: Mapping[str, str] = MappingProxyType(
    {
        "Variations": "Draws the whole picture anew: the lower the strength, the nearer to it.",
        "Other seeds": "Makes a picture of yours again, on the way from its seed to others.",
        "Repaint": "Draws anew what you paint over, and leaves the rest as it is.",
        "Extend": "Draws what lies beyond the sides, so many pixels of it.",
        "Enlarge": "The same picture with more pixels.",
    }
)
DRAWN = ("Variations", "Repaint", "Extend", DETAIL)  # by the model of the form
GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "words": (*DRAWN, "Other seeds"),
        "strength": ("Variations", "Other seeds", "Repaint", DETAIL),
        "number": ("Variations", "Other seeds"),
        **{what: (what,) for what in TASKS},
        "Enlarge": ("Enlarge", DETAIL),
        "paint": ("Repaint",),
        "sides": ("Extend",),
        "larger": ("Enlarge", DETAIL),
        "model": DRAWN,
        "loras": (*DRAWN, "Other seeds"),
        "fitting": ("Variations", "Repaint"),
    }
)
HOW: Mapping[str, str] = MappingProxyType(
    {
        "lanczos": "Plainly",
        "illustration": "A network for illustrations",
        "photo": "A network for photographs",
        "detail": "With new detail, drawn by the model",
    }
)
AS_IT_IS = "As the picture"


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
        for what, about in ABOUT.items():
            with self._group(what):
                gr.Markdown(about, elem_classes="line")
        with self._group("words"):
            place("prompt", gr.Textbox(label="What to draw", lines=2, elem_id="edit-prompt"))
        with self._group("larger"):
            place("scale", gr.Radio(list(SCALES), value=2, label="Times as large"))
            how = [(words, name) for name, words in HOW.items()]
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
            place("mask_feather", gr.Slider(0, 64, value=8, step=1, label="Soft edge", buttons=[]))
        with self._group("model"):
            place("model_key", gr.Dropdown(list(models), value=spec.key, label="Model"))
            modes = [(mode.capitalize(), mode) for mode in MODES]
            place("mode", gr.Radio(modes, value="quality", label="Mode"))
        with self._group("fitting"), gr.Accordion("Shape", open=False):
            shapes = [AS_IT_IS, *ASPECT_RATIOS]
            place("shape", gr.Dropdown(shapes, value=AS_IT_IS, label="Shape of the result"))
            fits = [(fit.capitalize(), fit) for fit in FITS]
            place("fit", gr.Radio(fits, value="crop", label="Where the shape differs"))
            colour = gr.ColorPicker("#ffffff", label="Behind what is transparent, and around")
            place("background", colour)
            self.fitted = panel("edit-fit")
        with self._group("loras"):
            self._loras = LoraPicker(self._studio, "edit")

    def _group(self, name: str) -> gr.Column:
        shown = "Variations" in GROUPS[name]
        self._groups[name] = gr.Column(visible=shown, elem_classes="edit-group")
        return self._groups[name]

    def wire(self, page: gr.Blocks) -> None:
        """Connect what was laid out; call inside the page's context."""
        # Not in the tab: what is there is not mounted, and so knows nothing, while the page loads
        self._saved = gr.BrowserState(None, storage_key="magic-canvas-edit", secret="form")  # noqa: S106 - no secret: the reader's own form
        what, upscaler = self._fields["what"], self._fields["upscaler"]
        listen(what.input, self.choose, {what}, {self._fields["strength"]})
        groups = set(self._groups.values())
        listen([what.change, upscaler.change], self.arrange, {what, upscaler}, groups)
        listen(page.load, self.restore, {self._saved}, self.widgets)
        listen(
            [field.change for field in self._fields.values()],
            self.save,
            self.widgets,
            {self._saved},
            trigger_mode="always_last",
            queue=False,
        )
        self._loras.wire(page, self._fields["prompt"])

    def choose(self, values: Mapping[Any, Any]) -> dict[Any, Any]:
        """A strength that suits what was chosen."""
        strength = STRENGTHS.get(values[self._fields["what"]])
        return {self._fields["strength"]: gr.skip() if strength is None else strength}

    def arrange(self, values: Mapping[Any, Any]) -> dict[Any, Any]:
        """Show what belongs to it, and nothing else."""
        what = values[self._fields["what"]]
        if what == "Enlarge" and values[self._fields["upscaler"]] == "detail":
            what = DETAIL
        return {
            group: gr.Column(visible=what in GROUPS[name]) for name, group in self._groups.items()
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
            self.asked({**saved, "prompt": saved["prompt"] or "…"}, "picture.png", (64, 64))
        except CanvasError:
            return as_it_is
        return {self._fields[name]: value for name, value in saved.items()}

    def asked(
        self, given: Mapping[str, Any], image: str, size: tuple[int, int]
    ) -> GenerationRequest:
        """What the values of the form ask for, of a picture of that size; without a mask."""
        given = dict(given)
        what, shape = given.pop("what"), given.pop("shape")
        given["background"] = _hex(given["background"])
        sides = tuple(int(given.pop(side) or 0) for side in SIDES)
        given |= {"task": TASKS[what], "image": image}
        if shape != AS_IT_IS and what in GROUPS["fitting"]:
            spec = get_model(given["model_key"], self._studio.models)
            given["width"], given["height"] = size_of(spec, spec.resolution, shape)
        if what not in GROUPS["number"]:
            given["num_images"] = 1
        if what == "Extend":
            given |= {"extend": sides, "strength": None}
        if what == "Enlarge" and given["upscaler"] != "detail":
            given["strength"] = None
        return GenerationRequest.from_dict({"seed": RANDOM_SEED, **given})


def _hex(color: str) -> str:
    """Gradio's colour picker says `rgba(1, 2, 3, 1)` once it was used."""
    found = re.findall(r"\d+(?:\.\d+)?", color) if color.startswith("rgb") else []
    return "#" + "".join(f"{round(float(part)):02x}" for part in found[:3]) if found else color
