"""The options that the commands share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from canvas.cli.generate import edit, generate, request_fields, upscale
from canvas.errors import InvalidInput
from canvas.request import GenerationRequest


@pytest.mark.parametrize("command", [generate, edit, upscale])
def test_no_terms_are_accepted_and_no_field_is_set_by_default(command: Callable[..., Any]) -> None:
    defaults = {name: item.default for name, item in inspect.signature(command).parameters.items()}
    assert defaults["accept_terms"] is False
    assert defaults["json"] is False
    assert (defaults["output"], defaults["key"]) == (None, None)
    request = GenerationRequest("a fox")
    assert defaults["backend"] == request.backend
    fields = request_fields(defaults)
    assert fields == {name: getattr(request, name) for name in fields}
    assert {"seed", "style", "prompt_weighting", "backend"} <= set(fields)


def test_each_command_has_the_options_that_act_there() -> None:
    names = {command.__name__: set(inspect.signature(command).parameters) for command in (generate, edit, upscale)}
    common = {"model", "steps", "seed", "style", "negative", "lora", "format", "watermark", "control", "backend"}
    assert all(common | {"accept_terms", "output", "key", "json", "data_dir"} <= each for each in names.values())
    assert all("options" not in each for each in names.values())
    assert names["generate"] & {"strength", "mask_blur", "outpaint", "scale", "upscaler"} == set()
    assert names["edit"] & {"scale", "upscaler", "scale_to_size"} == set()
    assert names["upscale"] & {"width", "height", "count", "outpaint", "scale_to_size"} == set()
    assert {"width", "count", "scale_to_size"} <= names["generate"]
    assert {"image", "mask", "strength", "outpaint", "width", "count"} <= names["edit"]
    assert {"image", "strength", "scale", "upscaler"} <= names["upscale"]


@pytest.mark.parametrize(
    ("value", "lora"),
    [
        ("ink", ("ink", 1.0)),
        ("ink:0.5", ("ink", 0.5)),
        ("ann/ink:0.5:-1", ("ann/ink:0.5", -1.0)),
        ("a:b", ("a:b", 1.0)),
        (":0.5", (":0.5", 1.0)),
    ],
)
def test_a_lora_may_have_a_weight(value: str, lora: tuple[str, float]) -> None:
    assert request_fields({"lora": [value]}) == {"loras": (lora,)}


def test_options_without_a_value_and_those_of_no_field_are_left_out() -> None:
    assert request_fields({"seed": None, "steps": 7, "output": "fox.png"}) == {"num_inference_steps": 7}


def test_outpaint_is_four_numbers() -> None:
    assert request_fields({"outpaint": "1,2,3,4"}) == {"outpaint": [1, 2, 3, 4]}
    with pytest.raises(InvalidInput, match="left,top,right,bottom"):
        request_fields({"outpaint": "1,x"})


def test_guiding_images_have_settings() -> None:
    fields = request_fields(
        {"control": ["a.png", "b.png,kind=canny, weight=0.8,detect=No"], "reference": ["c.png,kind=face,weight=true"]}
    )
    assert fields["control_images"] == [
        {"image": "a.png"},
        {"image": "b.png", "kind": "canny", "weight": 0.8, "detect": False},
    ]
    assert fields["reference_images"] == [{"image": "c.png", "kind": "face", "weight": True}]


@pytest.mark.parametrize("value", ["a.png,canny", "a.png,colour=red", "a.png,kind"])
def test_other_settings_of_a_guiding_image_are_rejected(value: str) -> None:
    with pytest.raises(InvalidInput, match="with the names kind, weight"):
        request_fields({"control": [value]})
