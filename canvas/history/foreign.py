"""Settings from pictures of any known program, as far as they have a counterpart here."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from canvas.catalog import MODELS, ModelSpec
from canvas.history import comfyui
from canvas.history.infotext import ParsedSettings, check_values, read_infotext, read_number
from canvas.history.metadata import read_settings, read_text

INVOKEAI_SCHEDULERS = {
    "euler": "Euler",
    "euler_a": "Euler a",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_k": "DPM++ 2M Karras",
    "unipc": "UniPC",
    "deis": "DEIS",
    "ddim": "DDIM",
    "pndm": "PNDM",
    "plms": "PNDM",
    "lcm": "LCM",
}
INVOKEAI_FIELDS = {
    "positive_prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "width": "width",
    "height": "height",
    "seed": "seed",
    "cfg_scale": "guidance_scale",
    "steps": "num_inference_steps",
}
# What changes a picture and has no field here; the rest of the metadata is of no account.
INVOKEAI_LOST = (
    "loras",
    "controlnets",
    "ipAdapters",
    "t2iAdapters",
    "vae",
    "clip_skip",
)
DREAM_SWITCHES = {
    "s": "num_inference_steps",
    "S": "seed",
    "W": "width",
    "H": "height",
    "C": "guidance_scale",
    "A": "scheduler",
}


@dataclass(frozen=True)
class PictureSettings:
    """What a picture says: the program that made it ("" if it says nothing), and its settings.

    `values` are fields of a GenerationRequest, each valid; `unread` are sentences about the rest.
    """

    program: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    unread: tuple[str, ...] = ()


def read_picture(
    source: Path | IO[bytes], models: Mapping[str, ModelSpec] | None = None
) -> PictureSettings:
    """Settings of a picture by us, A1111 and its kin, ComfyUI or InvokeAI; nothing is run.

    Raises StorageError for a file that is no picture.
    """
    own = read_settings(source)
    if own is not None:
        parsed = ParsedSettings(own.request.to_dict(), own.notes)
        return _with_model("Magic Canvas", parsed, models)
    texts = read_text(source)
    for chunk, (program, read) in READERS.items():
        if chunk in texts:
            parsed = read(texts[chunk])
            if parsed.values:
                return _with_model(program, parsed, models)
    return PictureSettings()


def find_model(name: str, models: Mapping[str, ModelSpec]) -> str | None:
    """The key of the model that another program calls so; spelling and folders do not matter."""
    wanted = _letters(name)
    for key, spec in models.items():
        names = {key, *spec.sources, *(source.rpartition("/")[2] for source in spec.sources)}
        if wanted and wanted in map(_letters, names):
            return key
    return None


def _with_model(
    program: str, parsed: ParsedSettings, models: Mapping[str, ModelSpec] | None
) -> PictureSettings:
    values, unread = dict(parsed.values), parsed.unread
    name = values.pop("model_key", "")
    if name:
        key = find_model(name, MODELS if models is None else models)
        if key is None:
            unread += (f"The model {name} is not in the catalogue; the chosen one stays.",)
        else:
            values["model_key"] = key
    return PictureSettings(program, values, unread)


def _letters(name: str) -> str:
    name = name.replace("\\", "/").lower()
    name = re.sub(r"\.(safetensors|ckpt|gguf|pt)$", "", name)
    return re.sub(r"[^a-z0-9/]", "", name).rpartition("/")[2]


def _invokeai(text: str) -> ParsedSettings:
    """InvokeAI 3 and later."""
    metadata = _json(text)
    found = {field: metadata.get(name) for name, field in INVOKEAI_FIELDS.items()}
    unread = [
        f"{name}: {json.dumps(metadata[name])[:60]} has no counterpart here."
        for name in INVOKEAI_LOST
        if metadata.get(name)
    ]
    if metadata.get("generation_mode", "txt2img") not in ("txt2img", "sdxl_txt2img"):
        unread.append("It was made from another picture, which the file does not hold.")
    model = metadata.get("model")
    if isinstance(model, dict):
        found["model_key"] = model.get("name") or model.get("model_name")
    return _invokeai_settings(found, metadata.get("scheduler"), unread)


def _invokeai_2(text: str) -> ParsedSettings:
    """InvokeAI 2: `sd-metadata`, with a list of weighted prompts."""
    metadata = _json(text)
    image = metadata.get("image")
    if not isinstance(image, dict):
        return ParsedSettings()
    prompts = image.get("prompt")
    if isinstance(prompts, list):
        prompts = " ".join(
            str(part.get("prompt", "")) for part in prompts if isinstance(part, dict)
        )
    found = {field: image.get(name) for name, field in INVOKEAI_FIELDS.items()}
    found |= _dream_prompts(str(prompts or ""))
    found["model_key"] = metadata.get("model_weights")
    return _invokeai_settings(found, image.get("sampler"), [])


def _dream(text: str) -> ParsedSettings:
    """The oldest InvokeAI: the line that was typed, `"prompt" -s 50 -S 1 -W 512 …`."""
    match = re.match(r'\s*"((?:\\.|[^"\\])*)"(.*)', text, re.DOTALL)
    if match is None:
        return ParsedSettings()
    found: dict[str, Any] = _dream_prompts(match[1].replace('\\"', '"'))
    for switch, value in re.findall(r"(?:^|\s)-(\w)\s*([^\s-]\S*)", match[2]):
        if switch in DREAM_SWITCHES:
            found[DREAM_SWITCHES[switch]] = read_number(value)
    return _invokeai_settings(found, found.pop("scheduler", None), [])


def _dream_prompts(text: str) -> dict[str, Any]:
    """Words in [brackets] are what must not be there."""
    unwanted = ", ".join(part.strip() for part in re.findall(r"\[([^\[\]]*)\]", text))
    wanted = re.sub(r"\s+", " ", re.sub(r"\[[^\[\]]*\]", " ", text)).strip()
    return {"prompt": wanted, "negative_prompt": unwanted}


def _invokeai_settings(
    found: dict[str, Any], scheduler: object, unread: list[str]
) -> ParsedSettings:
    if scheduler:
        found["scheduler"] = INVOKEAI_SCHEDULERS.get(str(scheduler).removeprefix("k_"))
        if found["scheduler"] is None:
            unread.append(f"The scheduler {str(scheduler)[:60]} has no counterpart here.")
    return check_values(found, unread)


def _comfyui(text: str) -> ParsedSettings:
    found, unread = comfyui.read_graph(_json(text))
    return check_values(found, unread)


def _comfyui_workflow(text: str) -> ParsedSettings:
    found, unread = comfyui.read_graph(comfyui.graph_of(_json(text)))
    return check_values(found, unread)


def _json(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


# By the name of the text in the file; ComfyUI's graph tells more than its workflow.
READERS: Mapping[str, tuple[str, Callable[[str], ParsedSettings]]] = {
    "invokeai_metadata": ("InvokeAI", _invokeai),
    "sd-metadata": ("InvokeAI", _invokeai_2),
    "Dream": ("InvokeAI", _dream),
    "parameters": ("A1111", read_infotext),
    "prompt": ("ComfyUI", _comfyui),
    "workflow": ("ComfyUI", _comfyui_workflow),
}
