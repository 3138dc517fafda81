"""The generation form: one Gradio component for each field of `GenerationRequest`, the backend and LoRA included."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import gradio as gr

from canvas import validation
from canvas.catalog import Catalog, ModelSpec, get_model
from canvas.errors import CanvasError, InvalidInput, LazyMessage
from canvas.models.capabilities import Capabilities
from canvas.presets import PRESETS, preset_defaults
from canvas.request import BACKENDS, IMAGE_FORMATS, LOCAL, RANDOM_SEED, GenerationRequest, rename_old_fields
from canvas.schedulers import SCHEDULERS
from canvas.studio import Studio
from canvas.styles import STYLES
from canvas.ui.events import bind, current_owner, toast_html
from canvas.ui.html_panel import error_line, panel, render
from canvas.ui.i18n import format_bytes, gettext, translate_message

ASPECT_RATIOS = ("1:1", "4:3", "3:2", "16:9", "3:4", "2:3", "9:16")
ComponentFactory = Callable[[Sequence[str], ModelSpec], gr.components.Component]


def size_from_resolution(spec: ModelSpec, resolution: float, aspect_ratio: str) -> tuple[int, int]:
    """Width and height of about `resolution`² pixels, multiples of 8 in the model's range."""
    resolution = validation.number("resolution", resolution, spec.min_size, spec.max_size)
    validation.choice("aspect_ratio", aspect_ratio, ASPECT_RATIOS)
    across, down = (int(part) for part in aspect_ratio.split(":"))
    factor = math.sqrt(across / down)
    return _clamp_side(spec, resolution * factor), _clamp_side(spec, resolution / factor)


def _clamp_side(spec: ModelSpec, side: float) -> int:
    lowest, highest = math.ceil(spec.min_size / 8) * 8, spec.max_size // 8 * 8
    return min(max(round(side / 8) * 8, lowest), highest)


def resolution_from_size(spec: ModelSpec, width: int, height: int, largest: int) -> tuple[int, str] | None:
    """The resolution (at most `largest`) and aspect ratio that give exactly this size, or None."""
    for resolution in range(spec.min_size, largest + 1, spec.size_step):
        for aspect_ratio in ASPECT_RATIOS:
            if size_from_resolution(spec, resolution, aspect_ratio) == (width, height):
                return resolution, aspect_ratio
    return None


class ResolutionSlider(gr.Slider):
    """A slider that does not check its range: the request does.

    When another model is selected, the browser may still send a value of the old range, for which
    Gradio would reject the whole form.
    """

    is_template = True  # private: use the front end of gr.Slider

    def preprocess(self, payload: float) -> float:
        return payload


def require_prompt(fields: Mapping[str, Any]) -> None:
    """Raise InvalidInput if the form has no prompt."""
    if not fields["prompt"].strip():
        raise InvalidInput("prompt", "", message=LazyMessage("Write a prompt first."))


def model_title(spec: ModelSpec) -> str:
    """What a list of models calls a model, in the visitor's language."""
    return gettext(spec.title) if spec.title else spec.key


def preset_options() -> list[tuple[str, str]]:
    """The choices of a preset widget, as labels and values."""
    return [(preset.capitalize(), preset) for preset in PRESETS]


