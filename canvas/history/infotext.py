"""A1111 infotext: the text format for settings that most programs read and write."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from typing import Any

from canvas.errors import InvalidInput
from canvas.history.rows import REQUEST_FIELDS
from canvas.prompt_syntax import has_weights
from canvas.request import GeneratedImage, GenerationRequest, rename_old_fields
from canvas.schedulers import SCHEDULERS

# From A1111, modules/infotext_utils.py.
PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
SIZE = re.compile(r"(\d{1,6})\s*x\s*(\d{1,6})")
NEGATIVE = "Negative prompt:"
PROMPT_LENGTH = "Prompt length"
EXTENSION_PREFIX = "Canvas "

# A1111's keys of request fields, in the order in which they are written.
KEYS = {
    "num_inference_steps": "Steps",
    "scheduler": "Sampler",
    "guidance_scale": "CFG scale",
    "seed": "Seed",
    "model_key": "Model",
    "num_images": "Batch size",
    "strength": "Denoising strength",
    "variation_seed": "Variation seed",
    "variation_strength": "Variation seed strength",
    "style": "Style",
    "image_format": "Image format",
    "quality": "Quality",
}
FIELDS = {key.lower(): name for name, key in KEYS.items()}
TEXTS = {"scheduler", "model_key", "style", "image_format"}
SAMPLERS = {"plms": "PNDM", **{name.lower(): name for name in SCHEDULERS}}
# Schedules of A1111, ComfyUI and NovelAI that stand for the sampler's own one.
DEFAULT_SCHEDULES = {
    "", "automatic", "normal", "simple", "uniform", "sgm_uniform", "ddim_uniform", "native"
}  # fmt: skip
# Not needed to reproduce the image, or derived from other keys.
IGNORED_KEYS = ("version", "model hash", "size", "schedule type", "prompt length")
# Written by Fooocus with the scheme of A1111; its prompts contain the words of the styles.
FOOOCUS_IGNORED_KEYS = (
    *("scheduler", "raw prompt", "raw negative prompt", "styles", "performance", "user", "vae", "metadata scheme"),
)
SETTINGS_START = re.compile(r"\s*Steps:\s*\d+\s*,")
JSON_START = re.compile(r"\s*(?:\{\s*[\"}]|\[\s*[\[{\"])")
OWN_VERSION = "Magic Canvas"


@dataclass(frozen=True)
class ImportedSettings:
    """Valid fields of a GenerationRequest from metadata, and warnings about what was not taken.

    `program` is the one that wrote the metadata, "" if unknown.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    program: str = ""


def write_infotext(image: GeneratedImage) -> str:
    """The inverse of `read_infotext`, for any request."""
    request = image.request
    text = _compose(request, {})
    if read_infotext(text).values != _non_default_fields(request):
        # The prompt itself looks like infotext: `read_infotext` then needs its length.
        text = _compose(request, {PROMPT_LENGTH: len(request.prompt)})
    return text


def read_infotext(text: str) -> ImportedSettings:
    """Settings from infotext of any program; text without a line of settings is all prompt."""
    head, pairs, rest = _find_settings(text.strip())
    if not pairs and JSON_START.match(text):
        return ImportedSettings(warnings=("The metadata is JSON in an unknown format, which cannot be read.",))
    warnings = [f'The text after the settings is not read: "{_shorten(rest)}".'] if rest else []
    prompt, negative_prompt = _split_prompts(head, pairs.get(PROMPT_LENGTH, ""))
    found: dict[str, Any] = {"prompt": prompt, "negative_prompt": negative_prompt}
    found |= read_size(pairs.get("Size", ""))
    version = pairs.get("Version", "")
    program = "Fooocus" if version.startswith("Fooocus") else "A1111"
    ignored = (*IGNORED_KEYS, *FOOOCUS_IGNORED_KEYS) if program == "Fooocus" else IGNORED_KEYS
    for key, value in pairs.items():
        if key.lower() in ignored:
            continue
        name, read = _read_pair(key, value, pairs)
        if name is None:
            warnings.append(f"{key} is not supported (got {_shorten(value)}).")
        else:
            found[name] = read
    if pairs and version != OWN_VERSION:
        found |= switch_on_weights(found, warnings)
    return replace(check_values(found, warnings), program=program)


def switch_on_weights(found: Mapping[str, Any], warnings: list[str]) -> dict[str, bool]:
    """The field for prompt weights, and a warning, if a prompt of another program contains some."""
    prompts = [str(found.get(name) or "") for name in ("prompt", "negative_prompt")]
    if not any(map(has_weights, prompts)):
        return {}
    warnings.append("Prompt weights are switched on, as the prompt contains some.")
    return {"prompt_weighting": True}


