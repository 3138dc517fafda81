"""Fields that do not act on a model: what is applied instead, and what is noted."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from canvas.catalog import MODELS
from canvas.errors import InvalidInput
from canvas.models.capabilities import applied_request, check_task
from canvas.request import GenerationRequest

SPEC = replace(MODELS["starter"], guidance_scale=7.5, scheduler="Model default")
REQUEST = GenerationRequest("a fox", guidance_scale=5.0, scheduler="Model default")
CLASSIC: dict[str, Any] = {
    "family": SimpleNamespace(guidance="cfg"),
    "negative_prompt": True,
    "guidance": True,
    "guidance_scale": 1.0,
    "schedulers": ("Model default", "UniPC"),
    "variation_seed": True,
    "strength": True,
}
NEGATIVE = "The negative prompt has no effect on this model."
UNGUIDED = "The negative prompt has no effect at a guidance of at most 1."


@pytest.mark.parametrize(
    ("abilities", "fields", "applied", "note"),
    [
        ({}, {}, {}, None),
        ({}, {"negative_prompt": "rain", "variation_seed": 3, "strength": 0.5}, {}, None),
        ({"negative_prompt": False}, {}, {}, None),
        ({"negative_prompt": False}, {"negative_prompt": "rain"}, {"negative_prompt": ""}, NEGATIVE),
        ({}, {"negative_prompt": "rain", "guidance_scale": 1.0}, {}, UNGUIDED),
        ({}, {"negative_prompt": "rain", "guidance_scale": None}, {}, UNGUIDED),
        ({}, {"negative_prompt": "rain", "guidance_scale": 1.1}, {}, None),
        ({}, {"guidance_scale": 1.0}, {}, None),
        (
            {"family": SimpleNamespace(guidance="distilled")},
            {"negative_prompt": "rain", "guidance_scale": 1.0},
            {},
            None,
        ),
        ({"guidance": False}, {"guidance_scale": 1.0}, {}, None),
        ({"guidance": False}, {"guidance_scale": 7.5}, {"guidance_scale": 1.0}, None),  # nobody chose it
        ({"guidance": False}, {}, {"guidance_scale": 1.0}, "The guidance scale has no effect on this model."),
        ({"schedulers": ("DDIM",)}, {}, {"scheduler": "DDIM"}, None),
        (
            {"schedulers": ("DDIM", "Euler")},
            {"scheduler": "UniPC"},
            {"scheduler": "DDIM"},
            "The model uses its own scheduler instead of UniPC.",
        ),
        ({}, {"scheduler": "UniPC"}, {}, None),
        ({"variation_seed": False}, {}, {}, None),
        (
            {"variation_seed": False},
            {"variation_seed": 0, "variation_strength": 0.5},
            {"variation_seed": None, "variation_strength": 0.0},
            "The variation seed has no effect on this model.",
        ),
        ({"strength": False}, {"task": "image_to_image", "strength": None}, {}, None),
        ({"strength": False}, {"task": "image_to_image", "strength": 1.0}, {}, None),
        ({"strength": False}, {"task": "inpaint", "strength": 0.5}, {}, None),
        ({}, {"task": "image_to_image", "strength": 0.5}, {}, None),
        (
            {"strength": False},
            {"task": "image_to_image", "strength": 0.5},
            {"strength": 1.0},
            "The strength has no effect on this model, which uses the image as a reference.",
        ),
    ],
)
def test_only_what_was_chosen_and_does_not_act_is_noted(
    abilities: dict[str, Any], fields: dict[str, Any], applied: dict[str, Any], note: str | None
) -> None:
    request = replace(REQUEST, **fields)
    capabilities: Any = SimpleNamespace(**{**CLASSIC, **abilities})
    assert applied_request(request, capabilities, SPEC) == (replace(request, **applied), (note,) if note else ())


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (("text_to_image",), "supports text to image only"),
        (("text_to_image", "image_to_image"), "does not support inpainting"),
    ],
)
def test_a_task_without_a_pipeline_is_an_error_that_names_those_with_one(tasks: tuple[str, ...], message: str) -> None:
    capabilities: Any = SimpleNamespace(pipelines=dict.fromkeys(tasks, ""))
    for task in tasks:
        check_task(task, capabilities, SPEC)
    with pytest.raises(InvalidInput, match=message):
        check_task("inpaint", capabilities, SPEC)
