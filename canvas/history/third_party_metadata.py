"""Generation settings from the metadata of other programs.

`infotext` reads A1111 and `comfyui` ComfyUI; sd-parsers reads InvokeAI, NovelAI and Fooocus. The JSON
of SwarmUI, Draw Things and Easy Diffusion is read here by its common keys.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from sd_parsers.data import Generators, PromptInfo
from sd_parsers.exceptions import ParserError
from sd_parsers.parsers import FooocusParser, InvokeAIParser, NovelAIParser

from canvas.catalog import MODELS, ModelSpec
from canvas.history.comfyui import read_comfyui, scheduler_of
from canvas.history.infotext import (
    ImportedSettings,
    check_values,
    read_infotext,
    read_number,
    read_size,
    switch_on_weights,
)
from canvas.history.metadata import read_settings, read_text
from canvas.history.rows import parse_json_object
from canvas.validation import MAX_TEXT

SD_PARSERS = (InvokeAIParser(), NovelAIParser(), FooocusParser())
# sd-parsers reads these texts with regular expressions that take quadratic time.
QUADRATIC_TEXTS = ("Dream", "Source")
MAX_QUADRATIC = 10_000  # characters
# What such a parser raises for malformed values.
PARSER_ERRORS = (ParserError, AttributeError, LookupError, TypeError, ValueError, RecursionError)
# Settings that change the image and that no request field holds.
UNSUPPORTED = {
    Generators.INVOKEAI: (
        "loras", "controlnets", "ipAdapters", "t2iAdapters", "vae", "clip_skip"
    ),
    Generators.NOVELAI: (),
    Generators.FOOOCUS: ("styles", "loras", "refiner_model"),
}  # fmt: skip

# The keys of SwarmUI, Draw Things, Easy Diffusion and others, in lower case without separators.
JSON_KEYS = {
    "prompt": ("prompt", "positiveprompt", "c"),
    "negative_prompt": ("negativeprompt", "uc"),
    "seed": ("seed",),
    "num_inference_steps": ("steps", "numinferencesteps"),
    "guidance_scale": ("cfgscale", "guidancescale", "scale", "cfg"),
    "width": ("width",),
    "height": ("height",),
    "model_key": ("model", "usestablediffusionmodel", "stablediffusionmodel", "basemodelname"),
}
UNSUPPORTED_JSON_KEYS = (
    "loras", "lora", "uselora", "useloramodel", "loramodel", "controlnets", "controls", "refinermodel"
)  # fmt: skip

# Weights of other programs
OPEN, CLOSE = "\x01", "\x02"  # for brackets of ours during the conversion
COMPEL_GROUP = re.compile(r"\((?P<text>[^()]*)\)(?P<weight>\d+(?:\.\d+)?|\++|-+)")
COMPEL_WORD = re.compile(r"(?P<text>(?<![\w'-])[\w']+(?:-[\w']+)*)(?P<weight>\++|--+)(?=[\s,.;]|$)")
NOVELAI_BRACES = re.compile(r"\{([^{}|]*)\}")
NOVELAI_BRACKETS = re.compile(r"\[([^\[\]|]*)\]")
NOVELAI_NUMBER = re.compile(r"(\d+(?:\.\d+)?)::((?:(?!::).)*)::", re.DOTALL)
MAX_NOVELAI_NESTING = 10


def read_metadata(source: Path | IO[bytes], models: Mapping[str, ModelSpec] | None = None) -> ImportedSettings:
    """The settings in an image of this or another program; the image is not decoded.

    Models are looked up in `models` (default: the catalog). Raises StorageError for a file that
    is not an image.
    """
    image = read_settings(source)
    if image is not None:
        settings = ImportedSettings(image.request.to_dict(), image.notes, "Magic Canvas")
    else:
        settings = _read_texts(read_text(source))
    return _resolve_model(settings, MODELS if models is None else models)


def find_model(name: str, models: Mapping[str, ModelSpec]) -> str | None:
    """The key of the model with that key, repository or file name; case and folders are ignored."""
    wanted = _normalize_name(name)
    for key, spec in models.items():
        names = {key, *spec.sources, *(source.rpartition("/")[2] for source in spec.sources)}
        if wanted and wanted in map(_normalize_name, names):
            return key
    return None


def _resolve_model(settings: ImportedSettings, models: Mapping[str, ModelSpec]) -> ImportedSettings:
    values, warnings = dict(settings.values), settings.warnings
    name = values.pop("model_key", "")
    if name:
        key = find_model(name, models)
        if key is None:
            warnings += (f"The model {name} is not in the catalog; the selected one is kept.",)
        else:
            values["model_key"] = key
    return replace(settings, values=values, warnings=warnings)


def _normalize_name(name: str) -> str:
    name = name.replace("\\", "/").lower()
    name = re.sub(r"\.(safetensors|ckpt|gguf|pt)$", "", name)
    return re.sub(r"[^a-z0-9/]", "", name).rpartition("/")[2]


def _read_texts(texts: Mapping[str, str]) -> ImportedSettings:
    warnings: tuple[str, ...] = ()
    readers: tuple[Callable[[], ImportedSettings], ...] = (
        lambda: _read_with_sd_parsers(texts),
        lambda: _read_json(texts),
        lambda: read_infotext(texts.get("parameters", "")),
        lambda: read_comfyui(*(parse_json_object(texts.get(name, "")) for name in ("prompt", "workflow"))),
    )
    for read in readers:
        settings = read()
        if settings.values:
            return settings
        warnings = warnings or settings.warnings
    return ImportedSettings(warnings=warnings)


def _read_json(texts: Mapping[str, str]) -> ImportedSettings:
    """Settings of SwarmUI, Draw Things and Easy Diffusion."""
    found = parse_json_object(texts.get("parameters", ""))
    swarm = found.get("sui_image_params")
    if isinstance(swarm, dict):
        return _from_json("SwarmUI", swarm)
    if "c" in found and "uc" in found:
        return _from_json("Draw Things", found)
    found = found or dict(texts)  # Easy Diffusion writes a PNG text for each value
    if any(_normalize_key(key) in ("usestablediffusionmodel", "stablediffusionmodel") for key in found):
        return _from_json("Easy Diffusion", {key: read_number(value) for key, value in found.items()})
    return ImportedSettings()


def _from_json(program: str, found: Mapping[str, Any]) -> ImportedSettings:
    by_key = {_normalize_key(key): value for key, value in found.items()}
    values = {name: next((by_key[key] for key in keys if key in by_key), None) for name, keys in JSON_KEYS.items()}
    values |= read_size(str(by_key.get("size", "")))
    warnings = [
        f"{name} is not supported (got {json.dumps(by_key[name])[:60]})."
        for name in UNSUPPORTED_JSON_KEYS
        if by_key.get(name) not in (None, "", "None", [], {})
    ]
    sampler = by_key.get("sampler") or by_key.get("samplername")
    values["scheduler"] = scheduler_of(sampler, by_key.get("scheduler"), warnings)
    values |= _weight_fields(values, WEIGHT_CONVERTERS.get(program), warnings)
    return replace(check_values(values, warnings), program=program)


def _normalize_key(key: str) -> str:
    return re.sub(r"[\s_]", "", key).lower()


def _read_with_sd_parsers(texts: Mapping[str, str]) -> ImportedSettings:
    """Settings of InvokeAI, NovelAI and Fooocus."""
    texts = {**texts, **_novelai_texts(texts)}
    safe = {name: text for name, text in texts.items() if name not in QUADRATIC_TEXTS or len(text) <= MAX_QUADRATIC}
    if "invokeai_metadata" in safe:
        safe["invokeai_metadata"] = _prepare_invokeai(safe["invokeai_metadata"])
    if (fooocus := parse_json_object(safe.get("parameters", ""))).get("base_model"):
        safe["parameters"] = json.dumps({"base_model_hash": "", **fooocus})
    for parser in SD_PARSERS:
        try:
            settings = _from_prompt_info(parser.parse(safe))
        except PARSER_ERRORS:
            continue
        if settings.values:
            return settings
    return ImportedSettings()


def _prepare_invokeai(text: str) -> str:
    # sd-parsers 0.6 requires a scheduler, which Flux has none of, and reads the `model_name` of
    # InvokeAI 3, not the `name` of later versions.
    metadata = parse_json_object(text)
    model = metadata.pop("model", None)
    if isinstance(model, dict) and (name := model.get("name") or model.get("model_name")):
        metadata["model"] = {"model_name": name}
    return json.dumps({"scheduler": "", **metadata})


def _from_prompt_info(info: PromptInfo) -> ImportedSettings:
    sampler = info.samplers[0]
    found = {**info.metadata, **sampler.parameters}
    warnings = [
        f"{name} is not supported (got {json.dumps(found[name])[:60]})."
        for name in UNSUPPORTED[info.generator]
        if found.get(name) and found[name] not in ("None", "[]")
    ]
    is_novelai = info.generator is Generators.NOVELAI
    mode = str(found.get("generation_mode", "txt2img"))
    if not mode.endswith("txt2img") or (is_novelai and "strength" in found):
        warnings.append("The image was made from another image, which the file does not contain.")
    schedule = found.get("noise_schedule" if is_novelai else "scheduler")
    if info.generator is Generators.FOOOCUS:  # "(896, 1152)"; its numbers are texts
        sides = re.findall(r"\d+", str(found.get("resolution")))
        found |= zip(("width", "height"), sides, strict=False)
        found = {name: read_number(value) for name, value in found.items()}
    values = {
        "prompt": " ".join(str(prompt) for prompt in sampler.prompts if prompt.value),
        "negative_prompt": ", ".join(str(prompt) for prompt in sampler.negative_prompts if prompt.value),
        "width": found.get("width"),
        "height": found.get("height"),
        "seed": found.get("seed"),
        "num_inference_steps": found.get("steps"),
        "guidance_scale": found.get("cfg_scale"),
        "scheduler": scheduler_of(sampler.name, schedule, warnings),
        "model_key": sampler.model.name if sampler.model else None,
    }
    values |= _weight_fields(values, WEIGHT_CONVERTERS.get(info.generator.value), warnings)
    return replace(check_values(values, warnings), program=info.generator.value)


def _novelai_texts(texts: Mapping[str, str]) -> dict[str, str]:
    """The PNG texts of NovelAI, which it writes into the UserComment of other formats."""
    found = parse_json_object(texts.get("parameters", ""))
    return {name: text for name, text in found.items() if isinstance(text, str)} if "Comment" in found else {}


def _weight_fields(
    values: Mapping[str, Any], convert: Callable[[str], str] | None, warnings: list[str]
) -> dict[str, Any]:
    """The prompts with their weights in our syntax, and the field that switches it on."""
    if convert is None:  # our own syntax
        return switch_on_weights(values, warnings)
    prompts = {name: str(values.get(name) or "")[:MAX_TEXT] for name in ("prompt", "negative_prompt")}
    converted = {name: convert(text) for name, text in prompts.items()}
    if converted == prompts:
        return {}
    # Brackets that are words are escaped; the converted ones become syntax.
    escaped = {name: re.sub(r"([()\[\]])", r"\\\1", text) for name, text in converted.items()}
    found = {name: text.replace(OPEN, "(").replace(CLOSE, ")") for name, text in escaped.items()}
    return found | switch_on_weights(found, warnings)


def _convert_compel(prompt: str) -> str:
    """`(some words)1.3`, `(some words)++` and `word--`, of InvokeAI and Easy Diffusion."""

    def weighted(match: re.Match[str]) -> str:
        signs = match["weight"]
        weight = read_number(signs) if signs[-1] not in "+-" else (1.1 if signs[0] == "+" else 0.9) ** len(signs)
        return f"{OPEN}{match['text']}:{float(weight):.4g}{CLOSE}"

    for pattern in (COMPEL_GROUP, COMPEL_WORD):
        prompt = pattern.sub(weighted, prompt)
    return prompt


def _convert_novelai(prompt: str) -> str:
    """`{words}`, `[words]` and `1.3::words::`."""
    prompt = NOVELAI_NUMBER.sub(rf"{OPEN}\2:\1{CLOSE}", prompt)
    for pattern, weight in ((NOVELAI_BRACES, "1.05"), (NOVELAI_BRACKETS, "0.9524")):
        for _ in range(MAX_NOVELAI_NESTING):
            prompt, count = pattern.subn(rf"{OPEN}\1:{weight}{CLOSE}", prompt)
            if not count:
                break
    return prompt


# By program; the others use our syntax.
WEIGHT_CONVERTERS = {"InvokeAI": _convert_compel, "Easy Diffusion": _convert_compel, "NovelAI": _convert_novelai}
