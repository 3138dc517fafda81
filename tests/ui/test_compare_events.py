"""The events of the Compare tab without a browser; test_compare_tab.py has them in one."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from canvas import GenerationRequest, Studio
from canvas.catalog import get_model
from canvas.comparison import ComparisonService
from canvas.errors import CanvasError, InvalidInput, LazyMessage, NotFound
from canvas.history.comparisons import Comparison
from canvas.jobs.job import Job
from canvas.request import GeneratedImage, ProgressUpdate
from canvas.ui.compare_tab import POLL_BUSY, POLL_IDLE, CompareTab, winner_label
from canvas.ui.create_tab import CreateTab

REQUEST = GenerationRequest("a fox", seed=7, width=256, height=128)


class Compare:
    """The tab, and what its callbacks show."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        with gr.Blocks(analytics_enabled=False):
            self.create = CreateTab(studio)
            self.tab = CompareTab(studio, self.create)

    def add(self, *, blind: bool = False, images: int = 0) -> Comparison:
        """A comparison of two presets, of which so many have an image."""
        spec = get_model("starter", self.studio.models)
        requests = [replace(REQUEST, preset=preset).with_defaults(spec) for preset in ("quality", "turbo")]
        comparison = self.studio.comparisons.add("local", requests, blind=blind)
        for request in requests[:images]:
            pixels = Image.effect_noise(request.size, 90).convert("RGB")
            image = GeneratedImage(request, "", 2.5, "cpu", "float32", image=pixels, owner="local")
            self.studio.comparisons.add_image(self.studio.image_repository.save(image))
        return comparison

    def poll(self, selected: str = "", last: str = "") -> dict[Any, Any]:
        return self.tab.poll({self.tab._selected: selected, self.tab._last_rendered: last}, gr.Request())

    def html(self, selected: str = "") -> str:
        return str(self.poll(selected)[self.tab._panel])

    def click(self, action: str, comparison: Comparison, position: int = 0, owner: str = "local") -> dict[Any, Any]:
        event: Any = SimpleNamespace(action=action, comparison=comparison.id, position=str(position))
        request: Any = SimpleNamespace(state=SimpleNamespace(owner=owner))
        return self.tab.on_click(event, request)

    def summary(self, models: list[str], presets: list[str]) -> str:
        updates = self.tab.update_summary({self.tab._models: models, self.tab._presets: presets})
        return str(updates[self.tab._summary])


@pytest.fixture
def compare(studio: Studio) -> Compare:
    return Compare(studio)


def show_jobs(monkeypatch: pytest.MonkeyPatch, comparison: Comparison, *jobs: dict[str, Any]) -> list[Job]:
    """Have the requests of a comparison these jobs."""
    found = [
        Job("local", "generate", "starter", request, **fields)
        for request, fields in zip(comparison.requests, jobs, strict=False)
    ]
    monkeypatch.setattr(Studio, "jobs", lambda *_: found)
    return found


def names(html: str) -> list[str]:
    return re.findall(r"<figcaption>\s*<strong>(.*?)</strong>", html)


def texts(html: str) -> list[str]:
    return re.findall(r'<figcaption>.*?<span class="status-text">(.*?)</span>', html, re.DOTALL)


def test_without_a_comparison_the_tab_says_what_it_does(compare: Compare) -> None:
    assert "Which model suits you?" in compare.html()


def test_the_prompt_of_the_other_tab_is_taken_unless_there_is_one(compare: Compare) -> None:
    prompt = compare.create.form["prompt"]
    for own, expected in (("", "a fox"), ("a cat", "a cat")):
        updates = compare.tab.open({compare.tab._prompt: own, prompt: "a fox"})
        assert updates[compare.tab._prompt] == expected


@pytest.mark.parametrize("blind", [False, True])
def test_names_and_times_are_hidden_until_a_blind_vote(compare: Compare, blind: bool) -> None:
    comparison = compare.add(blind=blind, images=2)
    html = compare.html()
    assert names(html) == (["Image A", "Image B"] if blind else ["starter, quality", "starter, turbo"])
    assert ("2.5 s" in html) == ("256 × 128" in html) == ("2 steps" in html) == (not blind)
    assert "--ratio: 2.0" in html
    assert html.count('data-action="vote"') == 2
    assert "Not generated" not in html
    compare.click("vote", comparison, 1)
    html = compare.html()
    assert names(html) == ["starter, quality", "starter, turbo"]
    assert html.count("2.5 s") == 2
    assert (html.count("Your choice"), html.count('data-action="vote"')) == (1, 0)


def test_a_single_image_has_no_rival_to_vote_against(compare: Compare) -> None:
    compare.add(images=1)
    html = compare.html()
    assert 'data-action="vote"' not in html
    assert texts(html) == ["Not generated"]


