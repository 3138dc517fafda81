"""The choice of a remote backend in a real browser: nothing is sent without consent."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from canvas import Studio
from canvas.server.launch import launch
from canvas.settings import Settings
from tests.backends.router import TOKEN, Router, running
from tests.ui.conftest import TIMEOUT


@pytest.fixture(scope="module")
def router() -> Iterator[Router]:
    with running() as router:
        yield router


@pytest.fixture(scope="module")
def server_url(router: Router, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("remote")
    settings = Settings(
        data_dir=folder,
        cache_dir=folder,
        port=0,
        device="cpu",
        engine="torch",
        dtype="float32",
        provider="nscale",
        provider_token=TOKEN,
    )
    with Studio(settings) as studio:
        page = launch(studio, block=False)
        yield page.local_url
        page.close()
    gc.collect()  # see tests/app_server.py


@pytest.fixture
def visit(browser: Browser, server_url: str) -> Iterator[Page]:
    expect.set_options(timeout=TIMEOUT)
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        context.set_default_timeout(TIMEOUT)
        page = context.new_page()
        page.goto(server_url)
        page.locator("#current-result .result").wait_for()
        yield page


def choose(page: Page, elem_id: str, option: str) -> None:
    page.locator(f"#{elem_id} input").click()
    page.get_by_role("option", name=re.compile(rf"^{re.escape(option)}( · |$)")).click()


def test_nothing_is_sent_before_the_user_agrees(visit: Page, router: Router) -> None:
    consent = visit.locator("#consent")
    visit.locator("#settings-button").click()
    expect(visit.get_by_label("Run on")).to_be_visible()
    choose(visit, "backend", "Hugging Face Inference Providers")
    expect(consent).to_contain_text("starter is a local model")
    choose(visit, "model", "Stable Diffusion 1.5")
    expect(consent).to_contain_text("provider: nscale")
    expect(consent).to_contain_text("stable-diffusion-v1-5/stable-diffusion-v1-5")
    expect(consent).to_contain_text("charged to your Hugging Face account")
    visit.locator("#prompt textarea").fill("a blue field")
    visit.locator("#generate").click()
    expect(visit.get_by_text("Consent required", exact=True)).to_be_visible()
    expect(visit.locator("#model-status")).not_to_contain_text("download")
    assert router.posts() == []

    consent.get_by_role("button", name="I agree").click()
    expect(consent).to_contain_text("You have agreed to this")
    assert router.posts() == []
    visit.locator("#generate").click()
    expect(visit.locator("#current-result .result")).to_contain_text("provider:nscale")
    [(_, token, body)] = router.posts()
    assert token == f"Bearer {TOKEN}"
    assert "a blue field" in body["prompt"]


def test_a_public_page_offers_only_its_own_computer(browser: Browser, router: Router, settings: Settings) -> None:
    public = settings.model_copy(update={"port": 0, "public": True, "provider_token": TOKEN})
    with Studio(public) as studio:
        page = launch(studio, block=False)
        with browser.new_context() as context:
            visitor = context.new_page()
            visitor.goto(page.local_url)
            visitor.locator("#settings-button").click()
            visitor.locator("#model").wait_for()
            expect(visitor.locator("#backend")).to_have_count(0)
        page.close()
    gc.collect()
