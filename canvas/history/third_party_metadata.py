"""Settings from pictures of any known program, as far as they have a counterpart here."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from canvas.catalog import MODELS, ModelSpec
from canvas.history.infotext import (
    ParsedSettings,
    check_values,
    read_infotext,
    read_number,
    read_sampler,
)
from canvas.history.metadata import read_settings, read_text

Node = Mapping[str, Any]
Graph = Mapping[str, Node]

SAMPLERS = {
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "dpmpp_2m": "DPM++ 2M",
    "uni_pc": "UniPC",
    "uni_pc_bh2": "UniPC",
    "ddim": "DDIM",
    "deis": "DEIS",
    "lcm": "LCM",
}
PLAIN_SCHEDULES = ("normal", "simple", "sgm_uniform", "ddim_uniform")
SAMPLER_NODES = ("KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced")
TEXT_INPUTS = ("text", "text_g", "text_l", "t5xxl", "clip_l", "string", "value")
# Nodes whose part in the picture is either read or of no account.
KNOWN_NODES = {
    *SAMPLER_NODES,
    "CLIPTextEncode",
    "CLIPTextEncodeSDXL",
    "CheckpointLoaderSimple",
    "CheckpointLoader",
    "UNETLoader",
    "CLIPLoader",
    "DualCLIPLoader",
    "EmptyLatentImage",
    "EmptySD3LatentImage",
    "KSamplerSelect",
    "BasicScheduler",
    "KarrasScheduler",
    "RandomNoise",
    "CFGGuider",
    "BasicGuider",
    "PrimitiveNode",
    "PrimitiveInt",
    "PrimitiveFloat",
    "PrimitiveString",
    "Reroute",
    "ConditioningCombine",
}
# The order of the values of these nodes in a workflow, which does not name them.
WIDGETS = {
    "KSampler": ("seed", "", "steps", "cfg", "sampler_name", "scheduler", "denoise"),
    "KSamplerAdvanced": ("", "noise_seed", "", "steps", "cfg", "sampler_name", "scheduler"),
    "CLIPTextEncode": ("text",),
    "EmptyLatentImage": ("width", "height", "batch_size"),
    "CheckpointLoaderSimple": ("ckpt_name",),
    "UNETLoader": ("unet_name",),
    "LoraLoader": ("lora_name",),
    "KSamplerSelect": ("sampler_name",),
    "BasicScheduler": ("scheduler", "steps", "denoise"),
    "RandomNoise": ("noise_seed",),
}


def graph_of(workflow: Mapping[str, Any]) -> Graph:
    """The graph of a workflow, as the editor saves it, for the nodes whose values are known."""
    sources: dict[Any, list[Any]] = {}
    for link in _list(workflow.get("links")):
        if isinstance(link, list) and len(link) >= 3 and isinstance(link[0], int):
            sources[link[0]] = [str(link[1]), link[2]]
    graph: dict[str, Node] = {}
    for node in _list(workflow.get("nodes")):
        if not isinstance(node, dict) or node.get("mode") in (2, 4):  # muted, bypassed
            continue
        kind = str(node.get("type"))
        names = WIDGETS.get(kind, ())
        inputs = dict(zip(names, _list(node.get("widgets_values")), strict=False))
        for entry in _list(node.get("inputs")):
            if isinstance(entry, dict) and isinstance(entry.get("link"), int):
                inputs[str(entry.get("name"))] = sources.get(entry["link"])
        graph[str(node.get("id"))] = {"class_type": kind, "inputs": inputs}
    return graph


def read_graph(graph: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Values by the request's fields, not yet checked, and sentences about the rest."""
    nodes = {
        name: node
        for name, node in graph.items()
        if isinstance(node, dict) and isinstance(node.get("inputs"), dict)
    }
    samplers = [name for name, node in nodes.items() if node.get("class_type") in SAMPLER_NODES]
    if not samplers:
        return {}, []
    # The first pass decides what the picture shows; later ones enlarge it.
    first = min(samplers, key=lambda name: len(_kinds(nodes, name, samplers)))
    unread = []
    if len(samplers) > 1:
        unread.append(f"It was made in {len(samplers)} passes; the settings are of the first.")
    found: dict[str, Any] = {
        "prompt": _text(nodes, first, "positive", unread)
        or _text(nodes, first, "conditioning", []),
        "negative_prompt": _text(nodes, first, "negative", unread),
        "seed": _value(nodes, first, "seed", "noise_seed"),
        "num_inference_steps": _value(nodes, first, "steps"),
        "guidance_scale": _value(nodes, first, "cfg"),
        "width": _value(nodes, first, "width"),
        "height": _value(nodes, first, "height"),
        "model_key": _value(nodes, first, "ckpt_name", "unet_name"),
        "scheduler": _sampler(nodes, first, unread),
    }
    denoise = _value(nodes, first, "denoise")
    if isinstance(denoise, int | float) and denoise < 1:
        unread.append(
            f"It was made from another picture with strength {denoise}; the file does not hold it."
        )
    for kind in sorted(_kinds(nodes, first) - KNOWN_NODES):
        unread.append(f"The node {kind[:60]} has no counterpart here.")
    return {name: value for name, value in found.items() if value is not None}, unread


