"""The model catalog: what each model is, where it is downloaded from, its defaults."""

from __future__ import annotations

import tomllib
import unicodedata
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from canvas import builtin_models, validation
from canvas.errors import InvalidInput, UnknownModel
from canvas.files import read_text_file
from canvas.schedulers import SCHEDULERS

ASSETS = builtin_models.ASSETS
MODEL_TYPES = ("stable_diffusion", "stable_diffusion_xl", "auto")
# Fields of `models.toml` in version 0.1, still read.
OLD_FIELD_NAMES: Mapping[str, str] = {"gigaflops": "gflops_per_step"}
# Fields whose defaults are read from the model's own files where an entry lacks them.
READ_FROM_MODEL = ("resolution", "num_inference_steps", "guidance_scale", "scheduler")
QUANTIZATIONS = ("auto", "none", "int8", "int8-dynamic")
OFFLOADS = ("auto", "none", "model", "group", "encode-first")
OWN_GROUP = "Own models"
# The pipeline whose other parts a GGUF transformer needs, by a word of its file name.
GGUF_BASES: Mapping[str, str] = {
    "klein-9b": "black-forest-labs/FLUX.2-klein-9B",
    "klein": "black-forest-labs/FLUX.2-klein-4B",
    "z_image": "Tongyi-MAI/Z-Image-Turbo",
    "z-image": "Tongyi-MAI/Z-Image-Turbo",
    "qwen-image": "Qwen/Qwen-Image",
    "flux1-schnell": "black-forest-labs/FLUX.1-schnell",
    "flux1-dev": "black-forest-labs/FLUX.1-dev",
}


@dataclass(frozen=True)
class ModelSpec:
    """A model of the catalog; models with the same `pipeline_key` share one pipeline.

    `name`: a Hub id, or a diffusers folder or a single `.safetensors` file on this computer. An
    entry may also name a GGUF transformer: a file, or `repository:file.gguf`.
    `base`: the pipeline with the other parts of a GGUF transformer.
    `components`: parts from another source: a Hub id, `repository:file`, folder or file.
    `mirrors`: Hub ids that are tried in order if `name` no longer exists.
    `resolution`: native side in pixels.
    `title`, `specialty`: its name, and what it draws in two or three words.
    `gflops_per_step`: GFLOP of one UNet call at that size; 0 uses the value of `type`.
    `prompt_tokens`: tokens of a prompt that the model reads, if fewer than its tokenizer's limit.
    `terms`: the address of a licence to which people agree before the download.
    `half_precision`: download the fp16 files where the repository has them, half of the bytes.
    `quantization`, `offload`: see `canvas.engine.memory_plan`.
    `unset`: those of READ_FROM_MODEL that the entry lacks.
    """

    key: str
    name: str
    size: str = ""
    speed: str = ""
    quality: str = ""
    resolution: int = 512
    type: str = "auto"
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
    title: str = ""
    specialty: str = ""
    group: str = OWN_GROUP
    terms: str = ""
    base: str = ""
    components: tuple[tuple[str, str], ...] = ()
    half_precision: bool = True
    quantization: str = "auto"
    offload: str = "auto"
    unset: tuple[str, ...] = ()

    @property
    def pipeline_key(self) -> str:
        """The same for models that share one loaded pipeline."""
        return " ".join([self.name, *(f"{name}={source}" for name, source in self.components)])

    @property
    def sources(self) -> tuple[str, ...]:
        """Where the model can be downloaded from, the preferred one first."""
        return (self.name, *self.mirrors)

    @property
    def is_local(self) -> bool:
        """Whether `name` is a folder or file on this computer."""
        return is_local_source(self.name)

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
    def recommended_size(self) -> int:
        """Largest side of a square that the model draws well: UNets repeat the subject beyond their native one."""
        return self.max_size if self.type == "auto" else self.resolution

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
        raise InvalidInput(path, entry, "a table with the field name")
    entry = {OLD_FIELD_NAMES.get(name, name): value for name, value in entry.items()}
    known = {field.name for field in fields(ModelSpec)} - {"key", "unset"}
    for name in entry:
        if name not in known:
            message = f"{path}.{name} is unknown; the fields are {', '.join(sorted(known))}."
            raise InvalidInput(f"{path}.{name}", entry[name], message=message)
    if "name" not in entry:
        raise InvalidInput(f"{path}.name", None, message=f"{path}.name is required.")
    return ModelSpec(key=key, **_checked_fields(path, entry))


def change_model(spec: ModelSpec, entry: Mapping[str, Any]) -> ModelSpec:
    """The model with the fields of an entry that has no `name`; raises InvalidInput."""
    changed = parse_model(spec.key, {**entry, "name": spec.name})
    values = {name: getattr(changed, name) for name in (OLD_FIELD_NAMES.get(name, name) for name in entry)}
    return replace(spec, **values, unset=tuple(name for name in spec.unset if name not in values))


