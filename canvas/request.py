"""GenerationRequest, ProgressUpdate and GeneratedImage, which every layer uses."""

from __future__ import annotations

import html
import math
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from functools import partial, wraps
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from canvas import presets, validation
from canvas.catalog import MODELS, ModelSpec
from canvas.errors import InvalidInput, LazyMessage
from canvas.guidance import (
    GUIDANCE_FIELDS,
    ControlImage,
    ReferenceImage,
    as_json,
    check_control_images,
    check_reference_images,
)
from canvas.image_formats import IMAGE_FORMATS, data_url
from canvas.schedulers import SCHEDULERS
from canvas.styles import STYLES

if TYPE_CHECKING:
    from PIL.Image import Image

JobStatus = Literal["queued", "downloading", "loading", "running", "done", "failed", "cancelled"]
Validator = Callable[[str, Any], Any]

LOCAL = "local"
HF_INFERENCE = "hf-inference"
REMOTE = "remote"
BACKENDS: Mapping[str, str] = MappingProxyType(
    {LOCAL: "This computer", HF_INFERENCE: "Hugging Face Inference Providers", REMOTE: "Another Magic Canvas"}
)
TASKS = ("text_to_image", "image_to_image", "inpaint", "upscale")
RESIZE_MODES = ("crop", "pad", "stretch")
UPSCALERS = ("lanczos", "illustration", "photo", "detail")
SCALES = (2, 4)
CLIENTS = ("page", "gradio", "mcp", "openai", "sdapi", "python", "cli")
FINISHED_STATUSES: tuple[JobStatus, ...] = ("done", "failed", "cancelled")
LOCAL_OWNER = "local"  # the owner of everything where nobody logs in
RANDOM_SEED = -1
MAX_SEED = 2**53 - 1  # the largest integer that JSON, JavaScript and SQLite all represent
MAX_IMAGES = 16
MIN_SIDE, MAX_SIDE = 64, 16384  # pixels
MIN_EDIT_SIDE, MAX_EDIT_SIDE = 8, 4096  # of results that start from an image
MAX_LORAS = 8
MAX_WATERMARK_LENGTH = 60  # characters
MAX_OUTPAINT = 2048  # pixels per side
DEFAULT_STRENGTHS: Mapping[str, float] = MappingProxyType({"image_to_image": 0.6, "inpaint": 1.0, "upscale": 0.3})
STRENGTH_TOLERANCE = 0.05
FILE_NAME = re.compile(r"[^\s/\\.][^/\\\x00-\x1f]{0,250}")
COLOR = re.compile(r"#[0-9a-f]{6}")

# Names and values of fields before version 0.2, which scripts, files and rows still use.
OLD_FIELD_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "fit": "resize_mode",
        "background": "fill_color",
        "mask_feather": "mask_blur",
        "extend": "outpaint",
        "mode": "preset",
        "where": "backend",
    }
)
OLD_BACKENDS: Mapping[object, str] = MappingProxyType({"here": LOCAL, "huggingface": HF_INFERENCE})


def rename_old_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Field values with old names and old backends replaced; present names take precedence."""
    renamed = {new: values[old] for old, new in OLD_FIELD_NAMES.items() if old in values}
    renamed |= {name: value for name, value in values.items() if name not in OLD_FIELD_NAMES}
    if isinstance(renamed.get("backend"), str):
        renamed["backend"] = OLD_BACKENDS.get(renamed["backend"], renamed["backend"])
    return renamed


def with_old_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`GeneratedImage.settings()` plus the old names and values, for clients that read them."""
    old = {old: settings[new] for old, new in OLD_FIELD_NAMES.items() if new in settings}
    if "where" in old:
        old_backends = {new: old for old, new in OLD_BACKENDS.items()}
        old["where"] = old_backends.get(old["where"], old["where"])
    return {**old, "channel": settings.get("client", ""), **settings}


def img2img_steps(num_inference_steps: int, strength: float) -> tuple[int, int]:
    """The length of the schedule, and how many of its last steps are computed.

    As in diffusers, unless the first computed step would be more than STRENGTH_TOLERANCE off
    `strength`: then the schedule is lengthened, computing at most `num_inference_steps`.
    """
    computed = int(num_inference_steps * strength)
    if computed and strength - computed / num_inference_steps <= STRENGTH_TOLERANCE:
        return num_inference_steps, computed
    computed = math.ceil(num_inference_steps * strength - 1e-9)
    shorter = max(computed, math.floor(computed / strength))
    schedule = min(shorter, shorter + 1, key=lambda length: abs(computed / length - strength))
    return schedule, computed


def _optional(validator: Validator) -> Validator:
    return lambda field, value: None if value is None else validator(field, value)