COMPONENTS: Mapping[str, ComponentFactory] = MappingProxyType(
    {
        "prompt": lambda models, spec: gr.Textbox(
            label="Prompt",
            placeholder="Describe an image: a fox in the snow, 3d",
            lines=3,
            max_lines=8,
            autofocus=True,
            show_label=False,
            container=False,
            elem_id="prompt",
        ),
        "model_key": lambda models, spec: gr.Dropdown(list(models), value=spec.key, label="Model", elem_id="model"),
        "backend": lambda models, spec: gr.Dropdown(
            [(label, backend) for backend, label in BACKENDS.items()], value=LOCAL, label="Run on", elem_id="backend"
        ),
        "preset": lambda models, spec: gr.Radio(
            preset_options(), value="quality", label="Speed", elem_id="preset", elem_classes="pills"
        ),
        "style": lambda models, spec: gr.Dropdown(list(STYLES), value="none", label="Style"),
        "num_images": lambda models, spec: gr.Slider(1, 16, value=1, step=1, label="Number of images", buttons=[]),
        "seed": lambda models, spec: gr.Number(
            -1, label="Seed", info="-1 for a random seed", precision=0, elem_id="seed"
        ),
        "negative_prompt": lambda models, spec: gr.Textbox(
            label="Negative prompt", placeholder="What to avoid", lines=2, max_lines=4
        ),
        "num_inference_steps": lambda models, spec: gr.Slider(
            1, 150, value=spec.num_inference_steps, step=1, label="Steps", buttons=[]
        ),
        "guidance_scale": lambda models, spec: gr.Slider(
            0, 30, value=spec.guidance_scale, step=0.1, label="Guidance", buttons=[]
        ),
        "scheduler": lambda models, spec: gr.Dropdown(list(SCHEDULERS), value=spec.scheduler, label="Scheduler"),
        # 0, not None: Gradio's number field turns None into 0 when it is rendered
        "width": lambda models, spec: gr.Number(
            0, label="Exact width", info="0 uses the resolution", precision=0, min_width=100, step=8
        ),
        "height": lambda models, spec: gr.Number(
            0, label="Exact height", info="0 uses the resolution", precision=0, min_width=100, step=8
        ),
        "image_format": lambda models, spec: gr.Dropdown(
            list(IMAGE_FORMATS), value="png", label="Image format", min_width=120
        ),
        "quality": lambda models, spec: gr.Slider(1, 100, value=95, step=1, label="JPEG and WebP quality", buttons=[]),
        "prompt_weighting": lambda models, spec: gr.Checkbox(
            label="Prompt weighting", info="Enables (word:1.3), [word], BREAK and prompts over 77 tokens"
        ),
        "watermark": lambda models, spec: gr.Textbox(label="Watermark", placeholder="None", max_lines=1, max_length=60),
        # Not fields of a request: these two set width and height while the exact ones are 0
        "resolution": lambda models, spec: ResolutionSlider(
            **_slider_range(spec, spec.recommended_size),
            value=spec.resolution,
            label="Resolution",
            buttons=[],
            elem_id="resolution",
            min_width=150,
        ),
        "aspect_ratio": lambda models, spec: gr.Dropdown(
            list(ASPECT_RATIOS),
            value="1:1",
            label="Aspect ratio",
            elem_id="aspect-ratio",
            filterable=False,
            min_width=90,
        ),
    }
)
FIELDS = tuple(name for name in COMPONENTS if name not in ("resolution", "aspect_ratio"))
# Fields that do nothing with some models, and the attribute of Capabilities that says so
ACTING_FIELDS = {
    "negative_prompt": "negative_prompt",
    "guidance_scale": "guidance",
    "variation_seed": "variation_seed",
    "variation_strength": "variation_seed",
    "prompt_weighting": "prompt_weighting",
}
PRESET_FIELDS = ("num_inference_steps", "guidance_scale", "scheduler")


def _slider_range(spec: ModelSpec, largest: int) -> dict[str, Any]:
    # Gradio has no slider of a single value, which a model of the smallest size would need.
    return {"minimum": spec.min_size, "maximum": max(largest, spec.min_size + spec.size_step), "step": spec.size_step}


class Form:
    """Components by the name of the field that each of them edits."""

    def __init__(self) -> None:
        self._widgets: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        return self._widgets[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._widgets)

    @property
    def widgets(self) -> set[Any]:
        """All components, as the inputs or outputs of an event."""
        return set(self._widgets.values())

    def read(self, values: Mapping[Any, Any]) -> dict[str, Any]:
        """The values by field name, from the values that Gradio passes to a callback."""
        return {name: values[widget] for name, widget in self._widgets.items()}


