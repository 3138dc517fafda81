"""Generation settings from the metadata of other programs.

`infotext` reads A1111, sd-parsers reads InvokeAI, NovelAI and Fooocus. ComfyUI graphs are read
here: sd-parsers 0.6 needs the editor's workflow beside the graph, reads only nodes that hold
sampler, steps and CFG themselves, follows no links to values, and takes both prompts behind a
ControlNet node for the positive one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from sd_parsers.data import Generators, PromptInfo
from sd_parsers.exceptions import ParserError
from sd_parsers.parsers import FooocusParser, InvokeAIParser, NovelAIParser

from canvas.catalog import MODELS, ModelSpec
from canvas.history.infotext import ImportedSettings, check_values, read_infotext, read_number, read_sampler
from canvas.history.metadata import read_settings, read_text
from canvas.history.rows import parse_json_object

# Sampler names of ComfyUI, Fooocus, InvokeAI and NovelAI, without the prefix `k_` of the last two.
SAMPLERS = {
    "euler": "Euler",
    "euler_a": "Euler a",
    "euler_ancestral": "Euler a",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_k": "DPM++ 2M Karras",
    "uni_pc": "UniPC",
    "uni_pc_bh2": "UniPC",
    "unipc": "UniPC",
    "ddim": "DDIM",
    "deis": "DEIS",
    "lcm": "LCM",
    "pndm": "PNDM",
    "plms": "PNDM",
}

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

# ComfyUI
SAMPLER_NODES = ("KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced")
TEXT_INPUTS = ("text", "text_g", "text_l", "t5xxl", "clip_l", "string", "value")
# Nodes that are read, or that do not change the image.
SUPPORTED_NODES = {
    *SAMPLER_NODES, "CLIPTextEncode", "CLIPTextEncodeSDXL", "CheckpointLoaderSimple",
    "CheckpointLoader", "UNETLoader", "CLIPLoader", "DualCLIPLoader", "EmptyLatentImage",
    "EmptySD3LatentImage", "KSamplerSelect", "BasicScheduler", "KarrasScheduler", "RandomNoise",
    "CFGGuider", "BasicGuider", "PrimitiveNode", "PrimitiveInt", "PrimitiveFloat",
    "PrimitiveString", "Reroute", "ConditioningCombine",
}  # fmt: skip
# The inputs behind `widgets_values`, which a workflow does not name.
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
    for read in (_read_with_sd_parsers, _read_a1111, _read_comfyui):
        settings = read(texts)
        if settings.values:
            return settings
    return ImportedSettings()


def _read_a1111(texts: Mapping[str, str]) -> ImportedSettings:
    return replace(read_infotext(texts.get("parameters", "")), program="A1111")


def _read_with_sd_parsers(texts: Mapping[str, str]) -> ImportedSettings:
    """Settings of InvokeAI, NovelAI and Fooocus."""
    safe = {name: text for name, text in texts.items() if name not in QUADRATIC_TEXTS or len(text) <= MAX_QUADRATIC}
    if "invokeai_metadata" in safe:
        safe["invokeai_metadata"] = _prepare_invokeai(safe["invokeai_metadata"])
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
        found = {name: read_number(value) if isinstance(value, str) else value for name, value in found.items()}
    values = {
        "prompt": " ".join(str(prompt) for prompt in sampler.prompts if prompt.value),
        "negative_prompt": ", ".join(str(prompt) for prompt in sampler.negative_prompts if prompt.value),
        "width": found.get("width"),
        "height": found.get("height"),
        "seed": found.get("seed"),
        "num_inference_steps": found.get("steps"),
        "guidance_scale": found.get("cfg_scale"),
        "scheduler": _scheduler(sampler.name, schedule, warnings),
        "model_key": sampler.model.name if sampler.model else None,
    }
    return replace(check_values(values, warnings), program=info.generator.value)


def _scheduler(name: object, schedule: object, warnings: list[str]) -> str | None:
    """Our scheduler; None, with a warning, where there is none for this sampler and schedule."""
    if not name:
        return None
    known = SAMPLERS.get(str(name).removeprefix("k_"), "")
    scheduler = read_sampler(known, str(schedule or ""))
    if scheduler is None:
        warnings.append(f"The sampler {name} {schedule or ''}".rstrip()[:80] + " is not supported.")
    return scheduler


def _read_comfyui(texts: Mapping[str, str]) -> ImportedSettings:
    settings = _read_graph(parse_json_object(texts.get("prompt", "")))
    if not settings.values:  # the workflow names fewer values
        settings = _read_graph(_workflow_to_graph(parse_json_object(texts.get("workflow", ""))))
    return replace(settings, program="ComfyUI")


def _workflow_to_graph(workflow: Mapping[str, Any]) -> dict[str, Any]:
    """The graph of a workflow as the editor saves it, with the values of the known nodes."""
    sources: dict[int, list[Any]] = {}
    for link in _list(workflow.get("links")):
        if isinstance(link, list) and len(link) >= 3 and isinstance(link[0], int):
            sources[link[0]] = [str(link[1]), link[2]]
    graph: dict[str, Any] = {}
    for node in _list(workflow.get("nodes")):
        if not isinstance(node, dict) or node.get("mode") in (2, 4):  # muted, bypassed
            continue
        class_type = str(node.get("type"))
        inputs = dict(zip(WIDGETS.get(class_type, ()), _list(node.get("widgets_values")), strict=False))
        for entry in _list(node.get("inputs")):
            if isinstance(entry, dict) and isinstance(entry.get("link"), int):
                inputs[str(entry.get("name"))] = sources.get(entry["link"])
        graph[str(node.get("id"))] = {"class_type": class_type, "inputs": inputs}
    return graph


def _read_graph(values: Mapping[str, Any]) -> ImportedSettings:
    graph = _Graph(values)
    upstream = {name: list(graph.upstream(name)) for name in graph.inputs if graph.class_type(name) in SAMPLER_NODES}
    if not upstream:
        return ImportedSettings()
    # The first pass decides the content of the image; later ones refine it.
    first = min(upstream, key=lambda name: len(upstream.keys() & set(upstream[name])))
    warnings = []
    if len(upstream) > 1:
        warnings.append(f"The image has {len(upstream)} passes; only the first one is imported.")
    prompts = {}
    for side in ("positive", "negative"):
        texts = graph.prompts(first, side)
        if len(texts) > 1:
            warnings.append(f"The {side} prompt is combined from {len(texts)} texts.")
        prompts[side] = ", ".join(texts)
    name, schedule = graph.value(first, "sampler_name"), graph.value(first, "scheduler")
    found = {
        "prompt": prompts["positive"] or ", ".join(graph.prompts(first, "conditioning")),
        "negative_prompt": prompts["negative"],
        "seed": graph.value(first, "seed", "noise_seed"),
        "num_inference_steps": graph.value(first, "steps"),
        "guidance_scale": graph.value(first, "cfg"),
        "width": graph.value(first, "width"),
        "height": graph.value(first, "height"),
        "model_key": graph.value(first, "ckpt_name", "unet_name"),
        "scheduler": _scheduler(name, schedule, warnings),
    }
    denoise = graph.value(first, "denoise")
    if isinstance(denoise, int | float) and denoise < 1:
        warnings.append(f"The image was made from another image with strength {denoise}; the file does not contain it.")
    unsupported = {graph.class_type(name) for name in upstream[first]} - SUPPORTED_NODES
    warnings += [f"The node {kind[:60]} is not supported." for kind in sorted(unsupported)]
    return check_values(found, warnings)


class _Graph:
    """A ComfyUI graph: nodes by id, each with inputs that are values or `[node id, slot]`."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._nodes = values
        self.inputs: dict[str, Mapping[str, Any]] = {
            name: node["inputs"]
            for name, node in values.items()
            if isinstance(node, dict) and isinstance(node.get("inputs"), dict)
        }

    def class_type(self, name: str) -> str:
        return str(self._nodes[name].get("class_type"))

    def upstream(self, start: str) -> Iterator[str]:
        """The node and all that it depends on, the nearest first."""
        seen, waiting = {start}, [start]
        while waiting:
            name = waiting.pop(0)
            yield name
            for value in self.inputs[name].values():
                source = _source(value)
                if source in self.inputs and source not in seen:
                    seen.add(source)
                    waiting.append(source)

    def value(self, start: str, *names: str) -> Any:
        """The nearest value of one of these inputs; a link to a node of one value is followed."""
        for node in self.upstream(start):
            if self.class_type(node).startswith("CLIPTextEncode"):
                continue  # SDXL's have a width and a height of their own
            for key, value in self.inputs[node].items():
                if key not in names:
                    continue
                linked = self.inputs.get(_source(value), {}) if isinstance(value, list) else {}
                for found in linked.values() if isinstance(value, list) else [value]:
                    if isinstance(found, str | int | float):
                        return found
        return None

    def prompts(self, start: str, side: str) -> list[str]:
        """The texts behind the nearest input of that name (`positive`, `negative` …)."""
        for node in self.upstream(start):
            source = _source(self.inputs[node].get(side))
            if source:
                return list(dict.fromkeys(self._texts(source, side, set())))
        return []

    def _texts(self, name: str, side: str, seen: set[str]) -> Iterator[str]:
        if name in seen or name not in self.inputs:
            return
        seen.add(name)
        inputs = self.inputs[name]
        texts = [text for key in TEXT_INPUTS if isinstance(text := inputs.get(key), str)]
        if texts:
            yield from (text.strip() for text in texts if text.strip())
            return
        # A node with both prompts passes each on.
        has_both = "positive" in inputs and "negative" in inputs
        for key, value in inputs.items():
            if _source(value) and (not has_both or key == side):
                yield from self._texts(_source(value), side, seen)


def _source(value: object) -> str:
    """The node that an input is linked to; "" for a plain value."""
    return str(value[0]) if isinstance(value, list) and value else ""


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
