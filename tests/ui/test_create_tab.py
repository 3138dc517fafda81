"""What a visitor does with the page, in a real browser against the real program."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from canvas import Studio
from canvas.presets import preset_defaults
from tests.ui.conftest import PATIENCE

FOREVER = {"Steps": 150, "Number of pictures": 16}  # still at work while a test looks
A_WHILE = {"Steps": 150, "Number of pictures": 4}
A_MOMENT = {"Steps": 150}  # so that a page under load gets to see a preview


def ask(page: Page, prompt: str, settings: dict[str, int] | None = None) -> None:
    """Fill the form and press Generate."""
    page.get_by_label("Prompt", exact=True).fill(prompt)
    if settings:
        open_settings(page)
        if not page.get_by_label("Scheduler").is_visible():
            page.get_by_role("button", name="Advanced").click()
    for name, value in (settings or {}).items():
        field = page.get_by_label(f"number input for {name}")
        slider = page.get_by_label(f"range slider for {name}")
        while slider.input_value() != str(value):  # Gradio forgets it while it still draws
            field.fill(str(value))
            field.blur()
    page.get_by_role("button", name="Generate", exact=True).click()


def open_settings(page: Page) -> None:
    button = page.get_by_role("button", name="Settings", exact=True)
    if button.get_attribute("aria-expanded") != "true":
        button.click()


def making(page: Page, prompt: str) -> None:
    expect(page.locator(".stage-making .prompt")).to_have_text(prompt)
    page.locator(".stage-making img.preview").wait_for()


def finished(page: Page, prompt: str) -> None:
    told = page.locator(".stage-picture .told .prompt")
    expect(told).to_have_text(prompt, timeout=4 * PATIENCE)
    picture = page.locator(".stage-picture .look img").first
    expect(picture).to_have_js_property("complete", True)
    assert picture.evaluate("image => image.naturalWidth") == 256


def test_from_prompt_to_gallery(page: Page) -> None:
    ask(page, "a fox in the snow, 3d", A_MOMENT)
    making(page, "a fox in the snow, 3d")
    expect(page.locator(".stage-making .words")).to_have_text(re.compile(r"Step \d+ of 150"))
    finished(page, "a fox in the snow, 3d")
    expect(page.get_by_role("region", name="Queue")).to_have_count(0)
    page.reload()
    finished(page, "a fox in the snow, 3d")
    page.get_by_role("tab", name="Gallery").click()
    page.get_by_role("button", name="Open: a fox in the snow, 3d").first.click()
    opened = page.get_by_role("dialog")
    expect(opened).to_contain_text("256 × 256")
    expect(opened).to_contain_text("DDIM")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_a_reload_in_the_middle_loses_nothing(page: Page) -> None:
    ask(page, "a red rocket at night", A_WHILE)
    making(page, "a red rocket at night")
    page.reload()
    making(page, "a red rocket at night")
    finished(page, "a red rocket at night")
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a red rocket at night")


def test_a_second_tab_sees_the_same_work(page: Page) -> None:
    ask(page, "a whale at sea", FOREVER)
    with page.context.new_page() as other:
        other.goto(page.url)
        making(other, "a whale at sea")
        other.get_by_role("button", name="Stop", exact=True).click()
        other.locator(".stage-making").wait_for(state="detached")
    page.locator(".stage-making").wait_for(state="detached")


def test_stop_ends_the_work_within_a_step(page: Page, served: Studio) -> None:
    ask(page, "a bear in a meadow", FOREVER)
    making(page, "a bear in a meadow")
    page.get_by_role("button", name="Stop", exact=True).click()
    page.locator(".stage-making").wait_for(state="detached")
    job = served.jobs("local")[-1]
    assert job.status == "cancelled"
    assert job.progress.step < FOREVER["Steps"]
    expect(page.get_by_role("button", name="Stop", exact=True)).to_be_hidden()


def test_a_second_click_queues_up_and_can_be_taken_out(page: Page, served: Studio) -> None:
    ask(page, "an owl at night", FOREVER)
    making(page, "an owl at night")
    ask(page, "a duck at sea")
    ask(page, "a lion in the desert")
    waiting = page.get_by_role("region", name="Queue").get_by_role("listitem")
    expect(waiting).to_have_count(2)
    expect(waiting.nth(1)).to_contain_text("Waiting: 2 before it")
    page.get_by_role("button", name="Remove from the queue: a duck at sea").click()
    expect(waiting).to_have_count(1)
    expect(waiting).to_contain_text("a lion in the desert")
    page.get_by_role("button", name="Stop", exact=True).click()
    making(page, "a lion in the desert")  # what waits behind the stopped one goes on
    assert [job.status for job in served.jobs("local")[-3:-1]] == ["cancelled", "cancelled"]


def test_quick_clicks_count_each(page: Page, served: Studio) -> None:
    before = len(served.jobs("local"))
    ask(page, "a patient snail", FOREVER)
    for _ in range(2):
        page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.get_by_role("region", name="Queue").get_by_role("listitem")).to_have_count(2)
    assert len(served.jobs("local")) == before + 3


def test_bad_input_is_said_in_a_sentence(page: Page, served: Studio) -> None:
    before = len(served.jobs("local"))
    ask(page, "   ")
    toast = page.get_by_test_id("toast-body")
    expect(toast).to_contain_text("prompt: '' cannot be used; allowed is some words")
    expect(toast).not_to_contain_text("Traceback")
    ask(page, "x" * 10_001)
    expect(toast.last).to_contain_text("allowed is at most 10,000 characters")
    assert len(served.jobs("local")) == before


def test_use_these_settings_fills_the_form(page: Page, served: Studio) -> None:
    from canvas import GenerationRequest

    wish = GenerationRequest(
        "a cat on the beach",
        negative_prompt="rain",
        style="cartoon",
        seed=41,
        width=304,
        height=224,
        num_inference_steps=2,
        guidance_scale=2.5,
    )
    [first] = served.generate(wish)
    page.get_by_role("tab", name="Gallery").click()
    page.get_by_role("button", name="Open: a cat on the beach").click()
    page.get_by_role("dialog").get_by_role("button", name="Use these settings").click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a cat on the beach")
    expect(page.get_by_label("Seed", exact=True)).to_have_value("-1")
    page.get_by_role("tab", name="Gallery").click()
    page.get_by_role("button", name="Open: a cat on the beach").click()
    page.get_by_role("dialog").get_by_role("button", name="Same seed").click()
    expect(page.get_by_label("Seed", exact=True)).to_have_value("41")
    expect(page.locator("#summary")).to_contain_text("starter · 304 × 224 · cartoon")
    page.get_by_role("button", name="Generate", exact=True).click()
    again = page.locator(f'.stage-picture [data-action="use"]:not([data-image="{first.id}"])')
    expect(again).to_be_visible()
    assert served.recent("local", 1)[0].request == first.request


def test_an_example_fills_the_prompt_and_words_beyond_the_limit_are_marked(page: Page) -> None:
    prompt = page.get_by_label("Prompt", exact=True)
    prompt.fill("a fox " * 80 + "and a hidden moon")
    expect(page.locator("#sent mark")).to_contain_text("hidden moon")
    expect(page.locator("#sent")).to_contain_text("the marked words will not be seen")
    open_settings(page)
    prompt.fill("a fox")
    page.get_by_label("Style").click()
    page.get_by_role("option", name="fantasy").click()
    expect(page.locator("#sent .added")).to_contain_text("magical, epic")
    expect(page.locator("#sent .own")).to_have_text("a fox")


def test_prompts_are_text_and_never_code(page: Page) -> None:
    evil = "<img src=x onerror='window.hacked=1'> ${window.hacked=2} `{{value}}` a fox"
    ask(page, evil, {"Steps": 2})
    finished(page, evil)
    page.get_by_role("tab", name="Gallery").click()
    page.locator(".tile").first.click()
    expect(page.get_by_role("dialog").locator("h2")).to_have_text(evil)
    assert page.evaluate("window.hacked") is None


def test_a_mode_sets_the_steps_and_tells_its_seconds(page: Page, served: Studio) -> None:
    page.locator("#mode").get_by_text("Turbo").click()
    page.get_by_label("Prompt", exact=True).fill("a quick duck")
    open_settings(page)
    page.get_by_role("button", name="Advanced").click()
    steps = preset_defaults("turbo", served.models["starter"])[0]
    expect(page.get_by_label("number input for Steps")).to_have_value(str(steps))
    page.get_by_role("button", name="Generate", exact=True).click()
    finished(page, "a quick duck")
    expect(page.locator(".facts")).to_contain_text("turbo")
    page.get_by_label("Prompt", exact=True).fill("a quick goose")
    expect(page.locator("#mode")).to_contain_text(re.compile(r"Turbo\s*(under )?[\d.]+ (s|min)"))


def test_turbo_tells_what_it_fetches_and_what_it_lacks(page: Page) -> None:
    """`tiny` takes the tiny decoder, but no weights for few steps fit it."""
    page.get_by_label("Prompt", exact=True).fill("a quick hare")
    open_settings(page)
    page.locator("#model input").click()
    page.get_by_role("option", name="tiny", exact=True).click()
    page.locator("#mode").get_by_text("Turbo").click()
    note = page.locator("#summary .line").nth(1)
    expect(note).to_contain_text("Turbo: 10.0 MB to download with the first picture")
    expect(note).to_contain_text("no weights for few steps fit tiny")
    page.locator("#mode").get_by_text("Quality").click()
    expect(page.locator("#summary .line")).to_have_count(1)


def test_ctrl_enter_generates(page: Page) -> None:
    page.get_by_label("Prompt", exact=True).fill("a boat at sunset")
    page.keyboard.press("Control+Enter")
    finished(page, "a boat at sunset")


def test_the_models_are_listed_with_state_and_device(page: Page) -> None:
    page.get_by_role("tab", name="Models").click()
    expect(page.locator(".model h3")).to_have_text(
        ["starter", "tiny", "small", "dreamshaper", "openjourney", "mini-sd", "portrait"]
    )
    expect(page.get_by_role("button", name="Download small")).to_be_visible()
    expect(page.locator(".device")).to_contain_text("CPU · float32")
    page.get_by_role("button", name="Free the memory of starter").click()
    expect(page.locator(".model", has_text="starter")).to_contain_text("on disk")


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 844})
    open_settings(page)
    for tab in ("Create", "Edit", "Compare", "Gallery", "Models", "Statistics"):
        page.get_by_role("tab", name=tab).click()
        expect(page.get_by_role("tab", name=tab)).to_have_attribute("aria-selected", "true")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, tab


def test_the_number_of_combinations_is_told_before(page: Page, served: Studio) -> None:
    before = len(served.jobs("local"))
    page.get_by_label("Prompt", exact=True).fill("{red|blue} fox, {snow|desert|city}")
    expect(page.locator("#summary")).to_contain_text("6 pictures")
    wildcards = served.settings.data_dir / "wildcards"
    wildcards.mkdir(exist_ok=True)
    (wildcards / "animals.txt").write_text("fox\nowl\nduck\nbear\n")
    page.get_by_label("Prompt", exact=True).fill("a {red|blue} __animals__")
    expect(page.locator("#summary")).to_contain_text("8 pictures")
    page.get_by_label("Prompt", exact=True).fill("{a|b|c|d|e} {a|b|c|d|e} {a|b|c|d|e}")
    expect(page.locator("#summary")).to_contain_text("at most 100 pictures of one prompt")
    assert len(served.jobs("local")) == before


def test_every_control_has_a_name(page: Page) -> None:
    open_settings(page)
    page.get_by_role("button", name="Advanced").click()
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("input, textarea, select, button, [role=option]")]
            .filter(one => one.checkVisibility())
            .filter(one => !(one.labels?.length || one.ariaLabel || one.textContent.trim()
                             || one.title || one.getAttribute("aria-labelledby")))
            .map(one => one.outerHTML.slice(0, 200))"""
    )
    assert nameless == []
