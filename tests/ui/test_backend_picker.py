"""The choice of where, in a real browser: what is said, and that nothing is sent before."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace

import pytest
from playwright.sync_api import Browser, Page, expect

from canvas import Studio
from canvas.server.launch import launch
from canvas.settings import Settings
from tests.backends.router import TOKEN, Router, running
from tests.ui.conftest import PATIENCE


@pytest.fixture(scope="module")
def router() -> Iterator[Router]:
    with running() as router:
        yield router


@pytest.fixture(scope="module")
def provided(router: Router, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("provided")
    settings = Settings(
        data_dir=folder,
        cache_dir=folder,
        port=0,
        device="cpu",
        dtype="float32",
        provider="nscale",
        provider_token=TOKEN,
    )
    with Studio(settings) as studio:
        page = launch(studio, block=False)
        yield page.local_url
        page.close()
    gc.collect()  # see tests/ui/conftest.py


@pytest.fixture
def visit(browser: Browser, provided: str) -> Iterator[Page]:
    expect.set_options(timeout=PATIENCE)
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.goto(provided)
        page.locator("#stage .stage, #stage .stage-empty").wait_for()
        yield page


def choose(page: Page, elem_id: str, words: str) -> None:
    page.locator(f"#{elem_id} input").click()
    page.get_by_role("option", name=words, exact=True).click()


def test_nothing_is_sent_before_the_user_agrees(visit: Page, router: Router) -> None:
    terms = visit.locator("#elsewhere")
    visit.locator("#drawer-button").click()
    choose(visit, "where", "Hugging Face Inference Providers")
    expect(terms).to_contain_text("starter is a model of this computer")
    choose(visit, "model", "small")
    expect(terms).to_contain_text("provider: nscale")
    expect(terms).to_contain_text("stable-diffusion-v1-5/stable-diffusion-v1-5")
    expect(terms).to_contain_text("charged to your Hugging Face account")
    visit.locator("#prompt textarea").fill("a blue field")
    visit.locator("#generate").click()
    expect(visit.get_by_text("Agree first", exact=True)).to_be_visible()
    expect(visit.locator("#model-state")).not_to_contain_text("download")
    assert router.posts() == []

    terms.get_by_role("button", name="I agree").click()
    expect(terms).to_contain_text("You agreed to this")
    assert router.posts() == []
    visit.locator("#generate").click()
    expect(visit.locator("#stage .stage")).to_contain_text("provider:nscale")
    [(_, token, body)] = router.posts()
    assert token == f"Bearer {TOKEN}"
    assert "a blue field" in body["prompt"]


def test_a_public_page_offers_only_itself(
    browser: Browser, router: Router, settings: Settings
) -> None:
    public = replace(settings, port=0, public=True, provider_token=TOKEN)
    with Studio(public) as studio:
        page = launch(studio, block=False)
        with browser.new_context() as context:
            visitor = context.new_page()
            visitor.goto(page.local_url)
            visitor.locator("#drawer-button").click()
            visitor.locator("#model").wait_for()
            expect(visitor.locator("#where")).to_have_count(0)
        page.close()
    gc.collect()
