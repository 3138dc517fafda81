"""What is asked for, how far it is, and what comes out: the three words every layer speaks."""

from __future__ import annotations

import html
import math
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from canvas import presets, validation
from canvas.catalog import ModelSpec
from canvas.errors import InvalidInput, LazyMessage
from canvas.image_formats import IMAGE_FORMATS, data_url
from canvas.schedulers import SCHEDULERS
from canvas.styles import STYLES

if TYPE_CHECKING:
    from PIL.Image import Image

LOCAL = "local"
HF_INFERENCE = "hf-inference"
REMOTE = "remote"
BACKENDS: Mapping[str, str] = MappingProxyType(
    {
        LOCAL: "This computer",
        HF_INFERENCE: "Hugging Face Inference Providers",
        REMOTE: "Another Magic Canvas",
    }
)


TASKS = ("text_to_image", "image_to_image", "inpaint", "upscale")
RESIZE_MODES = ("crop", "pad", "stretch")
UPSCALERS = ("lanczos", "illustration", "photo", "detail")
SCALES = (2, 4)
MAX_LORAS = 8
MAX_WATERMARK_LENGTH = 60  # characters
MAX_OUTPAINT = 2048  # pixels a side
# How much of a picture is redrawn where the request does not say.
DEFAULT_STRENGTHS: Mapping[str, float] = MappingProxyType(
    {"image_to_image": 0.6, "inpaint": 1.0, "upscale": 0.3}
)
STRENGTH_TOLERANCE = 0.05  # of a strength
FILE_NAME = re.compile(r"[^\s/\\.][^/\\\x00-\x1f]{0,250}")
COLOR = re.compile(r"#[0-9a-f]{6}")


