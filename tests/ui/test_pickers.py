"""The choices of models, backends and LoRAs, without a browser."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from canvas import Studio
from canvas.ui.generation_form import LoraPicker, model_choices


@pytest.fixture
def picker(studio: Studio) -> LoraPicker:
    with gr.Blocks(analytics_enabled=False):
        picker = LoraPicker(studio, "create")
        picker._prompt = gr.Textbox()
    return picker


def test_models_are_offered_with_their_size_and_whether_they_are_here(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Studio, "is_on_disk", lambda _, key: key == "small")
    labels = {key: label for label, key in model_choices(studio, ["starter", "small", "tiny"])}
    assert labels["starter"].endswith(" · no download")
    assert labels["small"].endswith(" GB · downloaded")
    assert labels["tiny"].endswith(" · 3.2 GB · not downloaded")


@pytest.mark.parametrize(
    ("prompt", "name", "expected"),
    [("a fox", " mine ", "a fox <lora:mine:0.5>"), ("", "mine", "<lora:mine:0.5>"), ("a fox", None, gr.skip())],
)
def test_a_lora_is_added_to_the_prompt(
    picker: LoraPicker, monkeypatch: pytest.MonkeyPatch, prompt: str, name: str | None, expected: Any
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(gr, "Warning", warnings.append)
    updates = picker.insert_tag({picker._name: name, picker._weight: 0.5, picker._prompt: prompt})
    assert updates == {picker._prompt: expected}
    assert len(warnings) == (0 if name else 1)


@pytest.mark.parametrize(
    ("prompt", "expected"), [("a fox ", "a fox, in snow"), ("", "in snow"), ("a fox in snow", gr.skip())]
)
def test_a_trigger_word_is_added_once(picker: LoraPicker, prompt: str, expected: Any) -> None:
    event: Any = SimpleNamespace(word="in snow")
    assert picker.insert_trigger_word({picker._prompt: prompt}, event) == {picker._prompt: expected}


def test_the_download_of_a_lora_is_shown_or_what_is_wrong_with_it(
    picker: LoraPicker, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shown(name: str | None) -> str:
        return str(picker.show_info({picker._name: name})[picker._info])

    assert shown(None) == shown("  ") == ""
    assert 'error"' in shown("nothing")
    monkeypatch.setattr(studio.inputs, "get_lora", lambda name: None)
    monkeypatch.setattr(studio.inputs, "lora_download_size", lambda name: 2_000_000)
    assert "2.0 MB download with the first image" in shown("ann/lora")
    lora = SimpleNamespace(base_model="SD 1.5", trigger_words=("in snow",))
    monkeypatch.setattr(studio.inputs, "get_lora", lambda name: lora)
    assert "Made for SD 1.5" in shown("mine")
    assert 'data-word="in snow"' in shown("mine")
