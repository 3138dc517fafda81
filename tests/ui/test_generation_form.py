"""The form: every widget is a field, and a request survives the way in and out."""

from __future__ import annotations

from typing import Any

import gradio as gr
import pytest
from hypothesis import given
from hypothesis import strategies as some

from canvas import MODELS, GenerationRequest
from canvas.catalog import Catalog, get_model
from canvas.errors import InvalidInput, UnknownModel
from canvas.ui.generation_form import (
    ASPECT_RATIOS,
    COMPONENTS,
    FIELDS,
    GenerationForm,
    resolution_from_size,
    size_from_resolution,
)


@pytest.fixture
def form() -> GenerationForm:
    with gr.Blocks(analytics_enabled=False):
        controls = GenerationForm(Catalog(MODELS), "starter")
        controls.render(*COMPONENTS)
    return controls


def values_of(form: GenerationForm, updates: dict[Any, Any] | None = None) -> dict[str, Any]:
    """What the form holds after updates of a fresh one."""
    updates = updates or {}
    held = {name: updates.get(form[name], form[name].value) for name in form}
    return {name: getattr(value, "value", value) for name, value in held.items()}


def test_every_widget_fills_a_field_of_the_request() -> None:
    assert set(FIELDS) <= set(GenerationRequest("a").to_dict())


def test_a_fresh_form_asks_for_what_the_model_does_best(form: GenerationForm) -> None:
    request = form.request(values_of(form) | {"prompt": "a fox"})
    spec = MODELS["starter"]
    assert request.resolve(spec).num_inference_steps == spec.num_inference_steps
    assert (request.width, request.height) == (256, 256)


@pytest.mark.parametrize("size", [(256, 256), (304, 224), (512, 128), (144, 400), (336, 192)])
def test_use_these_settings_gives_the_same_request(
    form: GenerationForm, size: tuple[int, int]
) -> None:
    wish = GenerationRequest(
        "a fox", "rain", style="anime", preset="balanced", seed=5, width=size[0], height=size[1]
    ).with_defaults(MODELS["starter"])
    assert form.request(values_of(form, form.update_from_request(wish))) == wish


def test_what_the_browser_saved_comes_back(form: GenerationForm) -> None:
    saved = values_of(form) | {"prompt": "a cat", "style": "fantasy", "resolution": 192}
    assert values_of(form, form.restore(saved)) == saved


@pytest.mark.parametrize(
    "damage",
    [
        {"model_key": "gone"},
        {"aspect_ratio": "0:0"},
        {"resolution": "big"},
        {"seed": 2**64},
        {"style": None},
    ],
)
def test_a_saved_form_that_does_not_fit_is_left(
    form: GenerationForm, damage: dict[str, Any]
) -> None:
    assert form.restore(values_of(form) | damage) == {}


@pytest.mark.parametrize("saved", [None, "text", [], {"prompt": "from an older version"}])
def test_a_form_of_another_version_is_left(form: GenerationForm, saved: object) -> None:
    assert form.restore(saved) == {}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", ""),
        ("prompt", "x" * 100_000),
        ("prompt", "nul\0"),
        ("width", 7),
        ("width", 513),
        ("height", 10**9),
        ("width", float("nan")),
        ("num_inference_steps", 0),
        ("num_images", 1_000),
        ("seed", -2),
        ("seed", 2**64),
        ("seed", "abc"),
        ("style", "cubism"),
        ("scheduler", "none"),
        ("aspect_ratio", "1:0"),
        ("resolution", 10**6),
    ],
)
def test_bad_values_are_named(form: GenerationForm, field: str, value: object) -> None:
    with pytest.raises(InvalidInput) as caught:
        form.request(values_of(form) | {"prompt": "a fox"} | {field: value})
    assert caught.value.field == field


def test_an_unknown_model_is_refused(form: GenerationForm) -> None:
    with pytest.raises(UnknownModel):
        form.request(values_of(form) | {"prompt": "a fox", "model_key": "nope"})


@given(
    key=some.sampled_from(sorted(MODELS)),
    step=some.integers(0, 12),
    aspect_ratio=some.sampled_from(ASPECT_RATIOS),
)
def test_sizes_fit_the_model_and_are_found_again(key: str, step: int, aspect_ratio: str) -> None:
    spec = get_model(key, MODELS)
    resolution = min(spec.min_size + step * spec.size_step, spec.max_size)
    width, height = size_from_resolution(spec, resolution, aspect_ratio)
    GenerationRequest("a", model_key=key, width=width, height=height).with_defaults(spec)
    found = resolution_from_size(spec, width, height)
    assert found is not None
    assert size_from_resolution(spec, *found) == (width, height)
