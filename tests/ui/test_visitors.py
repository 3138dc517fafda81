"""Visitors of a public server see only their own images on the page."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from canvas import Studio
from canvas.server.launch import launch
from canvas.settings import Settings
from tests.ui.conftest import TIMEOUT

PROMPT = "a zebra named Ottokar"


@pytest.fixture
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("public"),
        cache_dir=tmp_path_factory.getbasetemp() / "cache",
        port=0,
        device="cpu",
        engine="torch",
        dtype="float32",
        public=True,
    )
    with Studio(settings) as studio:
        page = launch(studio, block=False)
        yield page.local_url
        page.close()


def visit(browser: Browser, address: str) -> Page:
    context = browser.new_context()
    context.set_default_timeout(TIMEOUT)
    page = context.new_page()
    page.goto(address)
    page.locator("#current-result .result").wait_for()
    return page


def test_the_page_shows_only_the_visitors_own_images(address: str, browser: Browser) -> None:
    expect.set_options(timeout=TIMEOUT)
    mine, other = visit(browser, address), visit(browser, address)
    mine.get_by_label("Prompt", exact=True).fill(PROMPT)
    mine.get_by_role("button", name="Generate", exact=True).click()
    expect(mine.locator(".result-images .prompt")).to_have_text(PROMPT)
    mine.reload()
    expect(mine.locator(".result-images .prompt")).to_have_text(PROMPT)

    expect(other.locator("#current-result")).to_contain_text("What would you like to create?")
    other.get_by_role("tab", name="Gallery").click()
    expect(other.locator("#gallery")).to_contain_text("No images yet")
    other.get_by_role("button", name="Generate the first image").click()
    expect(other.get_by_label("Prompt", exact=True)).to_be_visible()
    other.get_by_role("tab", name="Statistics").click()
    expect(other.locator(".total").first).to_have_text("0images")
    assert PROMPT not in other.content()
    expect(other.locator("#statistics")).not_to_contain_text("Thumbnails")  # the disk use of the server

    mine.get_by_role("tab", name="Models").click()
    expect(mine.locator(".model").first).to_be_visible()
    expect(mine.locator("#model-search, #starter-card section")).to_have_count(0)
    mine.get_by_role("tab", name="Statistics").click()
    mine.on("dialog", lambda dialog: dialog.accept())
    mine.get_by_role("button", name="Delete all").click()
    expect(mine.locator(".total").first).to_have_text("0images")
    for page in (mine, other):
        page.context.close()
