"""The events of the Create tab without a browser; test_create_tab.py has them in one."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from canvas import MODELS, GenerationRequest, Studio
from canvas.errors import CanvasError, InvalidInput
from canvas.jobs.job import Job
from canvas.model_status import ModelStatus
from canvas.request import LOCAL_OWNER
from canvas.ui.create_tab import POLL_BUSY, POLL_IDLE, CreateTab
from canvas.ui.edit_tab import EditTab
from canvas.ui.result_panel import ImageActions
from tests.app_server import save_image

REQUEST = gr.Request()


class Create:
    """The tab, and the values of its components."""

    def __init__(self, studio: Studio) -> None:
        with gr.Blocks(analytics_enabled=False), gr.Tabs() as tabs, gr.Tab("Create"):
            self.tab = CreateTab(studio)
            self.tab._actions = ImageActions(studio, self.tab, EditTab(studio), tabs)

    def values(self, **changes: Any) -> dict[Any, Any]:
        tab, form = self.tab, self.tab.form
        values = {widget: widget.value for widget in form.widgets | tab.guidance.widgets}
        values |= {tab.selected: None, tab._model_key: "starter", tab._last_rendered: {}, form["prompt"]: "a fox"}
        return values | {form[name]: value for name, value in changes.items()}

    def click(self, action: str, **fields: Any) -> dict[Any, Any]:
        event: Any = SimpleNamespace(action=action, **fields)
        return self.tab.on_click(self.values() | {self.tab.selected: 7}, event, REQUEST)

    def summary(self, **changes: Any) -> dict[Any, Any]:
        return self.tab.update_summary(self.values(**changes))

    def status(self, **changes: Any) -> Any:
        return self.tab.show_download_size(self.values(**changes))[self.tab._model_status]


@pytest.fixture(scope="module")
def create(shared_studio: Studio) -> Create:
    return Create(shared_studio)


def make_job(status: Any, **fields: Any) -> Job:
    return Job("local", fields.pop("kind", "generate"), "starter", GenerationRequest("a fox"), status=status, **fields)


def test_generate_submits_the_form_and_shows_the_new_job(create: Create, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted: list[tuple[Any, ...]] = []
    monkeypatch.setattr(Studio, "submit", lambda _, *arguments: submitted.append(arguments))
    updates = create.tab.generate(create.values(num_images=3), REQUEST)
    [(request, owner, client)] = submitted
    assert (request.prompt, request.num_images, owner, client) == ("a fox", 3, LOCAL_OWNER, "page")
    assert updates[create.tab.selected] is None
    assert updates[create.tab._undo] == ""
    with pytest.raises(InvalidInput, match="Write a prompt first"):
        create.tab.generate(create.values(prompt="  "), REQUEST)


def test_stop_ends_what_is_drawn_and_leaves_what_waits(create: Create, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [
        make_job("running"),
        make_job("loading"),
        make_job("queued"),
        make_job("done"),
        make_job("downloading", kind="download"),
    ]
    monkeypatch.setattr(Studio, "jobs", lambda *_: jobs)
    create.tab.stop(REQUEST)
    assert [job.cancelled.is_set() for job in jobs] == [True, True, False, False, False]


def test_each_click_does_one_thing(create: Create, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []
    job = make_job("queued")
    monkeypatch.setattr(Studio, "job", lambda *_: job)
    for name in ("clear_queue", "resume_job", "dismiss_job"):
        monkeypatch.setattr(Studio, name, lambda _, *arguments, name=name: calls.append((name, *arguments)))
    for action, expected in (
        ("clear_queue", [("clear_queue", LOCAL_OWNER)]),
        ("resume", [("resume_job", "abc", LOCAL_OWNER)]),
        ("dismiss", [("dismiss_job", "abc", LOCAL_OWNER)]),
        ("other", []),
    ):
        calls.clear()
        updates = create.click(action, job="abc")
        assert calls == expected
        assert (updates[create.tab.selected], updates[create.tab._undo]) == (7, "")
        assert not job.cancelled.is_set()
    create.click("remove", job="abc")
    assert job.cancelled.is_set()


def test_clicks_on_images_and_examples(create: Create, shared_studio: Studio) -> None:
    image_id = save_image(shared_studio, LOCAL_OWNER).id
    assert create.click("show", image=str(image_id))[create.tab.selected] == image_id
    assert create.click("example", prompt="an owl") == {create.tab.form["prompt"]: "an owl"}
    updates = create.click("use_settings", image=str(image_id))
    assert updates[create.tab.form["prompt"]] == "a secret of local"
    assert create.tab._refresh in updates
    assert "1 image" in create.click("delete", image=str(image_id))[create.tab._undo]


def test_poll_sends_what_has_changed(create: Create, shared_studio: Studio) -> None:
    values = create.values()
    first = create.tab.poll(values, REQUEST)
    assert {create.tab._current, create.tab._recent, create.tab._queue} <= first.keys()
    hashes = first[create.tab._last_rendered]
    again = create.tab.poll(values | {create.tab._last_rendered: hashes}, REQUEST)
    assert again == {create.tab._last_rendered: gr.skip()}
    save_image(shared_studio, LOCAL_OWNER)
    changed = create.tab.poll(values | {create.tab._last_rendered: hashes}, REQUEST)
    assert changed.keys() == {create.tab._current, create.tab._recent, create.tab._last_rendered}


@pytest.mark.parametrize(
    ("jobs", "can_stop", "interval"),
    [
        ([], False, POLL_IDLE),
        ([make_job("done")], False, POLL_IDLE),
        ([make_job("queued")], False, POLL_BUSY),
        ([make_job("running"), make_job("queued")], True, POLL_BUSY),
        ([make_job("downloading", kind="download")], False, POLL_BUSY),
    ],
)
def test_what_is_drawn_can_be_stopped_and_is_polled_faster(
    create: Create, monkeypatch: pytest.MonkeyPatch, jobs: list[Job], can_stop: bool, interval: float
) -> None:
    monkeypatch.setattr(Studio, "jobs", lambda *_: jobs)
    updates = create.tab.poll(create.values(), REQUEST)
    assert updates[create.tab._stop]["visible"] == can_stop
    assert updates[create.tab._timer]["value"] == interval


def test_the_summary_has_the_request_and_what_its_preset_lacks(create: Create) -> None:
    updates = create.summary()
    assert "starter · 256 × 256<" in updates[create.tab._summary]
    assert updates[create.tab._saved]["prompt"] == "a fox"
    assert [preset for _, preset in updates[create.tab.form["preset"]].choices] == ["quality", "balanced", "turbo"]
    assert "6 images" in create.summary(prompt="a {fox|cat}", num_images=3)[create.tab._summary]
    note = "no distilled LoRA for mini-sd"
    assert note not in updates[create.tab._summary]
    assert note in create.summary(model_key="mini-sd", preset="turbo", resolution=256)[create.tab._summary]


def test_an_invalid_form_is_explained_in_the_line_and_saved(create: Create) -> None:
    updates = create.summary(prompt="a __nothing__")
    assert 'error"' in updates[create.tab._summary]
    assert updates[create.tab._enhanced_prompt] == ""
    assert updates[create.tab._saved]["prompt"] == "a __nothing__"


def test_hints_are_shown_once_there_is_a_prompt(create: Create) -> None:
    assert create.summary(prompt="  ")[create.tab._enhanced_prompt] == ""
    assert create.summary(prompt="a zxqy")[create.tab._enhanced_prompt] != ""


def test_the_form_is_restored_with_the_status_of_its_model(create: Create) -> None:
    tab = create.tab
    saved = {name: widget.value for name, widget in ((name, tab.form[name]) for name in tab.form)}
    updates = tab.restore({tab._saved: saved | {"prompt": "an owl", "model_key": "tiny", "resolution": 512}})
    assert updates[tab.form["prompt"]] == "an owl"
    assert "3.2 GB download" in updates[tab._model_status]
    assert updates[tab._restored] is True
    updates = tab.restore({tab._saved: None})
    assert (updates[tab._model_status], updates[tab._restored]) == ("", True)


def test_a_model_is_selected_with_its_defaults(create: Create, shared_studio: Studio) -> None:
    form = create.tab.form
    updates = create.tab.on_model_change(create.values(model_key="tiny"))
    assert "3.2 GB download" in updates[create.tab._model_status]
    assert updates[form["resolution"]].value == MODELS["tiny"].resolution
    selected = create.tab.select_model("tiny")
    assert selected[form["model_key"]].value == "tiny"
    assert (selected[form["backend"]], selected[form["preset"]]) == ("local", "quality")
    keys = [key for _, key in create.tab.list_models()[form["model_key"]].choices]
    assert keys == [key for _, key in selected[form["model_key"]].choices] == shared_studio.available_models


def test_the_status_of_a_model_matters_on_this_computer_only(create: Create) -> None:
    status = create.tab._model_status
    assert create.tab.on_backend_change(create.values(model_key="tiny", backend="remote"))[status] == ""
    assert "3.2 GB download" in create.tab.on_backend_change(create.values(model_key="tiny"))[status]
    assert create.tab.on_backend_change(create.values())[status] == ""


def test_the_hub_is_asked_for_the_size_of_what_is_not_here(create: Create, monkeypatch: pytest.MonkeyPatch) -> None:
    known = ModelStatus("tiny", "hub", None, 10**11, MODELS["tiny"], None)
    asked: list[str] = []

    def model_status(_: Studio, key: str, *, ask_hub: bool = False) -> ModelStatus:
        if not ask_hub:
            return replace(known, location="disk") if key == "starter" else known
        asked.append(key)
        if key == "small":
            raise CanvasError("The Hub does not answer.")
        return replace(known, missing_bytes=1_700_000_000)

    monkeypatch.setattr(Studio, "model_status", model_status)
    assert create.status() == create.status(model_key="tiny", backend="remote") == gr.skip()
    assert asked == []
    assert "1.7 GB download" in create.status(model_key="tiny")
    status = create.status(model_key="small")
    assert "3.2 GB download" in status
    assert "The Hub does not answer." in status
