"""The Blocks of the page."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gradio as gr
import pytest
from gradio.state_holder import SessionState

from canvas.jobs.inputs import TempFiles
from canvas.ui import page_blocks
from canvas.ui.page_blocks import IDLE_POLL_INTERVAL, POLL_INTERVAL, PageBlocks


def test_the_queue_is_polled_often_only_after_events(monkeypatch: pytest.MonkeyPatch) -> None:
    with PageBlocks(TempFiles(), log_values=True) as blocks:
        text = gr.Textbox("a fox")
        gr.Button().click(lambda value: value, text, text)
    queue, [block_fn] = blocks._queue, blocks.fns.values()
    assert queue.sleep_when_free == IDLE_POLL_INTERVAL

    async def call_and_wait() -> None:
        monkeypatch.setattr(page_blocks, "IDLE_AFTER", 3600)
        await blocks.process_api(block_fn, ["a fox"])
        assert queue.sleep_when_free == POLL_INTERVAL
        monkeypatch.setattr(page_blocks, "IDLE_AFTER", 0)
        await blocks.process_api(block_fn, ["a fox"])
        while queue.sleep_when_free != IDLE_POLL_INTERVAL:
            await asyncio.sleep(0.001)

    with ThreadPoolExecutor() as pool:  # Playwright may have a loop in this thread
        pool.submit(asyncio.run, call_and_wait()).result()


SKIPPED = {"__type__": "update"}


def call_event(result: Any) -> tuple[list[Any], list[str], SessionState]:
    """What an event sends that has a textbox, a state and a number as outputs, those built anew, and the session.

    A dict as the result has their names as keys.
    """
    with PageBlocks(TempFiles(), log_values=True) as blocks:
        outputs = {"text": gr.Textbox("a fox"), "state": gr.State(1), "number": gr.Number(2)}
        if isinstance(result, dict) and result.keys() <= outputs.keys():
            result = {outputs[name]: value for name, value in result.items()}
        gr.Button().click(lambda: result, None, list(outputs.values()))
    [block_fn] = blocks.fns.values()
    session = SessionState(blocks)
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(asyncio.run, blocks.process_api(block_fn, [], session)).result()
    built = [name for name, block in outputs.items() if session.blocks_config.blocks[block._id] is not block]
    return answer["data"], built, session


@pytest.mark.parametrize(
    ("result", "data", "built", "state"),
    [
        ({"number": 3}, [SKIPPED, None, 3], [], 1),
        ({"text": gr.update(visible=False)}, [{**SKIPPED, "visible": False}, None, SKIPPED], ["text"], 1),
        ({"state": 5}, [SKIPPED, None, SKIPPED], [], 5),
        ([gr.skip(), gr.skip(), gr.skip()], [SKIPPED, None, SKIPPED], [], 1),
        (gr.skip(), [SKIPPED, None, SKIPPED], [], 1),
        ({}, [SKIPPED, None, SKIPPED], [], 1),
        (["an owl", 6, 7], ["an owl", None, 7], [], 6),
    ],
)
def test_only_changed_outputs_are_built_anew(result: Any, data: list[Any], built: list[str], state: int) -> None:
    answer, names, session = call_event(result)
    assert (answer, names) == (data, built)
    [value] = [session[number] for number, block in session.blocks_config.blocks.items() if isinstance(block, gr.State)]
    assert value == state


@pytest.mark.parametrize("value", [["an owl"], ["an owl", 3], [], {"owl": [1]}])
def test_a_list_for_a_single_output_is_its_value(value: Any) -> None:
    with PageBlocks(TempFiles(), log_values=True) as blocks:
        gr.Button().click(lambda: value, None, gr.JSON())
    [block_fn] = blocks.fns.values()
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(asyncio.run, blocks.process_api(block_fn, [], SessionState(blocks))).result()
    [data] = answer["data"]
    assert data.root == value


def test_sessions_render_no_component() -> None:
    *_, session = call_event({"text": gr.update(value="an owl")})
    assert list(session.components) == []
