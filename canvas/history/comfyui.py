"""ComfyUI's graphs: the settings of the sampler that made the picture, followed up its links."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from canvas.history.infotext import read_sampler

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
