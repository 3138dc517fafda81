"""The widgets of the form, by the field of GenerationRequest that each of them fills."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import gradio as gr

from canvas import validation
from canvas.catalog import Catalog, ModelSpec, get_model
from canvas.errors import CanvasError
from canvas.presets import PRESETS, preset_defaults
from canvas.request import BACKENDS, IMAGE_FORMATS, LOCAL, RANDOM_SEED, GenerationRequest
from canvas.schedulers import SCHEDULERS
from canvas.styles import STYLES

ASPECT_RATIOS = ("1:1", "4:3", "3:2", "16:9", "3:4", "2:3", "9:16")


def size_from_resolution(spec: ModelSpec, resolution: float, aspect_ratio: str) -> tuple[int, int]:
    """Width and height of about `resolution`² pixels, multiples of 8 that the model can make."""
    resolution = validation.number("resolution", resolution, spec.min_size, spec.max_size)
    validation.choice("aspect_ratio", aspect_ratio, ASPECT_RATIOS)
    across, down = (int(part) for part in aspect_ratio.split(":"))
    stretch = math.sqrt(across / down)
    return _fitting(spec, resolution * stretch), _fitting(spec, resolution / stretch)


def _fitting(spec: ModelSpec, side: float) -> int:
    lowest, highest = math.ceil(spec.min_size / 8) * 8, spec.max_size // 8 * 8
    return min(max(round(side / 8) * 8, lowest), highest)


def resolution_from_size(spec: ModelSpec, width: int, height: int) -> tuple[int, str] | None:
    """The resolution and aspect ratio that give exactly this size; None when none do."""
    for resolution in range(spec.min_size, spec.max_size + 1, spec.size_step):
        for aspect_ratio in ASPECT_RATIOS:
            if size_from_resolution(spec, resolution, aspect_ratio) == (width, height):
                return resolution, aspect_ratio
    return None


ComponentFactory = Callable[[Sequence[str], ModelSpec], gr.components.Component]


class SizeSlider(gr.Slider):
    """Hands over what the browser sent: until its bounds have arrived there, the value may be
    one of the model before, and Gradio would refuse the whole form. The request checks it.
    """

    is_template = True  # drawn by Gradio's own slider

    def preprocess(self, payload: float) -> float:
        """The value as it is."""
        return payload


COMPONENTS: Mapping[str, ComponentFactory] = MappingProxyType(
    {
        "prompt": lambda models, spec: gr.Textbox(
            label="Prompt",
            placeholder="Describe a picture: a fox in the snow, 3d",
            lines=1,
            max_lines=6,
            autofocus=True,
            show_label=False,
            container=False,
            elem_id="prompt",
        ),
        "model_key": lambda models, spec: gr.Dropdown(
            list(models),
            value=spec.key,
            label="Model",
            elem_id="model",
        ),
        "backend": lambda models, spec: gr.Dropdown(
            [(words, place) for place, words in BACKENDS.items()],
            value=LOCAL,
            label="Where",
            elem_id="backend",
        ),
        "preset": lambda models, spec: gr.Radio(
            [(preset.capitalize(), preset) for preset in PRESETS],
            value="quality",
            label="Mode",
            show_label=False,
            container=False,
            elem_id="preset",
            elem_classes="pills",
        ),
        "style": lambda models, spec: gr.Dropdown(list(STYLES), value="none", label="Style"),
        "num_images": lambda models, spec: gr.Slider(
            1, 16, value=1, step=1, label="Number of pictures", buttons=[]
        ),
        "seed": lambda models, spec: gr.Number(
            -1, label="Seed", info="-1 draws a new one each time", precision=0, elem_id="seed"
        ),
        "negative_prompt": lambda models, spec: gr.Textbox(
            label="Negative prompt", placeholder="What should not be in it", lines=2, max_lines=4
        ),
        "num_inference_steps": lambda models, spec: gr.Slider(
            1, 150, value=spec.num_inference_steps, step=1, label="Steps", buttons=[]
        ),
        "guidance_scale": lambda models, spec: gr.Slider(
            0, 30, value=spec.guidance_scale, step=0.1, label="Guidance", buttons=[]
        ),
        "scheduler": lambda models, spec: gr.Dropdown(
            list(SCHEDULERS), value=spec.scheduler, label="Scheduler"
        ),
        # 0, not None: Gradio's number field makes 0 of nothing when it is drawn
        "width": lambda models, spec: gr.Number(
            0, label="Exact width", info="0: from resolution", precision=0, min_width=100, step=8
        ),
        "height": lambda models, spec: gr.Number(
            0, label="Exact height", info="0: from resolution", precision=0, min_width=100, step=8
        ),
        "image_format": lambda models, spec: gr.Dropdown(
            list(IMAGE_FORMATS), value="png", label="Image format", min_width=120
        ),
        "quality": lambda models, spec: gr.Slider(
            1, 100, value=95, step=1, label="Quality of JPEG and WebP", buttons=[]
        ),
        "prompt_weighting": lambda models, spec: gr.Checkbox(
            label="Weights in the prompt",
            info="(word:1.3), [word], BREAK, and more than 77 tokens",
        ),
        "watermark": lambda models, spec: gr.Textbox(
            label="Watermark", placeholder="None", max_lines=1, max_length=60
        ),
        # Two widgets that are no fields: they stand for width and height while those are empty
        "resolution": lambda models, spec: SizeSlider(
            **_range_of(spec), value=spec.resolution, label="Resolution", buttons=[]
        ),
        "aspect_ratio": lambda models, spec: gr.Radio(
            list(ASPECT_RATIOS), value="1:1", label="Aspect ratio", elem_classes="pills"
        ),
    }
)
FIELDS = tuple(name for name in COMPONENTS if name not in ("resolution", "aspect_ratio"))
PRESET_FIELDS = ("num_inference_steps", "guidance_scale", "scheduler")


def _range_of(spec: ModelSpec) -> dict[str, Any]:
    return {"minimum": spec.min_size, "maximum": spec.max_size, "step": spec.size_step}


class GenerationForm:
    """The form: makes the widgets where they are placed, reads and fills them by field name.

    Of the models those in `offered` can be picked, None means all.
    """

    def __init__(
        self, models: Catalog, preselected: str, offered: Sequence[str] | None = None
    ) -> None:
        self._models = models
        picks = models if offered is None else [*offered, preselected]
        self._offered = tuple(dict.fromkeys(picks))
        self._preselected = get_model(preselected, models)
        self._widgets: dict[str, Any] = {}

    def render(self, *names: str) -> None:
        """Make these widgets in the layout that is open."""
        for name in names:
            self._widgets[name] = COMPONENTS[name](self._offered, self._preselected)

    def __getitem__(self, name: str) -> Any:
        return self._widgets[name]

    @property
    def widgets(self) -> set[Any]:
        """All widgets, as the inputs or outputs of an event."""
        return set(self._widgets.values())

    def read(self, values: Mapping[Any, Any]) -> dict[str, Any]:
        """The values of the widgets by name, from what Gradio hands to a callback."""
        return {name: values[widget] for name, widget in self._widgets.items()}

    def request(self, fields: Mapping[str, Any]) -> GenerationRequest:
        """What the values of the widgets ask for; raises InvalidInput as the request does."""
        spec = get_model(fields["model_key"], self._models)
        width, height = size_from_resolution(spec, fields["resolution"], fields["aspect_ratio"])
        asked = {name: fields[name] for name in FIELDS}
        asked["width"], asked["height"] = asked["width"] or width, asked["height"] or height
        if asked["seed"] is None:
            asked["seed"] = RANDOM_SEED
        return GenerationRequest.from_dict(asked)

    def update_partial(self, values: Mapping[str, Any]) -> dict[Any, Any]:
        """`fill` with some fields of a request; the others as its model would have them."""
        fields = {"prompt": "…", "model_key": self._preselected.key, **values}
        updates = self.update_from_request(GenerationRequest.from_dict(fields))
        if "prompt" not in values:
            updates.pop(self["prompt"])
        return updates

    def restore(self, saved: object) -> dict[Any, Any]:
        """Updates that bring back what `read` gave; none when it does not fit this form."""
        if not isinstance(saved, dict) or set(saved) != set(self._widgets):
            return {}  # nothing was saved, or by another version
        if not self._offers(saved["backend"]):
            return {}
        try:
            self.request({**saved, "prompt": saved["prompt"] or "…"})
        except CanvasError:
            return {}
        updates = {self[name]: value for name, value in saved.items()}
        spec = get_model(saved["model_key"], self._models)
        updates[self["resolution"]] = gr.Slider(**_range_of(spec), value=saved["resolution"])
        return updates

    def _offers(self, where: str) -> bool:
        return where in [place for _, place in self["backend"].choices]

    def model_of(self, updates: Mapping[Any, Any]) -> str:
        """The model that is picked after these updates of a fresh form."""
        return updates.get(self["model_key"], self._preselected.key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._widgets)

    def update_for_preset(self, model_key: str, preset: str) -> dict[Any, Any]:
        """Updates that set steps, guidance and scheduler to what a mode does with a model."""
        chosen = preset_defaults(preset, get_model(model_key, self._models))
        return {self[name]: value for name, value in zip(PRESET_FIELDS, chosen, strict=True)}

    def update_for_model(self, model_key: str, preset: str = "quality") -> dict[Any, Any]:
        """Updates that set size, steps, guidance and scheduler to what suits a model."""
        spec = get_model(model_key, self._models)
        updates = self.update_for_preset(model_key, preset)
        updates[self["resolution"]] = gr.Slider(**_range_of(spec), value=spec.resolution)
        updates[self["width"]] = updates[self["height"]] = 0
        return updates

    def update_from_request(self, request: GenerationRequest) -> dict[Any, Any]:
        """Updates that put a request into the form; what it leaves open comes from its model."""
        spec = get_model(request.model_key, self._models)
        updates = self.update_for_model(request.model_key, request.preset)
        for name, value in request.to_dict().items():
            if name in self._widgets and value is not None:
                updates[self[name]] = value
        if not self._offers(request.backend):
            updates[self["backend"]] = LOCAL
        width, height = request.width or spec.resolution, request.height or spec.resolution
        if setting := resolution_from_size(spec, width, height):
            updates[self["width"]] = updates[self["height"]] = 0
            updates[self["resolution"]] = gr.Slider(**_range_of(spec), value=setting[0])
            updates[self["aspect_ratio"]] = setting[1]
        return updates