def _find_settings(text: str) -> tuple[str, dict[str, str], str]:
    """The text before the line of settings, its pairs, and the text after it.

    The line is the last one, or else the last that starts with the number of steps.
    """
    lines = text.split("\n")
    for number in range(len(lines) - 1, -1, -1):
        if number < len(lines) - 1 and not SETTINGS_START.match(lines[number]):
            continue
        pairs = {key.strip(): _unquote(value) for key, value in PAIR.findall(lines[number])}
        if len(pairs) >= 3:
            return "\n".join(lines[:number]), pairs, "\n".join(lines[number + 1 :]).strip()
    return text, {}, ""


def _shorten(value: str) -> str:
    return value if len(value) <= 60 else f"{value[:50]}…"


def check_values(found: Mapping[str, Any], warnings: list[str]) -> ImportedSettings:
    """Keep the valid values; for each other one a warning is added."""
    values: dict[str, Any] = {}
    for name, value in found.items():
        if value in ("", None):
            continue
        try:
            checked = GenerationRequest.from_dict({"prompt": "x", name: value})
        except InvalidInput as error:
            warnings.append(str(error))
        else:
            values[name] = checked.to_dict()[name]
    return ImportedSettings(values, tuple(warnings))


def _compose(request: GenerationRequest, extra: Mapping[str, Any]) -> str:
    lines = [request.prompt]
    if request.negative_prompt:
        lines.append(f"{NEGATIVE} {request.negative_prompt}")
    values = _non_default_fields(request)
    pairs: dict[str, Any] = {}
    for name, key in KEYS.items():
        if key == "Style":  # and the following keys are written by this program only
            pairs["Version"] = OWN_VERSION
        if name in values:
            pairs[key] = values[name]
        if key == "Seed" and "width" in values and "height" in values:
            pairs["Size"] = f"{request.width}x{request.height}"
    written = {*KEYS, "prompt", "negative_prompt"} | ({"width", "height"} if "Size" in pairs else set())
    pairs |= {EXTENSION_PREFIX + name: json.dumps(value) for name, value in values.items() if name not in written}
    pairs |= extra
    lines.append(", ".join(f"{key}: {_quote(value)}" for key, value in pairs.items()))
    return "\n".join(lines)


def _non_default_fields(request: GenerationRequest) -> dict[str, Any]:
    """The fields that differ from their defaults, and those that are always written."""
    defaults = {item.name: item.default for item in fields(request)}
    always = ("prompt", "model_key", "image_format", "quality")
    return {
        name: value
        for name, value in request.to_dict().items()
        if value not in (None, "") and (name in always or value != defaults[name])
    }


def _split_prompts(head: str, length: str) -> tuple[str, str]:
    if length.isdecimal() and int(length) <= len(head):
        rest = head[int(length) :].removeprefix("\n")
        if not rest or rest.startswith(NEGATIVE):
            return head[: int(length)], rest.removeprefix(NEGATIVE).strip()
    if head.startswith(NEGATIVE):
        return "", head.removeprefix(NEGATIVE).strip()
    prompt, _, negative_prompt = head.partition(f"\n{NEGATIVE}")
    return prompt.strip(), negative_prompt.strip()


def _read_pair(key: str, value: str, pairs: Mapping[str, str]) -> tuple[str | None, Any]:
    """The request field and value of a pair; (None, None) if it is not supported."""
    if key.startswith(EXTENSION_PREFIX):
        return _own_field(key.removeprefix(EXTENSION_PREFIX), value)
    name = FIELDS.get(key.lower())
    if name is None:
        return None, None
    if name == "scheduler":
        scheduler = read_sampler(value, pairs.get("Schedule type", pairs.get("Scheduler", "")))
        return (name, scheduler) if scheduler else (None, None)
    if name == "strength" and "Hires upscale" in pairs:
        return None, None  # belongs to the second pass
    return name, value if name in TEXTS else read_number(value)


def _own_field(name: str, value: str) -> tuple[str | None, Any]:
    try:
        ((name, read),) = rename_old_fields({name: json.loads(value)}).items()
    except (ValueError, RecursionError):
        return None, None
    return (name, read) if name in REQUEST_FIELDS else (None, None)


def read_sampler(name: str, schedule: str = "") -> str | None:
    """The scheduler of an A1111 sampler and schedule type; None if there is none."""
    schedule = schedule.strip().lower()
    full = name.strip() if schedule in DEFAULT_SCHEDULES else f"{name.strip()} {schedule}"
    return SAMPLERS.get(full.lower())


def read_number(value: Any) -> Any:
    """The number of a text; another text or value itself."""
    for number in (int, float) if isinstance(value, str) else ():
        with suppress(ValueError):
            return number(value)
    return value


def read_size(value: str) -> dict[str, int]:
    """Width and height from a text such as `512x768`; none from another one."""
    match = SIZE.fullmatch(value.strip())
    return {"width": int(match[1]), "height": int(match[2])} if match else {}


def _quote(value: Any) -> str:
    text = str(value)
    if text != text.strip() or any(mark in text for mark in ',:\n"') or not text:
        return json.dumps(text, ensure_ascii=False)
    return text


def _unquote(value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] == '"':
        try:
            return str(json.loads(value))
        except (ValueError, RecursionError):
            return value
    return value.strip()
