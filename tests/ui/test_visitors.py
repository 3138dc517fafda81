"""Two visitors of a public server see nothing of each other on the page."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from canvas import Studio
from canvas.server.launch import launch
from canvas.settings import Settings
from tests.ui.conftest import PATIENCE

WORDS = "a zebra named Ottokar"


@pytest.fixture
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("public"),
        cache_dir=tmp_path_factory.getbasetemp() / "cache",
        port=0,
        device="cpu",
        dtype="float32",
        public=True,
    )
    with Studio(settings) as studio:
        page = launch(studio, block=False)
        yield page.local_url
        page.close()


def visit(browser: Browser, address: str) -> Page:
    context = browser.new_context()
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.goto(address)
    page.locator("#stage .stage, #stage .stage-empty").wait_for()
    return page


def test_the_page_shows_only_what_is_mine(address: str, browser: Browser) -> None:
    expect.set_options(timeout=PATIENCE)
    mine, other = visit(browser, address), visit(browser, address)
    mine.get_by_label("Prompt", exact=True).fill(WORDS)
    mine.get_by_role("button", name="Generate", exact=True).click()
    expect(mine.locator(".stage-picture .prompt")).to_have_text(WORDS)
    mine.reload()
    expect(mine.locator(".stage-picture .prompt")).to_have_text(WORDS)

    expect(other.locator("#stage")).to_contain_text("What shall it be?")
    other.get_by_role("tab", name="Gallery").click()
    expect(other.locator("#gallery")).to_contain_text("Nothing here yet")
    other.get_by_role("button", name="Make the first one").click()
    expect(other.get_by_label("Prompt", exact=True)).to_be_visible()
    other.get_by_role("tab", name="Statistics").click()
    expect(other.locator(".figure").first).to_have_text("0pictures")
    assert WORDS not in other.content()
    expect(other.locator("#statistics")).not_to_contain_text("Thumbnails")  # the server's disk

    mine.get_by_role("tab", name="Statistics").click()
    mine.on("dialog", lambda dialog: dialog.accept())
    mine.get_by_role("button", name="Erase all").click()
    expect(mine.locator(".figure").first).to_have_text("0pictures")
    for page in (mine, other):
        page.context.close()