@pytest.mark.parametrize("blind", [False, True])
def test_running_jobs_show_their_progress_without_what_is_hidden(
    compare: Compare, monkeypatch: pytest.MonkeyPatch, blind: bool
) -> None:
    running = {"status": "running", "progress": ProgressUpdate(1, 4), "preview": Image.new("RGB", (8, 8))}
    show_jobs(monkeypatch, compare.add(blind=blind), running, {"status": "loading"})
    updates = compare.poll()
    html = updates[compare.tab._panel]
    assert updates[compare.tab._timer]["value"] == POLL_BUSY
    assert texts(html) == (["25 %", "0 %"] if blind else ["Step 1 of 4", "Loading starter into memory…"])
    assert html.count('class="preview"') == 1
    assert html.count("skeleton") == 1
    assert 'data-action="stop"' in html


@pytest.mark.parametrize("blind", [False, True])
def test_what_failed_says_why_unless_it_is_hidden(
    compare: Compare, monkeypatch: pytest.MonkeyPatch, blind: bool
) -> None:
    failed = {"status": "failed", "error": CanvasError(LazyMessage("No memory for starter."))}
    show_jobs(monkeypatch, compare.add(blind=blind), failed, {"status": "cancelled", "preview": Image.new("L", (8, 8))})
    updates = compare.poll()
    html = updates[compare.tab._panel]
    assert texts(html) == ["Something went wrong" if blind else "No memory for starter.", "Not generated"]
    assert updates[compare.tab._timer]["value"] == POLL_IDLE
    assert 'class="preview"' not in html


def test_an_image_counts_more_than_the_error_of_its_job(compare: Compare, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = {"status": "failed", "error": CanvasError("too late")}
    show_jobs(monkeypatch, compare.add(images=2), failed)
    assert "too late" not in compare.html()


def test_the_panel_is_sent_only_if_it_has_changed(compare: Compare) -> None:
    compare.add(images=2)
    html = compare.html()
    assert compare.poll(last=html) == {compare.tab._last_rendered: gr.skip()}


def test_an_earlier_comparison_is_shown_until_it_is_deleted(compare: Compare) -> None:
    first, second = compare.add(images=2), compare.add()
    assert f'data-comparison="{first.id}" aria-current="true"' in compare.html(first.id)
    assert f'data-comparison="{second.id}" aria-current="true"' in compare.html()
    updates = compare.click("show", first)
    assert updates[compare.tab._selected] == first.id
    compare.studio.comparisons.delete(first)
    assert "Earlier comparisons" not in compare.html(first.id)
    assert names(compare.html(first.id)) == ["starter, quality", "starter, turbo"]


def test_a_vote_counts_for_the_position_and_the_list_names_the_winner(compare: Compare) -> None:
    comparison = compare.add(images=2)
    assert winner_label(comparison) == "no vote yet"
    compare.click("vote", comparison, 1)
    assert winner_label(compare.studio.comparisons.get(comparison.id, "local")) == "winner: starter, turbo"
    with pytest.raises(InvalidInput):
        compare.click("vote", compare.add(images=1), 1)


def test_stop_cancels_the_jobs_of_the_owner(compare: Compare, monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = compare.add()
    jobs = show_jobs(monkeypatch, comparison, {"status": "running"}, {"status": "loading"})
    with pytest.raises(NotFound):
        compare.click("stop", comparison, owner="eve")
    compare.click("show", comparison)
    assert not any(job.cancelled.is_set() for job in jobs)
    compare.click("stop", comparison)
    assert all(job.cancelled.is_set() for job in jobs)


@pytest.mark.parametrize(("seed", "expected"), [(None, -1), (0, 0), (5, 5)])
def test_the_form_is_the_request(
    compare: Compare, monkeypatch: pytest.MonkeyPatch, seed: int | None, expected: int
) -> None:
    """An empty field is a random seed."""
    started: list[Any] = []

    def start(_: object, *arguments: Any, **options: Any) -> Any:
        started.append((*arguments, options))
        return SimpleNamespace(id="new")

    monkeypatch.setattr(ComparisonService, "start", start)
    tab = compare.tab
    values = {tab._prompt: "a fox", tab._models: ["starter"], tab._presets: ["turbo"], tab._blind: True}
    updates = tab.start({**values, tab._seed: seed}, gr.Request())
    [(request, *rest)] = started
    assert (request.prompt, request.seed) == ("a fox", expected)
    assert rest == [["starter"], ["turbo"], {"blind": True, "owner": "local"}]
    assert updates[tab._selected] == "new"


def test_the_summary_has_the_time_if_it_is_known_for_all(compare: Compare, monkeypatch: pytest.MonkeyPatch) -> None:
    times: dict[str, float | None] = {"quality": 20.0, "turbo": 10.0}
    monkeypatch.setattr(Studio, "estimate", lambda _, request: times[request.preset])
    assert "2 images · about 30 s<" in compare.summary(["starter"], ["quality", "turbo"])
    times["turbo"] = None
    assert "2 images<" in compare.summary(["starter"], ["quality", "turbo"])
    times["quality"] = None
    assert "2 images · tiny: 3.2 GB download<" in compare.summary(["starter", "tiny"], ["quality"])
    assert "got 1)" in compare.summary(["starter"], ["quality"])
