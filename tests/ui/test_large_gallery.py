"""The gallery with 100,000 pictures."""

from __future__ import annotations

from dataclasses import replace
from time import monotonic

import pytest
from playwright.sync_api import Browser, expect

from canvas import Studio
from canvas.server.launch import launch
from canvas.settings import Settings
from tests.history.bulk_data import many_images
from tests.ui.conftest import PATIENCE

PICTURES = 100_000
FIRST_PAINT = 1.5  # seconds, as promised


@pytest.mark.long
def test_the_first_page_of_very_many_is_quick(settings: Settings, browser: Browser) -> None:
    with Studio(replace(settings, port=0)) as studio:
        studio.database.record_all(replace(image, owner="local") for image in many_images(PICTURES))
        served = launch(studio, block=False)
        with browser.new_context() as context:
            page = context.new_page()
            page.set_default_timeout(PATIENCE)
            page.goto(served.local_url)
            page.locator("#stage .stage").wait_for()
            started = monotonic()
            page.get_by_role("tab", name="Gallery").click()
            page.locator(".tile").first.wait_for()
            assert monotonic() - started <= FIRST_PAINT
            expect(page.locator(".grid-head")).to_contain_text("100,000 pictures")
        served.close()
