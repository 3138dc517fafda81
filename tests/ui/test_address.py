"""Tabs and images have addresses, and the visitor's choice of a theme is kept."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Browser, Page, expect

from canvas import GenerationRequest, Studio
from tests.ui.conftest import TIMEOUT, wait_until_loaded


@pytest.fixture(scope="module")
def image_ids(served: Studio) -> list[int]:
    """Two images, the newer one first as in the gallery."""
    images = [served.generate(GenerationRequest(prompt, num_inference_steps=1))[0] for prompt in ("a fox", "an owl")]
    return [image.id or 0 for image in reversed(images)]


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def shown_tab(page: Page, name: str) -> None:
    expect(page.get_by_role("tab", name=name)).to_have_attribute("aria-selected", "true")


def test_tabs_have_addresses(page: Page) -> None:
    open_tab(page, "Gallery")
    expect(page).to_have_url(re.compile(r"/\?tab=gallery$"))
    open_tab(page, "Models")
    expect(page).to_have_url(re.compile(r"/\?tab=models$"))
    page.go_back()
    shown_tab(page, "Gallery")
    page.reload()
    shown_tab(page, "Gallery")
    expect(page).to_have_url(re.compile(r"/\?tab=gallery$"))
    open_tab(page, "Create")
    expect(page).to_have_url(re.compile(r"/$"))


def test_images_have_addresses(page: Page, served: Studio, image_ids: list[int]) -> None:
    newest, older = image_ids
    dialog = page.locator("#image-detail dialog:modal")
    open_tab(page, "Gallery")
    page.locator(f'.tile[data-image="{newest}"]').click()
    expect(page).to_have_url(re.compile(rf"/\?image={newest}$"))
    page.keyboard.press("ArrowRight")
    expect(page).to_have_url(re.compile(rf"/\?image={older}$"))
    page.go_back()
    expect(dialog).to_have_count(0)
    expect(page).to_have_url(re.compile(r"/\?tab=gallery$"))
    page.goto(f"{served.address}?image={older}")  # type: ignore[attr-defined]
    expect(dialog).to_have_attribute("data-image", str(older))
    shown_tab(page, "Gallery")
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(page).to_have_url(re.compile(r"/\?tab=gallery$"))


def test_an_unknown_image_is_forgotten(page: Page, served: Studio) -> None:
    page.goto(f"{served.address}?image=987654")  # type: ignore[attr-defined]
    expect(page.locator(".toast-body")).to_contain_text("Not found")
    shown_tab(page, "Gallery")
    open_tab(page, "Statistics")
    expect(page).to_have_url(re.compile(r"/\?tab=statistics$"))


def test_the_theme_is_kept(served: Studio, browser: Browser) -> None:
    with browser.new_context(color_scheme="light") as context:
        context.set_default_timeout(TIMEOUT)
        page = context.new_page()
        page.goto(served.address)  # type: ignore[attr-defined]
        wait_until_loaded(page)
        body = page.locator("body")
        expect(body).not_to_have_class("dark")
        page.get_by_label("Dark", exact=True).check(force=True)
        expect(body).to_have_class(re.compile(r"\bdark\b"))
        page.reload()
        expect(body).to_have_class(re.compile(r"\bdark\b"))
        expect(page.get_by_label("Dark", exact=True)).to_be_checked()
        page.get_by_label("System", exact=True).check(force=True)
        expect(body).not_to_have_class(re.compile(r"\bdark\b"))
        page.emulate_media(color_scheme="dark")
        expect(body).to_have_class(re.compile(r"\bdark\b"))
        page.get_by_label("Light", exact=True).check(force=True)
        expect(body).not_to_have_class(re.compile(r"\bdark\b"))
