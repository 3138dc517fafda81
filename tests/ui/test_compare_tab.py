"""Comparing models in a real browser."""

from __future__ import annotations

import re

from playwright.sync_api import Page, expect

from canvas import Studio
from canvas.comparison import ComparisonService
from canvas.history.comparisons import Comparisons


def compare(page: Page, prompt: str, *, blind: bool) -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_role("tab", name="Compare").click()
    expect(page.get_by_label("One prompt for all")).to_have_value(prompt)  # that of Create
    expect(page.locator("#contest-summary")).to_contain_text("3 pictures")
    page.get_by_label("Vote blind").set_checked(blind)
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.locator("#comparison .prompt").first).to_have_text(prompt)
    expect(page.locator(".contender a.look img")).to_have_count(3)


def test_modes_are_compared_with_their_seconds(page: Page, served: Studio) -> None:
    compare(page, "a boat for a comparison", blind=False)
    names = page.locator(".contender strong")
    expect(names).to_have_text(["starter, quality", "starter, balanced", "starter, turbo"])
    for facts in page.locator(".contender .facts").all():
        expect(facts).to_have_text(re.compile(r"[\d.]+ s\s*256 × 256\s*\d+ step"))
    made = ComparisonService(served).latest("local", 1)[0]
    assert len({request.seed for request in made.requests}) == 1


def test_a_blind_vote_is_told_afterwards_and_stands_in_the_statistics(
    page: Page, served: Studio
) -> None:
    compare(page, "a blind owl", blind=True)
    names = page.locator(".contender strong")
    expect(names).to_have_text(["Picture A", "Picture B", "Picture C"])
    expect(page.locator("#comparison")).not_to_contain_text("starter")
    expect(page.locator(".contender .facts")).to_have_count(0)
    page.reload()
    page.get_by_role("tab", name="Compare").click()
    page.get_by_role("button", name="Vote for Picture B").click()
    chosen = page.locator(".contender.chosen")
    expect(chosen).to_contain_text("Your choice")
    expect(chosen.locator("strong")).to_have_text(re.compile(r"starter, \w+"))
    winner = chosen.locator("strong").inner_text()
    [best, *_] = Comparisons(served.database).tally("local")
    assert winner == f"{best.model_key}, {best.mode}"
    page.get_by_role("tab", name="Statistics").click()
    chart = page.locator(".chart", has_text="Chosen in comparisons")
    expect(chart.locator("dt").first).to_have_text(winner)
    expect(chart.locator("dd").nth(1)).to_have_text(f"{best.chosen} of {best.shown}")
