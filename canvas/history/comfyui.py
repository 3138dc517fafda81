"""Settings from ComfyUI graphs: those of the API (`prompt`) and those of the editor (`workflow`).

sd-parsers 0.6 needs the editor's workflow beside the graph, reads only nodes that hold sampler,
steps and CFG themselves, follows no links to values, and takes both prompts behind a ControlNet
node for the positive one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from canvas.history.infotext import ImportedSettings, check_values, read_sampler, switch_on_weights

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

SAMPLER_NODES = ("KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced")
TEXT_INPUTS = ("text", "text_g", "text_l", "t5xxl", "clip_l", "string", "value")
# Nodes that are read, or that do not change the image.
SUPPORTED_NODES = {
    *SAMPLER_NODES, "CLIPTextEncode", "CLIPTextEncodeSDXL", "CheckpointLoaderSimple",
    "CheckpointLoader", "UNETLoader", "CLIPLoader", "DualCLIPLoader", "EmptyLatentImage",
    "EmptySD3LatentImage", "KSamplerSelect", "BasicScheduler", "KarrasScheduler", "RandomNoise",
    "CFGGuider", "BasicGuider", "PrimitiveNode", "PrimitiveInt", "PrimitiveFloat",
    "PrimitiveString", "PrimitiveStringMultiline", "Reroute", "ConditioningCombine",
}  # fmt: skip
SAMPLER_INPUTS = {"steps", "cfg", "sampler_name"}  # of other sampler nodes
# Ids of the nodes that stand for the inputs and outputs of a subgraph.
SUBGRAPH_INPUT, SUBGRAPH_OUTPUT = -10, -20
MAX_NESTING = 8
Source = Callable[[object], list[Any] | None]  # the origin of a link id
MAX_LINKS = 20  # from an input to its value
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
    "PrimitiveString": ("value",),
    "PrimitiveStringMultiline": ("value",),
    "PrimitiveInt": ("value",),
    "PrimitiveFloat": ("value",),
}


def read_comfyui(graph: Mapping[str, Any], workflow: Mapping[str, Any]) -> ImportedSettings:
    """The settings of a graph, or else those of an editor's workflow, which names fewer values."""
    settings = _read_graph(graph)
    if not settings.values:
        flat: dict[str, Any] = {}
        _flatten(workflow, "", _subgraphs(workflow), flat)
        settings = _read_graph(flat)
    return replace(settings, program="ComfyUI")


def scheduler_of(name: object, schedule: object, warnings: list[str]) -> str | None:
    """Our scheduler; None, with a warning, where there is none for this sampler and schedule."""
    if not name:
        return None
    known = SAMPLERS.get(str(name).removeprefix("k_"), str(name))
    scheduler = read_sampler(known, str(schedule or ""))
    if scheduler is None:
        warnings.append(f"The sampler {name} {schedule or ''}".rstrip()[:80] + " is not supported.")
    return scheduler


