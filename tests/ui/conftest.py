"""The page in a real browser: one served studio for all tests, a fresh visit for each."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    expect,
    sync_playwright,
)

from canvas import Studio
from tests.app_server import serving

PATIENCE = 40_000  # milliseconds: the machine of a test may be busy
NO_FAULTS = (
    "AbortError",  # a reload ends the requests that are under way,
    "Connection errored out",  # and what Gradio says of them then
    "The source image could not be decoded",  # Gradio's editor on a file that is no picture
)
QUIET = (
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
)


@pytest.fixture(scope="package")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """The real program on a free port; its address is `served.address`."""
    with serving(tmp_path_factory.mktemp("served")) as studio:
        studio.address = f"{studio.url}/"  # type: ignore[attr-defined]
        yield studio


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """The system's Chromium."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None:
        if os.environ.get("CI"):
            pytest.fail("Chromium is missing; CI must not skip the tests of the page.")
        pytest.skip("Chromium is not installed: install the package `chromium`.")
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=executable, args=QUIET) as browser,
    ):
        yield browser


@pytest.fixture(scope="package")
def context(browser: Browser) -> Iterator[BrowserContext]:
    """One for all tests: Gradio's scripts are fetched and compiled once."""
    expect.set_options(timeout=PATIENCE)
    with browser.new_context(viewport={"width": 1280, "height": 800}) as context:
        context.set_default_timeout(PATIENCE)
        yield context


@pytest.fixture
def page(served: Studio, context: BrowserContext) -> Iterator[Page]:
    """A visit of a browser that remembers nothing; errors in its console fail the test."""
    errors: list[str] = []
    page = context.new_page()
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: _keep_errors(message, errors))
    page.goto(served.address)  # type: ignore[attr-defined]
    page.locator("#stage .stage, #stage .stage-empty").wait_for()
    yield page
    for job in served.jobs("local"):
        job.cancel()
    page.evaluate("localStorage.clear(); sessionStorage.clear()")
    context.clear_cookies()
    for opened in context.pages:
        opened.close()
    assert [error for error in errors if not any(known in error for known in NO_FAULTS)] == []


def _keep_errors(message: ConsoleMessage, errors: list[str]) -> None:
    if message.type == "error":
        errors.append(message.text)