def _sampler(nodes: Graph, start: str, unread: list[str]) -> str | None:
    name = str(_value(nodes, start, "sampler_name") or "")
    schedule = str(_value(nodes, start, "scheduler") or "")
    if not name:
        return None
    plain = schedule in PLAIN_SCHEDULES
    sampler = read_sampler(SAMPLERS.get(name, ""), "" if plain else schedule)
    if sampler is None:
        unread.append(f"The sampler {name} {schedule}".rstrip()[:80] + " has no counterpart here.")
    return sampler


def _value(nodes: Graph, start: str, *names: str) -> Any:
    """The nearest value of that name, from the node upwards; never one of the words' nodes."""
    for name in _upstream(nodes, start):
        if str(nodes[name].get("class_type")).startswith("CLIPTextEncode"):
            continue  # SDXL's have a width of their own
        for key, given in nodes[name]["inputs"].items():
            value = _linked(nodes, given) if isinstance(given, list) else given
            if key in names and isinstance(value, str | int | float):
                return value
    return None


def _linked(nodes: Graph, link: list[Any]) -> Any:
    """The one value of a node that does nothing but hold it."""
    node = nodes.get(str(link[0])) if link else None
    values = [value for value in (node or {"inputs": {}})["inputs"].values()]
    plain = [value for value in values if isinstance(value, str | int | float)]
    return plain[0] if plain else None


def _text(nodes: Graph, start: str, side: str, unread: list[str]) -> str | None:
    """The words behind the `positive` or `negative` input."""
    for name in _upstream(nodes, start):
        link = nodes[name]["inputs"].get(side)
        if isinstance(link, list) and link:
            texts = list(dict.fromkeys(_texts(nodes, str(link[0]), side, set())))
            if len(texts) > 1:
                unread.append(f"The {side} words were combined from {len(texts)} texts.")
            return ", ".join(texts) or None
    return None


def _texts(nodes: Graph, name: str, side: str, seen: set[str]) -> Iterator[str]:
    if name in seen or name not in nodes:
        return
    seen.add(name)
    inputs = nodes[name]["inputs"]
    found = [value for key in TEXT_INPUTS if isinstance(value := inputs.get(key), str)]
    if found:
        yield from (text.strip() for text in found if text.strip())
        return
    # A node with both sides hands each on; the other side's words are not ours.
    both = "positive" in inputs and "negative" in inputs
    for key, value in inputs.items():
        if isinstance(value, list) and value and (not both or key == side):
            yield from _texts(nodes, str(value[0]), side, seen)


def _upstream(nodes: Graph, start: str) -> Iterator[str]:
    """The node and those that it hangs on, the nearest first."""
    seen, waiting = {start}, [start]
    while waiting:
        name = waiting.pop(0)
        yield name
        for value in nodes[name]["inputs"].values():
            source = str(value[0]) if isinstance(value, list) and value else ""
            if source in nodes and source not in seen:
                seen.add(source)
                waiting.append(source)


def _kinds(nodes: Graph, start: str, among: list[str] | None = None) -> set[str]:
    """The kinds of nodes upstream, or the nodes of `among` that are."""
    names = set(_upstream(nodes, start))
    if among is not None:
        return names & set(among)
    return {str(nodes[name].get("class_type")) for name in names}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


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
INVOKEAI_UNSUPPORTED = (
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
class ImportedSettings:
    """What a picture says: the program that made it ("" if it says nothing), and its settings.

    `values` are fields of a GenerationRequest, each valid; `unread` are sentences about the rest.
    """

    program: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def read_metadata(
    source: Path | IO[bytes], models: Mapping[str, ModelSpec] | None = None
) -> ImportedSettings:
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
    return ImportedSettings()


def find_model(name: str, models: Mapping[str, ModelSpec]) -> str | None:
    """The key of the model that another program calls so; spelling and folders do not matter."""
    wanted = _normalize_name(name)
    for key, spec in models.items():
        names = {key, *spec.sources, *(source.rpartition("/")[2] for source in spec.sources)}
        if wanted and wanted in map(_normalize_name, names):
            return key
    return None


def _with_model(
    program: str, parsed: ParsedSettings, models: Mapping[str, ModelSpec] | None
) -> ImportedSettings:
    values, unread = dict(parsed.values), parsed.unread
    name = values.pop("model_key", "")
    if name:
        key = find_model(name, MODELS if models is None else models)
        if key is None:
            unread += (f"The model {name} is not in the catalogue; the chosen one stays.",)
        else:
            values["model_key"] = key
    return ImportedSettings(program, values, unread)


def _normalize_name(name: str) -> str:
    name = name.replace("\\", "/").lower()
    name = re.sub(r"\.(safetensors|ckpt|gguf|pt)$", "", name)
    return re.sub(r"[^a-z0-9/]", "", name).rpartition("/")[2]


def _invokeai(text: str) -> ParsedSettings:
    """InvokeAI 3 and later."""
    metadata = _json(text)
    found = {field: metadata.get(name) for name, field in INVOKEAI_FIELDS.items()}
    unread = [
        f"{name}: {json.dumps(metadata[name])[:60]} has no counterpart here."
        for name in INVOKEAI_UNSUPPORTED
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
    found, unread = read_graph(_json(text))
    return check_values(found, unread)


def _comfyui_workflow(text: str) -> ParsedSettings:
    found, unread = read_graph(graph_of(_json(text)))
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