def _subgraphs(workflow: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    definitions = workflow.get("definitions")
    found = _list(definitions.get("subgraphs")) if isinstance(definitions, dict) else []
    return {str(each.get("id")): each for each in found if isinstance(each, dict)}


def _flatten(
    scope: Mapping[str, Any], prefix: str, subgraphs: Mapping[str, Mapping[str, Any]], graph: dict[str, Any]
) -> None:
    """Add the nodes of a workflow or subgraph, with the values of the known nodes, to a graph.

    The nodes of a subgraph get its id as a prefix. Each of its connected inputs and outputs
    becomes a Reroute node, `in<slot>` or `out<slot>`.
    """
    links = _links(scope)
    nodes = [node for node in _list(scope.get("nodes")) if isinstance(node, dict) and node.get("mode") not in (2, 4)]
    instances = {node.get("id") for node in nodes if node.get("type") in subgraphs}

    def source(link: object) -> list[Any] | None:
        origin, slot = links.get(link, (None, 0)) if isinstance(link, int) else (None, 0)
        if origin == SUBGRAPH_INPUT:
            name = f"{prefix}in{slot}"
            return [name, 0] if name in graph else None
        if origin in instances:
            return [f"{prefix}{origin}:out{slot}", 0]
        return None if origin is None else [f"{prefix}{origin}", slot]

    for node in nodes:
        name, class_type = f"{prefix}{node.get('id')}", str(node.get("type"))
        if class_type not in subgraphs:
            graph[name] = {"class_type": class_type, "inputs": _node_inputs(node, class_type, source)}
        elif prefix.count(":") < MAX_NESTING:
            graph |= {f"{name}:in{slot}": _reroute(found) for slot, found in _instance_inputs(node, source)}
            _flatten(subgraphs[class_type], f"{name}:", subgraphs, graph)
    for slot, link in _outputs(scope):
        if found := source(link):
            graph[f"{prefix}out{slot}"] = _reroute(found)


def _node_inputs(node: Mapping[str, Any], class_type: str, source: Source) -> dict[str, Any]:
    values = dict(zip(WIDGETS.get(class_type, ()), _list(node.get("widgets_values")), strict=False))
    linked = {str(entry.get("name")): source(entry.get("link")) for entry in _entries(node)}
    return values | {name: value for name, value in linked.items() if value}


def _instance_inputs(node: Mapping[str, Any], source: Source) -> Iterator[tuple[int, Any]]:
    """Slots of the inputs of a subgraph, with the source or the value of each."""
    values = iter(_list(node.get("widgets_values")))
    for slot, entry in enumerate(_entries(node)):
        value = next(values, None) if "widget" in entry else None
        if (found := source(entry.get("link")) or value) is not None:
            yield slot, found


def _entries(node: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [entry for entry in _list(node.get("inputs")) if isinstance(entry, dict)]


def _links(scope: Mapping[str, Any]) -> dict[Any, tuple[Any, Any]]:
    """The origin of each link: node id and slot."""
    found = {}
    for link in _list(scope.get("links")):
        if isinstance(link, list) and len(link) >= 3 and isinstance(link[0], int):
            found[link[0]] = (_node_id(link[1]), link[2])
        elif isinstance(link, dict) and isinstance(link.get("id"), int):
            found[link["id"]] = (_node_id(link.get("origin_id")), link.get("origin_slot"))
    return found


def _outputs(scope: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Slot and link id of each output of a subgraph."""
    for link in _list(scope.get("links")):
        if isinstance(link, dict) and link.get("target_id") == SUBGRAPH_OUTPUT:
            yield link.get("target_slot"), link.get("id")


def _node_id(value: object) -> int | str | None:
    return value if isinstance(value, int | str) else None


def _reroute(value: Any) -> dict[str, Any]:
    return {"class_type": "Reroute", "inputs": {"value": value}}


def _read_graph(values: Mapping[str, Any]) -> ImportedSettings:
    graph = _Graph(values)
    upstream = {name: list(graph.upstream(name)) for name in graph.inputs if graph.is_sampler(name)}
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
        "scheduler": scheduler_of(name, schedule, warnings),
    }
    denoise = graph.value(first, "denoise")
    if isinstance(denoise, int | float) and denoise < 1:
        warnings.append(f"The image was made from another image with strength {denoise}; the file does not contain it.")
    unsupported = {graph.class_type(name) for name in upstream[first]} - SUPPORTED_NODES
    warnings += [f"The node {kind[:60]} is not supported." for kind in sorted(unsupported)]
    return check_values(found | switch_on_weights(found, warnings), warnings)


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

    def is_sampler(self, name: str) -> bool:
        return self.class_type(name) in SAMPLER_NODES or self.inputs[name].keys() >= SAMPLER_INPUTS

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
                for found in self._linked_values(value):
                    if isinstance(found, str | int | float):
                        return found
        return None

    def _linked_values(self, value: Any) -> list[Any]:
        """The values of the node behind a link, through nodes that pass it on; a plain value itself."""
        for _ in range(MAX_LINKS):
            if not isinstance(value, list):
                return [value]
            values = list(self.inputs.get(_source(value), {}).values())
            if len(values) != 1 or not isinstance(values[0], list):
                return values
            value = values[0]
        return []

    def prompts(self, start: str, side: str) -> list[str]:
        """The texts behind the nearest input of that name (`positive`, `negative` …)."""
        for node in self.upstream(start):
            value = self.inputs[node].get(side)
            if isinstance(value, str) and value.strip():  # nodes that load the model and hold both prompts
                return [value.strip()]
            if source := _source(value):
                return list(dict.fromkeys(self._texts(source, side, set())))
        return []

    def _texts(self, name: str, side: str, seen: set[str]) -> Iterator[str]:
        if name in seen or name not in self.inputs:
            return
        seen.add(name)
        inputs = self.inputs[name]
        texts = [text for key in (*TEXT_INPUTS, side) if isinstance(text := inputs.get(key), str)]
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
