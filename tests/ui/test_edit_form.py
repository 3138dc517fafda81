"""The form of the Edit tab, without a browser."""

from __future__ import annotations

from typing import Any

import gradio as gr
import pytest

from canvas import Studio
from canvas.ui.edit_tab import INSTRUCTION, OPERATIONS, EditForm


@pytest.fixture
def form(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> EditForm:
    """The form on a computer where one model follows instructions."""
    monkeypatch.setattr(Studio, "instruction_models", property(lambda _: ["flux-klein"]))
    with gr.Blocks(analytics_enabled=False):
        return EditForm(studio)


def values_of(form: EditForm, **changes: Any) -> dict[Any, Any]:
    return {form[name]: changes.get(name, form[name].value) for name in form}


@pytest.mark.parametrize(
    ("operation", "model", "chosen"),
    [
        ("image_to_image", "flux-klein", INSTRUCTION),
        ("image_to_image", "small", None),
        ("inpaint", "flux-klein", None),
        ("inpaint", "small", None),
    ],
)
def test_a_model_that_follows_instructions_selects_them(
    form: EditForm, operation: str, model: str, chosen: str | None
) -> None:
    update = form.on_model(values_of(form, operation=operation, model_key=model))[form["operation"]]
    assert update == gr.skip() if chosen is None else update.value == chosen


def test_instructions_select_a_model_that_follows_them(form: EditForm) -> None:
    updates = form.on_operation(values_of(form, operation=INSTRUCTION, model_key="small"))
    model = updates[form["model_key"]]
    assert ([key for _, key in model.choices], model.value) == (["flux-klein"], "flux-klein")
    updates = form.on_operation(values_of(form, operation="inpaint", model_key="small"))
    assert "small" in [key for _, key in updates[form["model_key"]].choices]
    assert "value" not in updates[form["model_key"]].constructor_args, "the model stays"


@pytest.mark.parametrize("operation", [name for name in OPERATIONS if name != INSTRUCTION])
def test_each_operation_has_its_strength(form: EditForm, operation: str) -> None:
    strength = OPERATIONS[operation].strength
    update = form.on_operation(values_of(form, operation=operation))[form["strength"]]
    assert update == (gr.skip() if strength is None else strength)


@pytest.mark.parametrize(
    ("operation", "upscaler", "shown", "hidden"),
    [
        ("image_to_image", "lanczos", {"strength", "model"}, {"sides", "mask", "upscaler"}),
        ("inpaint", "lanczos", {"strength", "mask"}, {"sides", "upscaler"}),
        ("outpaint", "lanczos", {"sides"}, {"upscaler"}),
        ("upscale", "lanczos", {"upscaler"}, {"model", "prompt", "strength"}),
        ("upscale", "detail", {"upscaler", "model", "prompt"}, {"sides", "mask"}),
    ],
)
def test_only_the_fields_of_the_operation_are_shown(
    form: EditForm, operation: str, upscaler: str, shown: set[str], hidden: set[str]
) -> None:
    updates = form.toggle_groups(values_of(form, operation=operation, upscaler=upscaler))
    visible = {name for name, group in form._groups.items() if updates[group].visible}
    assert shown <= visible
    assert not hidden & visible


def test_instructions_are_offered_where_a_model_follows_them(form: EditForm, monkeypatch: pytest.MonkeyPatch) -> None:
    assert INSTRUCTION in [name for _, name in form.operations().choices]
    monkeypatch.setattr(Studio, "instruction_models", property(lambda _: []))
    assert INSTRUCTION not in [name for _, name in form.operations().choices]
