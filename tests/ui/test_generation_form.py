"""The generation form: requests to component values and back."""

from __future__ import annotations

from typing import Any

import gradio as gr
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
        form = GenerationForm(Catalog(MODELS), "starter")
        form.render(*COMPONENTS)
    return form


def values_of(form: GenerationForm, updates: dict[Any, Any] | None = None) -> dict[str, Any]:
    """The values of a fresh form after updates."""
    updates = updates or {}
    values = {name: updates.get(form[name], form[name].value) for name in form}
    return {name: getattr(value, "value", value) for name, value in values.items()}


def test_every_component_is_a_field_of_the_request() -> None:
    assert set(FIELDS) <= set(GenerationRequest("a").to_dict())


def test_a_fresh_form_has_the_defaults_of_the_model(form: GenerationForm) -> None:
    request = form.to_request(values_of(form) | {"prompt": "a fox"})
    spec = MODELS["starter"]
    assert request.with_defaults(spec).num_inference_steps == spec.num_inference_steps
    assert (request.width, request.height) == (256, 256)


@pytest.mark.parametrize("size", [(256, 256), (304, 224), (512, 128), (144, 400), (336, 192)])
def test_update_from_request_restores_the_request(form: GenerationForm, size: tuple[int, int]) -> None:
    request = GenerationRequest(
        "a fox", "rain", style="anime", preset="balanced", seed=5, width=size[0], height=size[1]
    ).with_defaults(MODELS["starter"])
    assert form.to_request(values_of(form, form.update_from_request(request))) == request


def test_restore_sets_the_saved_values(form: GenerationForm) -> None:
    saved = values_of(form) | {"prompt": "a cat", "style": "fantasy", "resolution": 192}
    assert values_of(form, form.restore(saved)) == saved


@pytest.mark.parametrize(
    "change", [{"model_key": "gone"}, {"aspect_ratio": "0:0"}, {"resolution": "big"}, {"seed": 2**64}, {"style": None}]
)
def test_restore_ignores_invalid_values(form: GenerationForm, change: dict[str, Any]) -> None:
    assert form.restore(values_of(form) | change) == {}


@pytest.mark.parametrize("saved", [None, "text", [], {"prompt": "from an older version"}])
def test_restore_ignores_other_fields(form: GenerationForm, saved: object) -> None:
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
def test_to_request_names_the_invalid_field(form: GenerationForm, field: str, value: object) -> None:
    with pytest.raises(InvalidInput) as caught:
        form.to_request(values_of(form) | {"prompt": "a fox"} | {field: value})
    assert caught.value.field == field


def test_a_saved_resolution_beyond_the_slider_becomes_its_end(form: GenerationForm) -> None:
    saved = values_of(form) | {"prompt": "a cat", "resolution": 512}
    assert values_of(form, form.restore(saved))["resolution"] == 256


def test_restore_accepts_old_field_names(form: GenerationForm) -> None:
    saved = values_of(form) | {"prompt": "a cat"}
    old = {"preset": "mode", "backend": "where"}
    assert values_of(form, form.restore({old.get(name, name): saved[name] for name in saved})) == saved


def test_to_request_rejects_unknown_models(form: GenerationForm) -> None:
    with pytest.raises(UnknownModel):
        form.to_request(values_of(form) | {"prompt": "a fox", "model_key": "nope"})


@given(key=st.sampled_from(sorted(MODELS)), step=st.integers(0, 12), aspect_ratio=st.sampled_from(ASPECT_RATIOS))
def test_sizes_are_valid_for_the_model_and_convert_back(key: str, step: int, aspect_ratio: str) -> None:
    spec = get_model(key, MODELS)
    resolution = min(spec.min_size + step * spec.size_step, spec.recommended_size)
    width, height = size_from_resolution(spec, resolution, aspect_ratio)
    GenerationRequest("a", model_key=key, width=width, height=height).with_defaults(spec)
    found = resolution_from_size(spec, width, height, spec.recommended_size)
    assert found is not None
    assert size_from_resolution(spec, *found) == (width, height)