def _check_bool(field: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidInput(field, value, "true or false")
    return value


def _check_file_name(field: str, value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not FILE_NAME.fullmatch(validation.text(field, value)):
        raise InvalidInput(field, value, "the name of a picture of the gallery or one handed in")
    return value


def _check_strength(field: str, value: object) -> float | None:
    return None if value is None else validation.number(field, value, 0.01, 1)


def _check_color(field: str, value: object) -> str:
    if not isinstance(value, str) or not COLOR.fullmatch(value.lower()):
        raise InvalidInput(field, value, "a colour such as #ffffff")
    return value.lower()


def _check_outpaint(field: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or len(value) != 4:
        raise InvalidInput(field, value, "four numbers of pixels: left, top, right, bottom")
    sides = [validation.integer(field, side, 0, MAX_OUTPAINT) for side in value]
    return tuple(validation.multiple_of_8(field, side) for side in sides)


def _check_seed(field: str, value: object) -> int | None:
    return None if value is None else validation.integer(field, value, 0, 2**53 - 17)


def _check_scale(field: str, value: object) -> int:
    scale = validation.integer(field, value, min(SCALES), max(SCALES))
    if scale not in SCALES:
        raise InvalidInput(field, value, " or ".join(map(str, SCALES)))
    return scale


def _check_loras(field: str, value: object) -> tuple[tuple[str, float], ...]:
    allowed = f"at most {MAX_LORAS} pairs of a name and a weight from -4 to 4"
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
        raise InvalidInput(field, value, f"one line of at most {MAX_WATERMARK_LENGTH} characters")
    return text


def img2img_steps(num_inference_steps: int, strength: float) -> tuple[int, int]:
    """The steps of the whole way from noise to picture, and how many of them, its last, are done.

    As diffusers counts, but where so few steps would begin far from what the strength says:
    then the way is made longer, and never more of it is done than was asked for.
    """
    done = int(num_inference_steps * strength)
    if done and strength - done / num_inference_steps <= STRENGTH_TOLERANCE:
        return num_inference_steps, done
    done = math.ceil(num_inference_steps * strength - 1e-9)
    return max(done, round(done / strength)), done


FIELD_VALIDATORS: Mapping[str, Callable[[str, Any], Any]] = MappingProxyType(
    {
        "task": lambda field, value: validation.choice(field, value, TASKS),
        "image": _check_file_name,
        "mask_image": _check_file_name,
        "strength": _check_strength,
        "resize_mode": lambda field, value: validation.choice(field, value, RESIZE_MODES),
        "fill_color": _check_color,
        "mask_blur": lambda field, value: validation.integer(field, value, 0, 256),
        "only_masked": _check_bool,
        "outpaint": _check_outpaint,
        "variation_seed": _check_seed,
        "variation_strength": lambda field, value: validation.number(field, value, 0, 1),
        "scale": _check_scale,
        "upscaler": lambda field, value: validation.choice(field, value, UPSCALERS),
        "loras": _check_loras,
        "prompt_weighting": _check_bool,
        "watermark": _check_watermark,
    }
)


CLIENTS = ("page", "gradio", "mcp", "openai", "sdapi", "python", "cli")  # doors for wishes
MAX_SEED = 2**53 - 1  # the largest whole number that JSON, JavaScript and SQLite all keep
RANDOM_SEED = -1
LOCAL_OWNER = "local"  # the person at this computer, where nobody logs in
INTEGER_RANGES = {"seed": (RANDOM_SEED, MAX_SEED), "num_images": (1, 16), "quality": (1, 100)}


def _check_side(field: str, value: object) -> int:
    return validation.multiple_of_8(field, validation.integer(field, value, 64, 16384))


MODEL_DEFAULTED_FIELDS: Mapping[str, Callable[[str, Any], Any]] = {
    "width": _check_side,
    "height": _check_side,
    "num_inference_steps": lambda field, value: validation.integer(field, value, 1, 150),
    "guidance_scale": lambda field, value: validation.number(field, value, 0, 30),
    "scheduler": lambda field, value: validation.choice(field, value, SCHEDULERS),
}


# What fields and values were called before version 0.2; scripts, files and rows still use them.
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
    """The same fields under the names of today."""
    renamed = {OLD_FIELD_NAMES.get(name, name): value for name, value in values.items()}
    if isinstance(renamed.get("backend"), str):
        renamed["backend"] = OLD_BACKENDS.get(renamed["backend"], renamed["backend"])
    return renamed


def with_old_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with each renamed field under its old name, too, for clients that read it."""
    old = {old: settings[new] for old, new in OLD_FIELD_NAMES.items() if new in settings}
    return {**old, "channel": settings.get("client", ""), **settings}


@dataclass(frozen=True)
class GenerationRequest:
    """A wish for pictures; what is None is filled from the model by `resolve`.

    Raises InvalidInput naming the field, the value and what is allowed. Image i of
    `num_images` is made with `seed + i`, so it can be made again alone; with a
    `variation_seed`, the seed stays and that one counts up. `quality` (1 to 100) applies
    to JPEG and WebP. `image` and `mask_image` are names of pictures that the studio keeps;
    `extend` counts pixels left, top, right, bottom; `loras` are names with weights;
    `mode` is one of `canvas.presets.MODES`, `where` one of `canvas.request.PLACES`.
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

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {
            "prompt": validation.text("prompt", self.prompt),
            "negative_prompt": validation.text("negative_prompt", self.negative_prompt),
            "style": validation.choice("style", self.style, STYLES),
            "image_format": validation.choice("image_format", self.image_format, IMAGE_FORMATS),
            "preset": validation.choice("preset", self.preset, presets.PRESETS),
            "backend": validation.choice("backend", self.backend, BACKENDS),
        }
        for name, (low, high) in INTEGER_RANGES.items():
            checked[name] = validation.integer(name, getattr(self, name), low, high)
        for name, check in MODEL_DEFAULTED_FIELDS.items():
            if (value := getattr(self, name)) is not None:
                checked[name] = check(name, value)
        for name, check in FIELD_VALIDATORS.items():
            checked[name] = check(name, getattr(self, name))
        for name, value in checked.items():
            object.__setattr__(self, name, value)  # how a frozen dataclass is normalised
        if not self.prompt and self.task != "upscale":
            some = LazyMessage("some words that describe the picture")
            raise InvalidInput("prompt", self.prompt, some)
        if not isinstance(self.model_key, str):
            raise InvalidInput("model_key", self.model_key, "the key of a model")
        if self.seed + self.num_images - 1 > MAX_SEED:
            raise InvalidInput("seed", self.seed, f"at most {MAX_SEED} for the last picture")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GenerationRequest:
        """The inverse of `to_dict`; an unknown field raises InvalidInput."""
        values = rename_old_fields(values)
        known = {item.name for item in fields(cls)}
        for name in values:
            if name not in known:
                raise InvalidInput(name, values[name], f"one of the fields {', '.join(known)}")
        return cls(**{"prompt": "", **values})

    def to_dict(self) -> dict[str, Any]:
        """All fields by name, as JSON can hold them."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    def with_defaults(self, spec: ModelSpec) -> GenerationRequest:
        """Fill what was left open from model and mode, and draw the seed; checks the size."""
        self._check_required_inputs()
        seed = self.seed
        if seed == RANDOM_SEED:
            seed = random.randrange(2**32 - self.num_images)
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
        for name in ("width", "height") if self.is_single_pass else ():
            value = getattr(resolved, name)
            if not spec.min_size <= value <= spec.max_size:
                allowed = LazyMessage(
                    "{low} to {high} with the model {model}",
                    low=spec.min_size,
                    high=spec.max_size,
                    model=spec.key,
                )
                raise InvalidInput(name, value, allowed)
        return resolved

    @property
    def cost_key(self) -> tuple[object, ...]:
        """What decides how long it takes, of all that is asked for."""
        return (
            *(self.model_key, self.task, self.preset, self.width, self.height, self.num_images),
            *(self.num_inference_steps, self.guidance_scale, self.strength, self.upscaler),
        )

    @property
    def needs_model(self) -> bool:
        """Whether a diffusion model has to be loaded for it."""
        return self.task != "upscale" or self.upscaler == "detail"

    @property
    def is_single_pass(self) -> bool:
        """Whether the model draws the whole picture at once, so that its limits of size count."""
        return self.task != "upscale" and not (self.task == "inpaint" and self.only_masked)

    @property
    def step_counts(self) -> tuple[int, int]:
        """Of a resolved request: the steps from noise to picture, and how many of them are done."""
        whole = self.num_inference_steps or 1
        starts_from_noise = self.task == "text_to_image" or not self.needs_model
        return (whole, whole) if starts_from_noise else img2img_steps(whole, self.strength or 1.0)

    def __getattr__(self, name: str) -> Any:
        if name in OLD_FIELD_NAMES:
            return getattr(self, OLD_FIELD_NAMES[name])
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _check_required_inputs(self) -> None:
        if self.task != "text_to_image" and self.image is None:
            raise InvalidInput("image", None, f"a picture, which {self.task} starts from")
        if self.task == "inpaint" and self.mask_image is None and not any(self.outpaint):
            raise InvalidInput("mask_image", None, "a mask, or a side to extend the picture by")

    def for_image(self, index: int) -> GenerationRequest:
        """The request that makes picture `index` of a resolved batch again, alone."""
        if self.variation_seed is not None:
            return replace(self, variation_seed=self.variation_seed + index, num_images=1)
        return replace(self, seed=self.seed + index, num_images=1)

    def remaining(self, done: int) -> GenerationRequest:
        """The request for the pictures of a resolved batch that are left after `done` of them."""
        return replace(self.for_image(done), num_images=self.num_images - done) if done else self


def _accept_old_names(init: Callable[..., None]) -> Callable[..., None]:
    @wraps(init)
    def wrapper(self: GenerationRequest, *args: Any, **values: Any) -> None:
        init(self, *args, **rename_old_fields(values))

    return wrapper


# `GenerationRequest(…, mode="turbo")` and `replace(request, where="here")` of older scripts.
GenerationRequest.__init__ = _accept_old_names(GenerationRequest.__init__)  # type: ignore[method-assign]


@dataclass(frozen=True)
class ProgressUpdate:
    """Progress of one picture: `step` of `num_steps` done, and a small preview now and then."""

    step: int
    num_steps: int
    image_index: int = 0
    num_images: int = 1
    seconds_left: float | None = None
    preview: Image | None = field(default=None, repr=False, compare=False)

    @property
    def fraction(self) -> float:
        """Share of the whole job that is done, 0 to 1."""
        return (self.image_index + self.step / self.num_steps) / self.num_images


@dataclass(frozen=True)
class GeneratedImage:
    """One finished picture: its pixels until it is kept, its settings, and where it lies.

    `request` is resolved and single: sending it again on the same machine gives the
    same pixels. `notes` say what happened on the way (a fallback, a rounded value), `channel`
    by which door the wish came in.
    """

    request: GenerationRequest
    enhanced_prompt: str
    generation_time: float  # seconds
    device: str
    dtype: str
    model_revision: str = ""
    notes: tuple[str, ...] = ()
    task: str = ""  # always that of the request
    client: str = ""  # one of CHANNELS; empty for pictures of other programs
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    image: Image | None = field(default=None, repr=False, compare=False)
    id: int | None = None
    filename: str = ""
    filepath: str = ""
    file_size: int = 0  # bytes
    owner: str = LOCAL_OWNER
    favourite: bool = False
    parent_id: int | None = None
    file: Path | None = field(default=None, repr=False, compare=False)  # when just made

    def __post_init__(self) -> None:
        object.__setattr__(self, "task", self.request.task)

    def _repr_html_(self) -> str | None:
        """How a notebook shows the picture, as long as its file lies where it was kept."""
        if self.file is None or not self.file.is_file():
            return None
        words = html.escape(self.request.prompt)
        source = data_url(self.file.read_bytes(), self.request.image_format)
        return f'<img src="{source}" alt="{words}">'

    def settings(self) -> dict[str, Any]:
        """Everything that is known of the picture but its pixels and its place, for JSON."""
        return {
            **self.request.to_dict(),
            "enhanced_prompt": self.enhanced_prompt,
            "generation_time": self.generation_time,
            "device": self.device,
            "dtype": self.dtype,
            "model_revision": self.model_revision,
            "notes": list(self.notes),
            "task": self.task,
            "client": self.client,
            "created_at": self.created_at.isoformat(),
        }


JobStatus = Literal["queued", "downloading", "loading", "running", "done", "failed", "cancelled"]


FINISHED_STATUSES: tuple[JobStatus, ...] = ("done", "failed", "cancelled")
