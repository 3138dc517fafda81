"""The search for models, without a browser; test_models_tab.py has it in one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from canvas import Studio
from canvas.errors import InvalidInput
from canvas.ui.model_search import ModelSearch


@pytest.fixture
def search(studio: Studio) -> ModelSearch:
    with gr.Blocks():
        return ModelSearch(studio)


def click(action: str, source: str = "") -> Any:
    return SimpleNamespace(action=action, source=source)


def test_a_model_of_another_search_is_not_added(search: ModelSearch, studio: Studio) -> None:
    known = set(studio.models)
    with pytest.raises(InvalidInput, match="Search again"):
        search.on_click({search._found: []}, click("add_model", "eve/model"), gr.Request())
    assert set(studio.models) == known


def test_another_click_closes_the_results(search: ModelSearch) -> None:
    updates = search.on_click({search._found: []}, click("close"), gr.Request())
    assert updates == {search._results: "", search._found: []}
