"""The page for screen readers and keyboards: axe-core finds nothing, jobs are read aloud."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from canvas import GenerationRequest, Studio
from tests.app_server import wait_until_finished
from tests.hub_server import LocalHub
from tests.ui.conftest import TIMEOUT, wait_until_loaded
from tests.ui.test_gallery_tab import DROP

TABS = {  # with an element that shows that the tab has its content
    "create": "#current-result .result",
    "edit": "#edit-recent button",
    "compare": "#comparison h2",
    "gallery": ".tile",
    "models": "#models .model",
    "statistics": "#statistics .chart",
}
# target-size: 24 px, which axe checks only on demand
OPTIONS = {"resultTypes": ["violations"], "rules": {"target-size": {"enabled": True}}}
# Those that repeat for ever, as while something loads, are left
FINISH_ANIMATIONS = """Promise.all(document.getAnimations()
    .filter(animation => animation.effect.getTiming().iterations !== Infinity)
    .map(animation => animation.finished.catch(() => 0)))"""
WINDOWS = {"desktop": (1280, 800), "phone": (390, 844)}


LONG = [pytest.param(name, marks=pytest.mark.long) for name in ("desktop-light", "desktop-dark", "phone-light")]


@pytest.fixture(params=["phone-dark", *LONG])
def visit(request: pytest.FixtureRequest, served: Studio, browser: Browser) -> Iterator[Page]:
    """A page of each size and theme, with an image in the gallery."""
    window, scheme = request.param.split("-")
    width, height = WINDOWS[window]
    for seed in (1, 2):
        served.generate(GenerationRequest("a bearded fox in the snow", seed=seed, num_inference_steps=1))
    with browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme) as context:
        context.set_default_timeout(TIMEOUT)
        page = context.new_page()
        page.goto(served.address)  # type: ignore[attr-defined]
        wait_until_loaded(page)
        yield page


def violations(page: Page) -> list[str]:
    """The rules that the page breaks, with the elements."""
    page.evaluate(FINISH_ANIMATIONS)
    found = Axe().run(page, options=OPTIONS).response["violations"]
    return [f"{rule['id']}: {node['html'][:160]} {node['failureSummary']}" for rule in found for node in rule["nodes"]]


def open_tab(page: Page, tab: str) -> None:
    page.locator(f'#tabs [role=tab][data-tab-id="{tab}"]').click()


def test_axe_finds_no_violations(served: Studio, visit: Page) -> None:
    found: dict[str, list[str]] = {}
    for tab, content in TABS.items():
        open_tab(visit, tab)
        visit.locator(content).first.wait_for()
        found[tab] = violations(visit)
    open_tab(visit, "models")
    visit.locator("#models [data-action=edit_defaults]").first.click()
    visit.locator("#model-dialog dialog:modal").wait_for()
    found["defaults of a model"] = violations(visit)
    visit.keyboard.press("Escape")
    open_tab(visit, "create")
    visit.locator("[data-lightbox]").first.click()
    visit.locator("dialog:modal").wait_for()
    found["lightbox"] = violations(visit)
    visit.keyboard.press("Escape")
    visit.locator("#settings-button").click()
    # Its panel scrolls below the button that closes it
    found["settings"] = [problem for problem in violations(visit) if "partially obscured" not in problem]
    image = served.recent("local", 1)[0]
    visit.goto(f"{served.address}?image={image.id}")  # type: ignore[attr-defined]
    visit.locator("#image-detail dialog:modal").wait_for()
    found["image"] = violations(visit)
    assert_none(found)


def assert_none(found: dict[str, list[str]]) -> None:
    assert {place: problems for place, problems in found.items() if problems} == {}


def test_axe_finds_no_violations_in_what_opens_over_the_gallery(visit: Page) -> None:
    found = {}
    open_tab(visit, "gallery")
    visit.get_by_role("button", name="Select", exact=True).click()
    for number in range(2):
        visit.locator(".tile[aria-pressed=false]").first.click()
        expect(visit.locator(".tile[aria-pressed=true]")).to_have_count(number + 1)
    visit.get_by_role("button", name="Compare", exact=True).click()
    visit.locator("#image-detail dialog:modal .compare-slider").wait_for()
    found["comparison"] = violations(visit)
    visit.keyboard.press("Escape")
    expect(visit.locator("#image-detail dialog")).to_have_count(0)
    visit.evaluate(DROP, ["#gallery", ""])
    visit.locator("#drop-question dialog:modal").wait_for()
    found["drop question"] = violations(visit)
    assert_none(found)


def test_axe_finds_no_violations_in_a_queue_and_in_results(served: Studio, served_hub: LocalHub, visit: Page) -> None:
    found = {}
    visit.get_by_label("Prompt", exact=True).fill("a bearded puppy, zxcv")
    visit.locator(".prompt-hints .unknown").first.wait_for()
    jobs = [served.submit(GenerationRequest("a slow fox", num_inference_steps=150)) for _ in range(3)]
    expect(visit.locator(".queue li")).to_have_count(2)
    visit.locator(".result-progress img.preview").wait_for()
    found["queue"] = violations(visit)
    for job in reversed(jobs):
        job.cancel()
    open_tab(visit, "edit")
    visit.locator("#edit-recent button").first.click()
    expect(visit.locator("#edit-size")).to_contain_text("Result")
    visit.get_by_role("radio", name="Upscale", exact=True).check()
    visit.locator("#edit-generate").click()
    visit.locator("#edit-result .result-images").wait_for()
    found["result of an edit"] = violations(visit)
    open_tab(visit, "models")
    visit.get_by_label("Add a model").fill("zoe/nothing")
    visit.get_by_role("button", name="Search", exact=True).click()
    visit.locator("#found-models .error").wait_for()
    found["error of a search"] = violations(visit)
    repositories = {"axe/open": False, "axe/gated": "auto"}
    for name, gated in repositories.items():
        served_hub.add(name, Path(served.models["starter"].name))
        served_hub.cards[name] = {"gated": gated}
    visit.get_by_label("Add a model").fill("axe")
    visit.get_by_role("button", name="Search", exact=True).click()
    expect(visit.locator(".model.found")).to_have_count(2)
    found["found models"] = violations(visit)
    for name in repositories:
        del served_hub.repositories[name]
    open_tab(visit, "gallery")
    visit.get_by_role("button", name="Select", exact=True).click()
    visit.locator(".tile[aria-pressed=false]").first.click()
    visit.get_by_text("Export as ZIP").click()
    found["export of a selection"] = violations(visit)
    assert_none(found)


def test_jobs_are_read_aloud(page: Page, served: Studio) -> None:
    region = page.locator("#announcements")
    expect(region).to_have_attribute("role", "status")
    expect(region).to_be_empty()
    # Long enough for the second announcement, which names the step
    job = served.submit(GenerationRequest("a fox for a screen reader", num_inference_steps=150, num_images=3))
    expect(region).to_contain_text("Step")
    wait_until_finished(job)
    expect(region).to_have_text("Finished: a fox for a screen reader")
    expect(page.locator(".result-images .image-cell img:not(.glow)").first).to_have_attribute(
        "alt", "a fox for a screen reader"
    )
