"""The model catalog: what each model is, where it is downloaded from, its defaults."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from canvas import validation
from canvas.errors import InvalidInput, UnknownModel
from canvas.schedulers import SCHEDULERS

MODEL_TYPES = ("stable_diffusion", "stable_diffusion_xl", "auto")
_PACKAGE = Path(__file__).resolve().parent
# An installed wheel has the assets inside the package, a checkout beside it.
ASSETS = next(folder for folder in (_PACKAGE / "assets", _PACKAGE.parent / "assets") if folder.is_dir())
# Fields of `models.toml` in version 0.1, still read.
OLD_FIELD_NAMES: Mapping[str, str] = {"gigaflops": "gflops_per_step"}
REQUIRED_FIELDS = ("name", "size", "speed", "quality", "resolution", "type")


@dataclass(frozen=True)
class ModelSpec:
    """A model of the catalog; models with the same `name` share one pipeline.

    `name`: a Hub id, a diffusers folder or a single `.safetensors` file on this computer.
    `mirrors`: Hub ids that are tried in order if `name` no longer exists.
    `resolution`: native side in pixels.
    `gflops_per_step`: GFLOP of one UNet call at that size; 0 uses the value of `type`.
    `prompt_tokens`: tokens of a prompt that the model reads, if fewer than its tokenizer's limit.
    """

    key: str
    name: str
    size: str
    speed: str
    quality: str
    resolution: int
    type: str
    mirrors: tuple[str, ...] = ()
    trigger_words: str = ""
    num_inference_steps: int = 20
    guidance_scale: float = 7.5
    scheduler: str = "DPM++ 2M"
    accelerations: tuple[str, ...] = ()
    gflops_per_step: float = 0.0
    prompt_tokens: int = 0
    license: str = ""
    description: str = ""

    @property
    def sources(self) -> tuple[str, ...]:
        """Where the model can be downloaded from, the preferred one first."""
        return (self.name, *self.mirrors)

    @property
    def is_local(self) -> bool:
        """Whether `name` is a folder or file on this computer."""
        return Path(self.name).is_absolute() or Path(self.name).exists()

    @property
    def public_name(self) -> str:
        """The Hub id, or the last part of a local path, which hides the folder from clients."""
        return Path(self.name).name if self.is_local else self.name

    @property
    def min_size(self) -> int:
        """Smallest side in pixels that gives usable images."""
        return max(64, self.resolution // 2)

    @property
    def max_size(self) -> int:
        """Largest side in pixels; beyond twice the native one the model repeats the subject."""
        return self.resolution * 2

    @property
    def size_step(self) -> int:
        """Step of the resolution slider in pixels, a multiple of 8."""
        return max(8, self.resolution // 8)


def parse_model(key: str, entry: object) -> ModelSpec:
    """Validate a catalog entry; raises InvalidInput naming the field."""
    if isinstance(entry, ModelSpec):
        return entry
    if not isinstance(key, str) or not key.strip() or len(key) > 64:
        raise InvalidInput("model key", key, "a name of at most 64 characters, such as my-model")
    path = f"models.{key}"
    if not isinstance(entry, Mapping):
        raise InvalidInput(path, entry, f"a table with the fields {', '.join(REQUIRED_FIELDS)}")
    entry = {OLD_FIELD_NAMES.get(name, name): value for name, value in entry.items()}
    known = {field.name for field in fields(ModelSpec)} - {"key"}
    for name in entry:
        if name not in known:
            message = f"{path}.{name} is unknown; the fields are {', '.join(sorted(known))}."
            raise InvalidInput(f"{path}.{name}", entry[name], message=message)
    for name in REQUIRED_FIELDS:
        if name not in entry:
            raise InvalidInput(f"{path}.{name}", None, message=f"{path}.{name} is required.")
    checked = {
        name: FIELD_VALIDATORS.get(name, validation.text)(f"{path}.{name}", value) for name, value in entry.items()
    }
    if not checked["name"]:
        raise InvalidInput(f"{path}.name", "", "a Hub id, a diffusers folder or a file")
    return ModelSpec(key=key, **checked)


def _texts(field: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise InvalidInput(field, value, "a list of strings")
    return tuple(value)


def _resolution(field: str, value: object) -> int:
    return validation.multiple_of_8(field, validation.integer(field, value, 64, 2048))


FIELD_VALIDATORS: Mapping[str, Callable[[str, Any], Any]] = {
    "mirrors": _texts,
    "accelerations": _texts,
    "resolution": _resolution,
    "num_inference_steps": lambda field, value: validation.integer(field, value, 1, 150),
    "guidance_scale": lambda field, value: validation.number(field, value, 0, 30),
    "gflops_per_step": lambda field, value: validation.number(field, value, 0, 1e6),
    "prompt_tokens": lambda field, value: validation.integer(field, value, 0, 1000),
    "type": lambda field, value: validation.choice(field, value, MODEL_TYPES),
    "scheduler": lambda field, value: validation.choice(field, value, SCHEDULERS),
}


class Catalog(MutableMapping[str, ModelSpec]):
    """Models by key, validated on assignment; also has the models of `base`, if given."""

    def __init__(self, base: Catalog | None = None) -> None:
        self._base = base
        self._own: dict[str, ModelSpec] = {}

    def __getitem__(self, key: str) -> ModelSpec:
        if key in self._own or self._base is None:
            return self._own[key]
        return self._base[key]

    def __setitem__(self, key: str, entry: ModelSpec | Mapping[str, Any]) -> None:
        self._own[key] = parse_model(key, entry)

    def __delitem__(self, key: str) -> None:
        del self._own[key]

    def __iter__(self) -> Iterator[str]:
        inherited = self._base or ()
        yield from inherited
        yield from (key for key in self._own if key not in inherited)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def load(self, path: Path) -> None:
        """Add the tables of a `models.toml`; adds nothing if one of them is invalid."""
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InvalidInput(str(path), "", message=f"{path} is not valid TOML: {error}") from error
        self._own.update({key: parse_model(key, entry) for key, entry in tables.items()})


def get_model(key: str, models: Mapping[str, ModelSpec] | None = None) -> ModelSpec:
    """The model with that key; raises UnknownModel, which lists the keys."""
    models = MODELS if models is None else models
    if not isinstance(key, str) or key not in models:
        raise UnknownModel("model_key", key, f"one of {', '.join(models)}")
    return models[key]


def default_catalog() -> Catalog:
    """The built-in models; sizes are those of the download for a CPU."""
    small_sd = {
        "name": "OFA-Sys/small-stable-diffusion-v0",
        "size": "3.2 GB",
        "resolution": 512,
        "type": "stable_diffusion",
        "gflops_per_step": 523,
        # Eight tensors have other shapes than in SD 1.5, so its LoRAs do not fit.
        "accelerations": ["taesd"],
        "license": "openrail",
    }
    sd15 = {
        "type": "stable_diffusion",
        "resolution": 512,
        "gflops_per_step": 803,
        "size": "4.3 GB",
        "accelerations": ["few_step_lora", "taesd"],
        "license": "creativeml-openrail-m",
    }
    entries: dict[str, dict[str, Any]] = {
        "starter": {
            "name": str(ASSETS / "starter"),
            "size": "built in",
            "speed": "Instant",
            "quality": "Storybook",
            "resolution": 256,
            "type": "stable_diffusion",
            "num_inference_steps": 4,
            "guidance_scale": 1.0,
            "scheduler": "DDIM",
            "gflops_per_step": 1.0,
            "prompt_tokens": 27,
            "license": "mit",
            "description": "Storybook scenes of one or two things in a place; no download",
        },
        "tiny": {
            **small_sd,
            "speed": "Fast",
            "quality": "Fair",
            "num_inference_steps": 15,
            "description": "The smallest general model",
        },
        "small": {
            **sd15,
            "name": "stable-diffusion-v1-5/stable-diffusion-v1-5",
            "mirrors": ["sd-legacy/stable-diffusion-v1-5", "runwayml/stable-diffusion-v1-5"],
            "speed": "Medium",
            "quality": "Good",
            "description": "Stable Diffusion 1.5, the classic",
        },
        "dreamshaper": {
            **sd15,
            "name": "Lykon/dreamshaper-8",
            "mirrors": ["Lykon/DreamShaper"],
            "speed": "Medium",
            "quality": "Very Good",
            "scheduler": "DEIS",
            "description": "Painterly and photographic, a good all-rounder",
        },
        "openjourney": {
            **sd15,
            "name": "prompthero/openjourney-v4",
            "mirrors": ["prompthero/openjourney"],
            "speed": "Medium",
            "quality": "Very Good",
            "description": "Midjourney-like illustration",
        },
        "mini-sd": {
            **small_sd,
            "speed": "Medium",
            "quality": "Good",
            "num_inference_steps": 25,
            "description": "The weights of tiny with more steps",
        },
        "portrait": {
            **sd15,
            "name": "wavymulder/portraitplus",
            "speed": "Medium",
            "quality": "Excellent for faces",
            "trigger_words": "portrait+ style",
            "description": "Portraits, best at 1:1",
        },
    }
    catalog = Catalog()
    for key, entry in entries.items():
        catalog[key] = entry
    return catalog


MODELS = default_catalog()