def _check_model_key(field: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidInput(field, value, LazyMessage("the key of a model"))
    return value


def _check_file_name(field: str, value: object) -> str:
    if not isinstance(value, str) or not FILE_NAME.fullmatch(validation.text(field, value)):
        raise InvalidInput(field, value, LazyMessage("the name of a gallery image or an upload"))
    return value


def _check_color(field: str, value: object) -> str:
    if not isinstance(value, str) or not COLOR.fullmatch(value.lower()):
        raise InvalidInput(field, value, LazyMessage("a colour such as #ffffff"))
    return value.lower()


def _check_outpaint(field: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or len(value) != 4:
        raise InvalidInput(field, value, "a list of four sizes in pixels: left, top, right, bottom")
    return tuple(validation.integer(field, side, 0, MAX_OUTPAINT) for side in value)


def _check_scale(field: str, value: object) -> int:
    scale = validation.integer(field, value, min(SCALES), max(SCALES))
    if scale not in SCALES:
        raise InvalidInput(field, value, " or ".join(map(str, SCALES)))
    return scale


def _check_loras(field: str, value: object) -> tuple[tuple[str, float], ...]:
    allowed = f"a list of at most {MAX_LORAS} pairs of a name and a weight between -4 and 4"
    if not isinstance(value, list | tuple) or len(value) > MAX_LORAS:
        raise InvalidInput(field, value, allowed)
    pairs = []
    for pair in value:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise InvalidInput(field, pair, allowed)
        name = validation.text(field, pair[0])
        if not name or len(name) > 200:
            raise InvalidInput(field, pair, allowed)
        pairs.append((name, validation.number(field, pair[1], -4, 4)))
    return tuple(pairs)


def _check_watermark(field: str, value: object) -> str:
    text = validation.text(field, value)
    if len(text) > MAX_WATERMARK_LENGTH or "\n" in text:
        allowed = LazyMessage("one line of at most {number} characters", number=MAX_WATERMARK_LENGTH)
        raise InvalidInput(field, value, allowed)
    return text


# In the order in which errors are reported; `width` and `height` follow.
FIELD_VALIDATORS: Mapping[str, Validator] = MappingProxyType(
    {
        "prompt": validation.text,
        "negative_prompt": validation.text,
        "style": partial(validation.choice, choices=STYLES),
        "image_format": partial(validation.choice, choices=IMAGE_FORMATS),
        "preset": partial(validation.choice, choices=presets.PRESETS),
        "backend": partial(validation.choice, choices=BACKENDS),
        "model_key": _check_model_key,
        "scale_to_size": validation.boolean,
        "seed": partial(validation.integer, low=RANDOM_SEED, high=MAX_SEED),
        "num_images": partial(validation.integer, low=1, high=MAX_IMAGES),
        "quality": partial(validation.integer, low=1, high=100),
        "num_inference_steps": _optional(partial(validation.integer, low=1, high=150)),
        "guidance_scale": _optional(partial(validation.number, low=0, high=30)),
        "scheduler": _optional(partial(validation.choice, choices=SCHEDULERS)),
        "task": partial(validation.choice, choices=TASKS),
        "image": _optional(_check_file_name),
        "mask_image": _optional(_check_file_name),
        "strength": _optional(partial(validation.number, low=0.01, high=1)),
        "resize_mode": partial(validation.choice, choices=RESIZE_MODES),
        "fill_color": _check_color,
        "mask_blur": partial(validation.integer, low=0, high=256),
        "only_masked": validation.boolean,
        "outpaint": _check_outpaint,
        "variation_seed": _optional(partial(validation.integer, low=0, high=MAX_SEED - MAX_IMAGES)),
        "variation_strength": partial(validation.number, low=0, high=1),
        "scale": _check_scale,
        "upscaler": partial(validation.choice, choices=UPSCALERS),
        "loras": _check_loras,
        "prompt_weighting": validation.boolean,
        "watermark": _check_watermark,
        "control_images": lambda field, value: check_control_images(field, value, _check_file_name),
        "reference_images": lambda field, value: check_reference_images(field, value, _check_file_name),
    }
)


@dataclass(frozen=True)
class GenerationRequest:
    """What to generate; fields that are None get their values from `with_defaults`.

    Image i of `num_images` has `seed + i`, so that it can be generated again alone; with a
    `variation_seed` that one counts up instead. `quality` (1 to 100) applies to JPEG and WebP.
    `image` and `mask_image` are names of gallery images or uploads, as are those in `control_images`
    and `reference_images`. `outpaint` are pixels to
    add on the left, top, right and bottom, `loras` pairs of name and weight. With `scale_to_size` a
    size that the model cannot draw is drawn at the nearest one that it can, and scaled. Raises
    InvalidInput.
    """

    prompt: str
    negative_prompt: str = ""
    style: str = "none"
    model_key: str = "starter"
    width: int | None = None
    height: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    scheduler: str | None = None
    seed: int = RANDOM_SEED
    num_images: int = 1
    image_format: str = "png"
    quality: int = 95
    task: str = "text_to_image"
    image: str | None = None
    mask_image: str | None = None
    strength: float | None = None
    resize_mode: str = "crop"
    fill_color: str = "#ffffff"
    mask_blur: int = 8
    only_masked: bool = False
    outpaint: tuple[int, ...] = (0, 0, 0, 0)
    variation_seed: int | None = None
    variation_strength: float = 0.0
    scale: int = 2
    upscaler: str = "lanczos"
    loras: tuple[tuple[str, float], ...] = ()
    prompt_weighting: bool = False
    watermark: str = ""
    preset: str = "quality"
    backend: str = LOCAL
    scale_to_size: bool = False
    control_images: tuple[ControlImage, ...] = ()
    reference_images: tuple[ReferenceImage, ...] = ()

    def __post_init__(self) -> None:
        for name, validator in FIELD_VALIDATORS.items():
            # How a frozen dataclass sets its fields
            object.__setattr__(self, name, validator(name, getattr(self, name)))
        for name in ("width", "height"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, self._check_side(name, value))
        if not self.prompt and self.task != "upscale":
            raise InvalidInput("prompt", self.prompt, message=LazyMessage("Prompt must not be empty."))
        if self.seed + self.num_images - 1 > MAX_SEED:
            allowed = LazyMessage("at most {number}", number=MAX_SEED - self.num_images + 1)
            raise InvalidInput("seed", self.seed, allowed)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GenerationRequest:
        """The inverse of `to_dict`; raises InvalidInput, also for an unknown field."""
        values = rename_old_fields(values)
        known = {item.name for item in fields(cls)}
        for name in values:
            if name not in known:
                message = f"Unknown field {name!r}; the fields are {', '.join(sorted(known))}."
                raise InvalidInput(name, values[name], message=message)
        return cls(**{"prompt": "", **values})

    def to_dict(self) -> dict[str, Any]:
        """All fields by name, with values that JSON can represent."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return values | {name: as_json(values[name]) for name in GUIDANCE_FIELDS}

    def with_defaults(self, spec: ModelSpec) -> GenerationRequest:
        """The request with the defaults of model and preset and a chosen seed.

        Raises InvalidInput if the task lacks an image or the model does not support the size.
        """
        self._check_required_inputs()
        seed = random.randrange(2**32 - self.num_images) if self.seed == RANDOM_SEED else self.seed
        steps, guidance_scale, scheduler = presets.preset_defaults(self.preset, spec)
        resolved = replace(
            self,
            width=self.width or spec.resolution,
            height=self.height or spec.resolution,
            num_inference_steps=(self.num_inference_steps or steps if self.needs_model else 1),
            guidance_scale=guidance_scale if self.guidance_scale is None else self.guidance_scale,
            scheduler=self.scheduler or scheduler,
            seed=seed,
            strength=DEFAULT_STRENGTHS.get(self.task) if self.strength is None else self.strength,
            num_images=1 if self.task == "upscale" else self.num_images,
        )
        for name in ("width", "height"):
            value = getattr(resolved, name)
            fits = self.scale_to_size or spec.min_size <= value <= spec.max_size
            if self.task == "text_to_image" and not fits:
                raise self._invalid_size(name, value, spec)
            if self.task in ("image_to_image", "inpaint"):  # of any size: see `engine.masks`
                validation.integer(name, value, MIN_EDIT_SIDE, MAX_EDIT_SIDE)
        return resolved

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of a request with defaults."""
        assert self.width and self.height  # noqa: S101 - `with_defaults` sets them
        return self.width, self.height

    @property
    def cost_key(self) -> tuple[object, ...]:
        """The values that determine how long a request takes."""
        return (
            *(self.model_key, self.task, self.preset, self.width, self.height, self.num_images),
            *(self.num_inference_steps, self.guidance_scale, self.strength, self.upscaler),
            *(len(self.control_images), len(self.reference_images)),
        )

    @property
    def needs_model(self) -> bool:
        """Whether a diffusion model has to be loaded."""
        return self.task != "upscale" or self.upscaler == "detail"

    @property
    def step_counts(self) -> tuple[int, int]:
        """`img2img_steps` of a request with defaults; all steps for a text-to-image request."""
        steps = self.num_inference_steps or 1
        if self.task == "text_to_image" or not self.needs_model:
            return steps, steps
        return img2img_steps(steps, self.strength or 1.0)

    def for_image(self, index: int) -> GenerationRequest:
        """The request that generates image `index` of a batch alone; needs a chosen seed."""
        if self.variation_seed is not None:
            return replace(self, variation_seed=self.variation_seed + index, num_images=1)
        return replace(self, seed=self.seed + index, num_images=1)

    def remaining(self, done: int) -> GenerationRequest:
        """The request for the images of a batch after the first `done`."""
        return replace(self.for_image(done), num_images=self.num_images - done) if done else self

    if not TYPE_CHECKING:  # type checkers accept the present names only

        def __getattr__(self, name: str) -> Any:
            if name in OLD_FIELD_NAMES:
                return getattr(self, OLD_FIELD_NAMES[name])
            raise AttributeError(f"'GenerationRequest' object has no attribute {name!r}")

    def _check_side(self, name: str, value: object) -> int:
        if self.task != "text_to_image":
            return validation.integer(name, value, MIN_EDIT_SIDE, MAX_SIDE)
        if self.scale_to_size:
            return validation.integer(name, value, MIN_SIDE, MAX_EDIT_SIDE)
        try:
            return validation.multiple_of_8(name, validation.integer(name, value, MIN_SIDE, MAX_SIDE))
        except InvalidInput:
            raise self._invalid_size(name, value, MODELS.get(self.model_key)) from None

    def _invalid_size(self, name: str, value: object, spec: ModelSpec | None) -> InvalidInput:
        if spec is None:
            allowed = LazyMessage("a multiple of 8 between {low} and {high}", low=MIN_SIDE, high=MAX_SIDE)
        else:
            allowed = LazyMessage(
                "a multiple of 8 between {low} and {high} for the model {model}",
                low=spec.min_size,
                high=spec.max_size,
                model=spec.key,
            )
        return InvalidInput(name, value, allowed)

    def _check_required_inputs(self) -> None:
        if self.task != "text_to_image" and self.image is None:
            message = LazyMessage("The task {task} requires an image.", task=LazyMessage(self.task.replace("_", " ")))
            raise InvalidInput("image", None, message=message)
        if self.task == "inpaint" and self.mask_image is None and not any(self.outpaint):
            message = LazyMessage("Inpainting requires a mask, or pixels to add on a side.")
            raise InvalidInput("mask_image", None, message=message)


def _accept_old_names(init: Callable[..., None]) -> Callable[..., None]:
    @wraps(init)
    def wrapper(self: GenerationRequest, *args: Any, **values: Any) -> None:
        # `replace` passes the present name, too
        old = {new: values.pop(old) for old, new in OLD_FIELD_NAMES.items() if old in values}
        init(self, *args, **rename_old_fields({**values, **old}))

    return wrapper


# For scripts with `GenerationRequest(…, mode="turbo")` or `replace(request, where="here")`.
GenerationRequest.__init__ = _accept_old_names(GenerationRequest.__init__)  # type: ignore[method-assign]


@dataclass(frozen=True)
class ProgressUpdate:
    """`step` of `num_steps` of one image is done; `preview` is a small image now and then."""

    step: int
    num_steps: int
    image_index: int = 0
    num_images: int = 1
    seconds_left: float | None = None
    preview: Image | None = field(default=None, repr=False, compare=False)

    @property
    def fraction(self) -> float:
        """The finished fraction of the whole job, 0 to 1."""
        return (self.image_index + self.step / self.num_steps) / self.num_images


@dataclass(frozen=True)
class GeneratedImage:
    """A generated image with its settings: pixels (`image`) until it is saved, then a file.

    `request` is complete and for this image alone: the same request gives the same pixels on
    the same machine. `notes` report fallbacks and rounded values.
    """

    request: GenerationRequest
    enhanced_prompt: str
    generation_time: float  # seconds
    device: str
    dtype: str
    model_revision: str = ""
    engine: str = ""  # "torch" or "openvino"; empty if it is unknown
    notes: tuple[str, ...] = ()
    task: str = ""  # always that of the request
    client: str = ""  # one of CLIENTS; empty for images of other programs
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    image: Image | None = field(default=None, repr=False, compare=False)
    id: int | None = None
    filename: str = ""
    filepath: str = ""
    file_size: int = 0  # bytes
    owner: str = LOCAL_OWNER
    favourite: bool = False
    parent_id: int | None = None
    file: Path | None = field(default=None, repr=False, compare=False)  # only just after saving

    def __post_init__(self) -> None:
        object.__setattr__(self, "task", self.request.task)

    def _repr_html_(self) -> str | None:
        """The image in a notebook, while its file exists."""
        if self.file is None or not self.file.is_file():
            return None
        source = data_url(self.file.read_bytes(), self.request.image_format)
        return f'<img src="{source}" alt="{html.escape(self.request.prompt)}">'

    def settings(self) -> dict[str, Any]:
        """All metadata except database id, owner and file, as JSON values."""
        names = ("enhanced_prompt", "generation_time", "device", "dtype", "model_revision", "engine")
        return {
            **self.request.to_dict(),
            **{name: getattr(self, name) for name in names},
            "notes": list(self.notes),
            "client": self.client,
            "created_at": self.created_at.isoformat(),
        }