class GenerationForm(Form):
    """Renders the components and converts between their values and a `GenerationRequest`.

    `available` are the models that can be selected; None means all. `capabilities` returns what
    acts with a model, None if that is not known yet: then everything is shown.
    """

    def __init__(
        self,
        models: Catalog,
        default_model: str,
        available: Sequence[str] | None = None,
        capabilities: Callable[[str], Capabilities | None] | None = None,
    ) -> None:
        super().__init__()
        self._models = models
        self._capabilities = capabilities
        choices = models if available is None else [*available, default_model]
        self._available = tuple(dict.fromkeys(choices))
        self._default_model = get_model(default_model, models)

    def render(self, *names: str) -> None:
        for name in names:
            self._widgets[name] = COMPONENTS[name](self._available, self._default_model)
            if name == "model_key":
                self._widgets[name].choices = [(model_title(self._models[key]), key) for key in self._available]

    def to_request(self, fields: Mapping[str, Any]) -> GenerationRequest:
        """The request of these values by field name; raises InvalidInput."""
        spec = get_model(fields["model_key"], self._models)
        width, height = size_from_resolution(spec, fields["resolution"], fields["aspect_ratio"])
        values = {name: fields[name] for name in FIELDS}
        values["width"], values["height"] = values["width"] or width, values["height"] or height
        if values["seed"] is None:
            values["seed"] = RANDOM_SEED
        return GenerationRequest.from_dict(values)

    def model_of(self, updates: Mapping[Any, Any]) -> str:
        """The model that is selected after these updates of a fresh form."""
        return updates.get(self["model_key"], self._default_model.key)

    def _largest(self, spec: ModelSpec) -> int:
        """The end of the resolution slider; larger images are upscaled afterwards."""
        capabilities = self._capabilities(spec.key) if self._capabilities else None
        return spec.resolution if capabilities and capabilities.has_unet else spec.recommended_size

    def _resolution_slider(self, spec: ModelSpec, value: float) -> gr.Slider:
        largest = self._largest(spec)
        return gr.Slider(**_slider_range(spec, largest), value=min(value, largest))

    def _has_backend(self, backend: str) -> bool:
        return backend in [value for _, value in self["backend"].choices]

    # Updates of the components, as the result of a callback

    def update_from_request(self, request: GenerationRequest) -> dict[Any, Any]:
        """Set every field; those that are None in the request come from its model."""
        spec = get_model(request.model_key, self._models)
        updates = self.update_for_model(request.model_key, request.preset)
        for name, value in request.to_dict().items():
            if name in self._widgets and value is not None:
                update = updates.get(self[name])
                updates[self[name]] = {**update, "value": value} if isinstance(update, dict) else value
        if not self._has_backend(request.backend):
            updates[self["backend"]] = LOCAL
        width, height = request.width or spec.resolution, request.height or spec.resolution
        if found := resolution_from_size(spec, width, height, self._largest(spec)):
            updates[self["width"]] = updates[self["height"]] = 0
            updates[self["resolution"]] = self._resolution_slider(spec, found[0])
            updates[self["aspect_ratio"]] = found[1]
        return updates

    def request_from(self, values: Mapping[str, Any]) -> GenerationRequest:
        """A request with some fields, and a placeholder for a missing prompt."""
        return GenerationRequest.from_dict({"prompt": "…", "model_key": self._default_model.key, **values})

    def update_for_model(self, model_key: str, preset: str = "quality") -> dict[Any, Any]:
        """Set size, steps, guidance and scheduler to the defaults of a model."""
        spec = get_model(model_key, self._models)
        updates = self.update_for_preset(model_key, preset)
        updates[self["resolution"]] = self._resolution_slider(spec, spec.resolution)
        updates[self["width"]] = updates[self["height"]] = 0
        return {**updates, **self._show_what_acts(model_key, updates)}

    def _show_what_acts(self, model_key: str, values: Mapping[Any, Any]) -> dict[Any, Any]:
        """Show the fields, and the schedulers, that act with a model; `values` are set, too."""
        if self._capabilities is None:
            return {}
        capabilities = self._capabilities(model_key)
        updates: dict[Any, Any] = {}
        for name, effect in ACTING_FIELDS.items():
            if name in self._widgets:
                updates[self[name]] = gr.update(visible=capabilities is None or getattr(capabilities, effect))
        if "scheduler" in self._widgets:
            choices = list(capabilities.schedulers if capabilities else SCHEDULERS)
            updates[self["scheduler"]] = gr.update(choices=choices)
            if values.get(self["scheduler"]) not in choices:
                updates[self["scheduler"]]["value"] = choices[0]
        for widget, update in updates.items():
            if widget in values:
                update.setdefault("value", values[widget])
        return updates

    def update_for_preset(self, model_key: str, preset: str) -> dict[Any, Any]:
        """Set steps, guidance and scheduler to those of a preset with a model."""
        defaults = preset_defaults(preset, get_model(model_key, self._models))
        return {self[name]: value for name, value in zip(PRESET_FIELDS, defaults, strict=True)}

    def restore(self, saved: object) -> dict[Any, Any]:
        """Set what `read` returned in an earlier visit; no updates if it is not valid any more."""
        if not isinstance(saved, dict):
            return {}
        saved = rename_old_fields(saved)
        if set(saved) != set(self._widgets) or not self._has_backend(saved["backend"]):
            return {}
        try:
            self.to_request({**saved, "prompt": saved["prompt"] or "…"})
        except CanvasError:
            return {}
        updates = {self[name]: value for name, value in saved.items()}
        spec = get_model(saved["model_key"], self._models)
        updates[self["resolution"]] = self._resolution_slider(spec, saved["resolution"])
        return updates


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
