"""The search for models, without a browser; test_models_tab.py has it in one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from canvas import Studio
from canvas.catalog import ModelSpec
from canvas.errors import InvalidInput
from canvas.models.hub_search import FoundModel
from canvas.models.own_models import OwnModels
from canvas.ui.models_tab import ModelSearch


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


@pytest.mark.parametrize(
    ("name", "terms", "is_downloaded"),
    [("eve/model", "", True), ("eve/model", "https://example.org/licence", False), ("/models/mine", "", False)],
)
def test_an_added_model_is_downloaded_unless_it_is_here_or_has_terms(
    search: ModelSearch, monkeypatch: pytest.MonkeyPatch, name: str, terms: str, is_downloaded: bool
) -> None:
    downloads: list[str] = []
    monkeypatch.setattr(OwnModels, "add", lambda _, model: ModelSpec("added", model.source, terms=terms))
    monkeypatch.setattr(Studio, "download_model", lambda _, key, owner: downloads.append(key))
    search._refresh = gr.State()
    found = [FoundModel("ann/other"), FoundModel(name)]
    updates = search.on_click({search._found: found}, click("add_model", name), gr.Request())
    assert downloads == (["added"] if is_downloaded else [])
    assert "other" in updates[search._results]
