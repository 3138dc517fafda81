"""Fixtures for tests of the page: a served studio and a real browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from gradio.context import LocalContext
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright

from canvas import Studio
from canvas.models.hub_client import Hub
from canvas.settings import Settings
from tests.app_server import serving
from tests.hub_server import LocalHub

TIMEOUT = 40_000  # milliseconds: the machine may be busy
IGNORED_ERRORS = (
    "AbortError",  # a reload aborts requests,
    "Connection errored out",  # and Gradio reports them so
    "The source image could not be decoded",  # Gradio's editor on a file that is not an image
)
BROWSER_ARGS = ("--no-sandbox", "--disable-background-networking", "--disable-component-update", "--no-first-run")


@pytest.fixture(scope="package")
def served_hub() -> Iterator[LocalHub]:
    """The Hub of `served`."""
    server = LocalHub()
    yield server
    server.close()


@pytest.fixture(scope="package")
def served(tmp_path_factory: pytest.TempPathFactory, served_hub: LocalHub) -> Iterator[Studio]:
    """A studio served on a free port; the URL of its page is `served.address`."""
    folder = tmp_path_factory.mktemp("served")
    hub = Hub(endpoint=served_hub.url, cache_dir=folder / "hub", token="none")  # noqa: S106
    with serving(folder, hub) as studio:
        studio.hub = hub  # type: ignore[attr-defined]
        studio.address = f"{studio.url}/"  # type: ignore[attr-defined]
        yield studio


@pytest.fixture(scope="module")
def shared_studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """One studio for the tests of a file, whose tabs take half a second to build."""
    folder = tmp_path_factory.mktemp("studio")
    with Studio(Settings(data_dir=folder, cache_dir=folder, device="cpu", dtype="float32")) as studio:
        yield studio


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


@contextmanager
def open_browser() -> Iterator[Browser]:
    """The system's Chromium. While it is open, no asyncio loop can run in this thread."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None:
        if os.environ.get("CI"):
            pytest.fail("Chromium is not installed; CI must not skip the tests of the page.")
        pytest.skip("Chromium is not installed: install the package `chromium`.")
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=executable, args=BROWSER_ARGS) as browser,
    ):
        yield browser


@pytest.fixture(scope="package")
def context(browser: Browser) -> Iterator[BrowserContext]:
    """One context for all tests, so that Gradio's scripts are loaded and compiled once."""
    expect.set_options(timeout=TIMEOUT)
    # Without animations, which cost a core while nothing happens
    with browser.new_context(viewport={"width": 1280, "height": 800}, reduced_motion="reduce") as context:
        context.set_default_timeout(TIMEOUT)
        yield context


@pytest.fixture
def page(served: Studio, context: BrowserContext) -> Iterator[Page]:
    """The open page with empty browser storage; errors in the console fail the test."""
    errors: list[str] = []
    page = context.new_page()
    # Here and not after a test: a late answer to its page could fill the storage again.
    page.goto(f"{served.address}favicon.ico")  # type: ignore[attr-defined]
    page.evaluate("localStorage.clear(); sessionStorage.clear()")
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: _collect_errors(message, errors))
    page.goto(served.address)  # type: ignore[attr-defined]
    wait_until_loaded(page)
    yield page
    for job in served.jobs("local"):
        job.cancel()
    context.clear_cookies()
    for open_page in context.pages:
        open_page.close()
    assert [error for error in errors if not any(known in error for known in IGNORED_ERRORS)] == []


def wait_until_loaded(page: Page) -> None:
    page.locator("#current-result .result").wait_for()


@contextmanager
def browser_language(accept_language: str) -> Iterator[None]:
    """Run callbacks as if a browser with this Accept-Language header had sent them."""
    http_request = SimpleNamespace(headers={"accept-language": accept_language})
    token = LocalContext.request.set(http_request)  # type: ignore[arg-type]
    try:
        yield
    finally:
        LocalContext.request.reset(token)


def _collect_errors(message: ConsoleMessage, errors: list[str]) -> None:
    if message.type == "error":
        errors.append(message.text)
