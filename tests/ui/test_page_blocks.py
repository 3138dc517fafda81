"""The Blocks of the page."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import gradio as gr
import pytest

from canvas.jobs.temp_files import TempFiles
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
