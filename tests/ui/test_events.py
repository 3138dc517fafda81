"""How callbacks are bound to the events of the page, and how their errors are shown."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from canvas import Studio
from canvas.errors import InvalidInput, LazyMessage, NotFound
from canvas.request import LOCAL_OWNER
from canvas.settings import Settings
from canvas.ui.app import build_page
from canvas.ui.events import bind, bind_next, bind_select_model, current_owner, run_while_selected, show_errors


def request_of(owner: str | None) -> Any:
    return SimpleNamespace(state=SimpleNamespace(owner=owner))


def test_the_owner_is_that_of_the_login() -> None:
    assert current_owner(gr.Request()) == LOCAL_OWNER
    assert current_owner(request_of("ann")) == "ann"
    with pytest.raises(NotFound, match="Log in"):
        current_owner(request_of(None))


def fail() -> None:
    raise InvalidInput("prompt", "", message=LazyMessage("Write <b> first."))


def test_an_error_is_a_toast_with_a_title_whose_text_is_escaped() -> None:
    with pytest.raises(gr.Error) as caught:
        show_errors(fail)()
    assert caught.value.message.startswith("<strong>")
    assert caught.value.message.endswith("</strong><br>Write &lt;b&gt; first.")
    assert not caught.value.print_exception, "what a visitor sent is no error of the program"


def test_other_errors_stay_as_they_are() -> None:
    with pytest.raises(ZeroDivisionError):
        show_errors(lambda: 1 // 0)()


def test_events_of_the_page_show_their_errors_and_are_private() -> None:
    with gr.Blocks(analytics_enabled=False) as page:
        button = gr.Button()
        bind_next(bind(button.click, fail), fail, None, None)
        bind(button.click, None, js="() => 1")
    first, second, script = page.fns.values()
    for event in (first, second):
        assert (event.api_visibility, event.concurrency_limit) == ("private", None)
        with pytest.raises(gr.Error):
            event.fn()
    assert script.fn is None


def test_a_generator_is_bound_as_it_is() -> None:
    """It shows its errors itself: a wrapper would end before its first value."""

    def count() -> Any:
        yield 1

    with gr.Blocks(analytics_enabled=False) as page:
        bind(gr.Button().click, count)
    assert list(page.fns[0].fn()) == [1]


def test_only_the_button_of_a_model_selects_it() -> None:
    with gr.Blocks(analytics_enabled=False) as page:
        panel = gr.HTML()
        bind_select_model(panel, lambda key: {panel: key}, {panel})
    on_click = page.fns[0].fn
    assert on_click(SimpleNamespace(action="select_model", model="sdxl")) == {panel: "sdxl"}
    assert on_click(SimpleNamespace(action="delete", model="sdxl")) == {}


def test_a_timer_runs_while_its_tab_is_selected() -> None:
    with gr.Blocks(analytics_enabled=False) as page:
        with gr.Tabs():
            tabs = [gr.Tab(label) for label in ("one", "two", "three")]
        timer = gr.Timer(active=False)
        run_while_selected(timer, tabs[1], tabs)
    active = {target: event.fn().active for event in page.fns.values() for target, _ in event.targets}
    assert active == {tabs[0]._id: False, tabs[1]._id: True, tabs[2]._id: False}


def test_clicks_count_while_another_is_answered(settings: Settings) -> None:
    with Studio(settings) as studio:
        page = build_page(studio)
    names = {number: getattr(block, "elem_id", "") for number, block in page.blocks.items()}
    clicks = [(event.trigger_mode, event.targets) for event in page.fns.values()]
    counted = {
        names[number] for mode, targets in clicks if mode == "multiple" for number, name in targets if name == "click"
    }
    assert {"generate", "current-result", "models", "model-dialog", "comparison"} <= counted
