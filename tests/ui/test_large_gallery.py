"""The gallery with 100,000 images."""

from __future__ import annotations

from dataclasses import replace
from time import monotonic

import pytest
from playwright.sync_api import Browser, expect

from canvas import Studio
from canvas.server.launch import launch
from canvas.settings import Settings
from tests.history.bulk_data import many_images
from tests.ui.conftest import TIMEOUT

NUM_IMAGES = 100_000
MAX_SECONDS = 1.5  # until the first page is shown


@pytest.mark.long
def test_the_first_page_of_a_large_gallery_is_fast(settings: Settings, browser: Browser) -> None:
    with Studio(settings.model_copy(update={"port": 0})) as studio:
        studio.database.save_images(replace(image, owner="local") for image in many_images(NUM_IMAGES))
        served = launch(studio, block=False)
        with browser.new_context() as context:
            page = context.new_page()
            page.set_default_timeout(TIMEOUT)
            page.goto(served.local_url)
            page.locator("#current-result .result").wait_for()
            started = monotonic()
            page.get_by_role("tab", name="Gallery").click()
            page.locator(".tile").first.wait_for()
            assert monotonic() - started <= MAX_SECONDS
            expect(page.locator(".grid-header")).to_contain_text("100,000 images")
        served.close()
