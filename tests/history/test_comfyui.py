"""Graphs and workflows of ComfyUI, node by node."""

from __future__ import annotations

from typing import Any

import pytest

from canvas.history.comfyui import read_comfyui, scheduler_of

VALUES = {"seed": 5, "num_inference_steps": 9, "guidance_scale": 7.5, "scheduler": "Euler a"}


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def sampler(**inputs: Any) -> dict[str, Any]:
    plain = {"seed": 5, "steps": 9, "cfg": 7.5, "sampler_name": "euler_ancestral", "scheduler": "normal", "denoise": 1}
    return node("KSampler", **{**plain, **inputs})


def text(content: Any) -> dict[str, Any]:
    return node("CLIPTextEncode", text=content)


def workflow(mode: int = 0, links: Any = ((7, 2, 0, 1, 0, "CONDITIONING"),)) -> dict[str, Any]:
    widgets = [5, "fixed", 9, 7.5, "euler_ancestral", "normal", 1]
    inputs = [{"name": "positive", "link": 7}, {"name": "negative", "link": None}]
    nodes = [
        {"id": 1, "type": "KSampler", "mode": mode, "widgets_values": widgets, "inputs": inputs},
        {"id": 2, "type": "CLIPTextEncode", "mode": 0, "widgets_values": ["a fox"], "inputs": []},
    ]
    return {"nodes": nodes, "links": [list(link) if isinstance(link, tuple) else link for link in links]}


def test_a_graph_gives_its_values() -> None:
    found = read_comfyui({"1": sampler(positive=["2", 0]), "2": text("a fox")}, {})
    assert found.values == {"prompt": "a fox", **VALUES}
    assert (found.warnings, found.program) == ((), "ComfyUI")


@pytest.mark.parametrize(
    ("mode", "links", "values"),
    [
        (0, ((7, 2, 0, 1, 0, "CONDITIONING"),), {"prompt": "a fox", **VALUES}),
        (0, ({"id": 7, "origin_id": 2, "origin_slot": 0},), {"prompt": "a fox", **VALUES}),
        (0, ((7, 2, 0),), {"prompt": "a fox", **VALUES}),
        (0, ((7, 2), {"id": "7", "origin_id": 2}, (8, 2, 0), 3), VALUES),
        (2, (), {}),
        (4, (), {}),
    ],
)
def test_a_workflow_gives_the_values_of_nodes_that_are_not_muted(mode: int, links: Any, values: dict[str, Any]) -> None:
    assert read_comfyui({}, workflow(mode, links)).values == values


@pytest.mark.parametrize(
    ("graph", "prompt", "warnings"),
    [
        ({"1": sampler(positive=["2", 0]), "2": node("Join", a=["3", 0], b=["4", 0])}, "a fox, snow", 2),
        ({"1": sampler(positive=["2", 0]), "2": node("Reroute", value=["3", 0])}, "a fox", 0),
        ({"1": sampler(positive=["2", 0]), "2": node("Reroute", value=["2", 0])}, None, 0),
        ({"1": sampler(positive=" an owl ")}, "an owl", 0),
        ({"1": sampler(positive=" ", model=["3", 0])}, None, 0),
        ({"1": sampler(conditioning=["3", 0])}, "a fox", 0),
        ({"1": sampler(positive=["2", 0]), "2": node("Apply", positive=["3", 0], negative=["4", 0])}, "a fox", 1),
        ({"1": sampler(positive=["2", 0]), "2": node("Apply", positive=["3", 0], image=["4", 0])}, "a fox, snow", 2),
    ],
)
def test_prompts_are_followed_through_nodes(graph: dict[str, Any], prompt: str | None, warnings: int) -> None:
    found = read_comfyui({**graph, "3": text("a fox"), "4": text("snow")}, {})
    assert found.values.get("prompt") == prompt
    assert len(found.warnings) == warnings


@pytest.mark.parametrize(("denoise", "warnings"), [(0.5, 1), (1, 0), ("x", 0)])
def test_an_image_made_from_another_has_a_warning(denoise: object, warnings: int) -> None:
    assert len(read_comfyui({"1": sampler(denoise=denoise)}, {}).warnings) == warnings


def test_the_first_of_two_passes_counts() -> None:
    graph = {"1": sampler(latent=["2", 0], seed=6), "2": sampler(latent=["3", 0]), "3": node("Other", x=1)}
    found = read_comfyui(graph, {})
    assert found.values["seed"] == 5
    assert found.warnings == (
        "The image has 2 passes; only the first one is imported.",
        "The node Other is not supported.",
    )


def test_other_nodes_with_the_inputs_of_a_sampler_are_samplers() -> None:
    inputs = {"steps": 9, "cfg": 7.5, "sampler_name": "euler_ancestral"}
    assert read_comfyui({"1": node("MySampler", **inputs)}, {}).values["num_inference_steps"] == 9
    assert read_comfyui({"1": node("MySampler", steps=9, cfg=7.5)}, {}).values == {}


@pytest.mark.parametrize(
    ("graph", "seed"),
    [
        ({"2": node("PrimitiveInt", value=8)}, 8),
        ({"2": node("Reroute", value=["3", 0]), "3": node("PrimitiveInt", value=8)}, 8),
        ({"2": node("Reroute", value=["2", 0])}, None),
        ({"2": node("Empty")}, None),
        ({}, None),
    ],
)
def test_values_are_followed_through_links(graph: dict[str, Any], seed: int | None) -> None:
    assert read_comfyui({"1": sampler(seed=["2", 0]), **graph}, {}).values.get("seed") == seed


@pytest.mark.parametrize(
    ("name", "schedule", "expected", "warnings"),
    [
        ("dpmpp_2m", "karras", "DPM++ 2M Karras", []),
        ("k_euler_ancestral", "normal", "Euler a", []),
        ("ddim", None, "DDIM", []),
        (None, "karras", None, []),
        ("heun", None, None, ["The sampler heun is not supported."]),
        ("ddim", "beta", None, ["The sampler ddim beta is not supported."]),
        ("x" * 99, None, None, [f"The sampler {'x' * 68} is not supported."]),
    ],
)
def test_schedulers_of_samplers_and_schedules(
    name: str | None, schedule: str | None, expected: str | None, warnings: list[str]
) -> None:
    found: list[str] = []
    assert scheduler_of(name, schedule, found) == expected
    assert found == warnings
