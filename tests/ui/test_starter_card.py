"""The card that offers a first model, without a browser; test_models_tab.py has it in one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from canvas import MODELS, Studio
from canvas.errors import CanvasError
from canvas.jobs.job import Job
from canvas.model_status import ModelStatus
from canvas.models.download import DownloadProgress
from canvas.ui.create_tab import StarterCard

REQUEST = gr.Request()
TITLE = "DreamShaper 8"


class Card:
    """The card of a computer for which DreamShaper is the best model."""

    def __init__(self, studio: Studio) -> None:
        with gr.Blocks(analytics_enabled=False) as page:
            self.card = StarterCard(studio)
            self.form = gr.State()
            self.card.bind_events([page.load], lambda key: {self.form: key}, {self.form})

    def show(self, *, dismissed: bool = False) -> dict[Any, Any]:
        return self.card.show({self.card._dismissed: dismissed}, REQUEST)

    def click(self, action: str, job: str = "") -> dict[Any, Any]:
        event: Any = SimpleNamespace(action=action, model="dreamshaper")
        return self.card.on_click({self.card._job: job}, event, REQUEST)

    def poll(self, job: Job) -> dict[Any, Any]:
        return self.card.poll({self.card._job: job.id}, REQUEST)

    def state(self, updates: dict[Any, Any]) -> tuple[bool, bool, str]:
        """Whether the card is visible, whether it polls, and the id of its download."""
        return bool(updates[self.card._panel]), updates[self.card._timer].active, updates[self.card._job]


@pytest.fixture
def card(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> Card:
    status = ModelStatus("dreamshaper", "hub", None, 10**11, MODELS["dreamshaper"], 8.0)
    monkeypatch.setattr(Studio, "general_model", lambda _: status)
    monkeypatch.setattr(Studio, "device", "cpu")
    return Card(studio)


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Job:
    job = Job("local", "download", "dreamshaper", status="downloading", progress=DownloadProgress(1, 4, 1.0, None))
    monkeypatch.setattr(Studio, "jobs", lambda *_: [job])
    monkeypatch.setattr(Studio, "job", lambda *_: job)
    return job


def test_a_model_is_offered_unless_the_card_was_dismissed(card: Card) -> None:
    updates = card.show()
    assert TITLE in updates[card.card._panel]
    assert card.state(updates) == (True, False, "")
    assert card.state(card.show(dismissed=True)) == (False, False, "")


@pytest.mark.parametrize("change", [{"general_model": lambda _: None}, {"device": None}])
def test_nothing_is_offered_without_a_model_or_before_the_device_is_known(
    card: Card, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    for name, value in change.items():
        monkeypatch.setattr(Studio, name, value)
    assert card.state(card.show()) == (False, False, "")


def test_nothing_is_offered_once_a_model_is_there(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    status = ModelStatus("dreamshaper", "disk", None, 10**11, MODELS["dreamshaper"], 8.0)
    monkeypatch.setattr(Studio, "general_model", lambda _: status)
    assert card.state(card.show()) == (False, False, "")


def test_a_download_of_another_page_is_shown_even_if_the_card_was_dismissed(card: Card, job: Job) -> None:
    updates = card.show(dismissed=True)
    assert card.state(updates) == (True, True, job.id)
    assert 'aria-valuenow="25"' in updates[card.card._panel]
    job.progress = DownloadProgress(0, 0, 0.0, None)
    assert 'aria-valuenow="0"' in card.show()[card.card._panel], "the size is not known yet"
    job.progress = None
    assert "Looking up" in card.show()[card.card._panel]


@pytest.mark.parametrize("change", [{"kind": "generate"}, {"status": "done"}, {"model_key": "tiny"}])
def test_other_jobs_are_not_shown(card: Card, job: Job, change: dict[str, Any]) -> None:
    for name, value in change.items():
        setattr(job, name, value)
    assert card.state(card.show()) == (True, False, "")


def test_the_buttons_download_cancel_and_dismiss(card: Card, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Studio, "download_model", lambda _, key, owner: job if key == "dreamshaper" else None)
    assert card.state(card.click("get_model")) == (True, True, job.id)
    assert card.state(card.click("cancel", job.id)) == (True, False, "")
    assert job.cancelled.is_set()
    updates = card.click("close")
    assert card.state(updates) == (False, False, "")
    assert updates[card.card._dismissed] is True


def test_a_model_is_selected_once_it_is_downloaded(card: Card, job: Job) -> None:
    updates = card.poll(job)
    assert card.state(updates) == (True, True, job.id)
    assert card.form not in updates
    job.status = "done"
    updates = card.poll(job)
    assert card.state(updates) == (False, False, "")
    assert updates[card.form] == "dreamshaper"


@pytest.mark.parametrize(("status", "says_why"), [("failed", True), ("cancelled", False)])
def test_a_model_is_offered_again_after_a_failure_with_its_reason(
    card: Card, job: Job, status: Any, says_why: bool
) -> None:
    job.status, job.error = status, CanvasError("The disk is full.")
    updates = card.poll(job)
    assert card.state(updates) == (True, False, "")
    assert ("The disk is full." in updates[card.card._panel]) == says_why
    job.error = None
    assert 'role="alert"' not in card.poll(job)[card.card._panel]