def _checked_fields(path: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    checked = {
        name: FIELD_VALIDATORS.get(name, validation.text)(f"{path}.{name}", value) for name, value in entry.items()
    }
    if not checked["name"]:
        raise InvalidInput(f"{path}.name", "", "a Hub id, a diffusers folder or a file")
    if checked["name"].endswith(".gguf"):
        checked |= _gguf_fields(path, checked)
    if checked.get("type", "auto") == "auto":
        checked["unset"] = tuple(name for name in READ_FROM_MODEL if name not in checked)
    return checked


def _gguf_fields(path: str, checked: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an entry whose `name` is a GGUF transformer: its pipeline becomes the name."""
    file = Path(checked["name"].rpartition(":")[2]).name.lower()
    base = checked.get("base") or next((base for word, base in GGUF_BASES.items() if word in file), "")
    if not base:
        message = f'{path}.base is required for {file}: the pipeline with its other parts, such as "owner/model".'
        raise InvalidInput(f"{path}.base", "", message=message)
    return {"name": base, "base": base, "components": (("transformer", checked["name"]),)}


def split_source(source: str) -> tuple[str, str]:
    """A Hub source `owner/name` or `owner/name:path` as repository and path ("" without one)."""
    repo_id, _, path = source.partition(":")
    return repo_id, path


def is_local_source(source: str) -> bool:
    """Whether a source of a component is a folder or file on this computer."""
    return Path(source).is_absolute() or Path(source).exists()


def _texts(field: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise InvalidInput(field, value, "a list of strings")
    return tuple(value)


def _components(field: str, value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, Mapping) or not all(isinstance(item, str) for pair in value.items() for item in pair):
        raise InvalidInput(field, value, 'a table such as {vae = "owner/name"}')
    if unknown := [name for name in value if not name.isidentifier()]:
        raise InvalidInput(field, unknown[0], "names of components, such as vae or transformer")
    return tuple((name, _source(field, source)) for name, source in value.items())


def _resolution(field: str, value: object) -> int:
    return validation.multiple_of_8(field, validation.integer(field, value, 64, 2048))


def _source(field: str, value: object) -> str:
    """A Hub id, or a path in which `~` is the home folder."""
    source = validation.text(field, value)
    return str(Path(source).expanduser()) if source.startswith("~") else source


FIELD_VALIDATORS: Mapping[str, Callable[[str, Any], Any]] = {
    "name": _source,
    "base": _source,
    "mirrors": _texts,
    "accelerations": _texts,
    "resolution": _resolution,
    "num_inference_steps": partial(validation.integer, low=1, high=150),
    "guidance_scale": partial(validation.number, low=0, high=30),
    "gflops_per_step": partial(validation.number, low=0, high=1e6),
    "prompt_tokens": partial(validation.integer, low=0, high=1000),
    "components": _components,
    "half_precision": validation.boolean,
    "quantization": partial(validation.choice, choices=QUANTIZATIONS),
    "offload": partial(validation.choice, choices=OFFLOADS),
    "type": partial(validation.choice, choices=MODEL_TYPES),
    "scheduler": partial(validation.choice, choices=SCHEDULERS),
}


class Catalog(MutableMapping[str, ModelSpec]):
    """Models by key, validated on assignment; also has the models of `base`, if given."""

    def __init__(self, base: Catalog | None = None) -> None:
        self._base = base
        self._own: dict[str, ModelSpec] = {}

    def __getitem__(self, key: str) -> ModelSpec:
        return self._own[key] if key in self._own or self._base is None else self._base[key]

    def __setitem__(self, key: str, entry: ModelSpec | Mapping[str, Any]) -> None:
        self._own[key] = parse_model(key, entry)

    def __delitem__(self, key: str) -> None:
        del self._own[key]

    def __iter__(self) -> Iterator[str]:
        inherited = self._base or ()
        yield from inherited
        # A copy: another thread may add a model meanwhile
        yield from (key for key in tuple(self._own) if key not in inherited)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def load(self, path: Path) -> None:
        """Add the tables of a `models.toml`; adds nothing if one of them is invalid.

        A table without `name` changes fields of the built-in model with its key.
        """
        try:
            tables = tomllib.loads(read_text_file(path))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InvalidInput(str(path), "", message=f"{path} is not valid TOML: {error}") from error
        self._own.update({key: self.parse_table(key, entry) for key, entry in tables.items()})

    def base(self, key: str) -> ModelSpec | None:
        """The model of `base` with that key, without own changes."""
        return None if self._base is None else self._base.get(key)

    def parse_table(self, key: str, entry: object) -> ModelSpec:
        """The model of a table of a `models.toml`; raises InvalidInput."""
        built_in = self.base(key)
        if built_in is not None and isinstance(entry, Mapping) and "name" not in entry:
            return change_model(built_in, entry)
        return parse_model(key, entry)


def get_model(key: str, models: Mapping[str, ModelSpec] | None = None) -> ModelSpec:
    """The model with that key; raises UnknownModel, which lists the keys.

    Case and the composition of accents are ignored, but an exact match is preferred.
    """
    models = MODELS if models is None else models
    if isinstance(key, str) and key not in models:
        key = next((known for known in models if _normalize(known) == _normalize(key)), key)
    if not isinstance(key, str) or key not in models:
        raise UnknownModel("model_key", key, f"one of {', '.join(models)}")
    return models[key]


def _normalize(key: str) -> str:
    return unicodedata.normalize("NFC", key.strip()).casefold()


def default_catalog() -> Catalog:
    """The built-in models."""
    catalog = Catalog()
    for key, entry in builtin_models.BUILTIN_MODELS.items():
        catalog[key] = entry
    return catalog


MODELS = default_catalog()
