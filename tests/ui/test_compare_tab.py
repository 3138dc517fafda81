"""Comparing models in a real browser."""

from __future__ import annotations

import re

from playwright.sync_api import Page, expect

from canvas import Studio
from canvas.history.comparisons import Comparisons


def compare(page: Page, prompt: str, *, blind: bool) -> None:
    """Compare with a click or, blind, with the keyboard."""
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_role("tab", name="Compare").click()
    expect(page.get_by_label("Prompt for all models")).to_have_value(prompt)  # that of the Create tab
    expect(page.locator("#compare-summary")).to_contain_text("3 images")
    page.get_by_label("Vote blind").set_checked(blind)
    if blind:
        expect(page.get_by_text("Names and times are revealed after you vote")).to_be_visible()
        page.keyboard.press("Control+Enter")
    else:
        page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.locator("#comparison .prompt").first).to_have_text(prompt)
    expect(page.locator(".comparison-cell a.zoom img")).to_have_count(3)


def test_presets_are_compared_with_their_times(page: Page, served: Studio) -> None:
    compare(page, "a boat for a comparison", blind=False)
    names = page.locator(".comparison-cell strong")
    expect(names).to_have_text(["starter, quality", "starter, balanced", "starter, turbo"])
    for summary in page.locator(".comparison-cell .image-summary").all():
        expect(summary).to_have_text(re.compile(r"[\d.]+ s\s*256 × 256\s*\d+ step"))
    comparison = served.comparisons.latest("local", 1)[0]
    assert len({request.seed for request in comparison.requests}) == 1


def test_a_blind_vote_reveals_the_names_and_counts_in_the_statistics(page: Page, served: Studio) -> None:
    compare(page, "a blind owl", blind=True)
    names = page.locator(".comparison-cell strong")
    expect(names).to_have_text(["Image A", "Image B", "Image C"])
    expect(page.locator("#comparison")).not_to_contain_text("starter")
    expect(page.locator(".comparison-cell .image-summary")).to_have_count(0)
    page.reload()
    page.get_by_role("tab", name="Compare").click()
    page.get_by_role("button", name="Vote for Image B").click()
    chosen = page.locator(".comparison-cell.chosen")
    expect(chosen).to_contain_text("Your choice")
    expect(chosen.locator("strong")).to_have_text(re.compile(r"starter, \w+"))
    winner = chosen.locator("strong").inner_text()
    [best, *_] = Comparisons(served.database).tally("local")
    assert winner == f"{best.model_key}, {best.preset}"
    page.get_by_role("tab", name="Statistics").click()
    chart = page.locator(".chart", has_text="Wins in comparisons")
    expect(chart.locator("dt").first).to_have_text(winner)
    expect(chart.locator("dd").nth(1)).to_have_text(f"{best.chosen} of {best.shown}")
