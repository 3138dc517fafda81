"""The Create and Models tabs in a real browser."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from canvas import Studio
from canvas.presets import preset_defaults
from tests.ui.conftest import TIMEOUT

LONG = {"Steps": 150, "Number of images": 16}  # still running during a test
MEDIUM = {"Steps": 150, "Number of images": 4}
SHORT = {"Steps": 150}  # long enough for a slow page to show a preview


def generate(page: Page, prompt: str, settings: dict[str, int] | None = None) -> None:
    """Fill the form and press Generate."""
    page.get_by_label("Prompt", exact=True).fill(prompt)
    if settings:
        open_settings(page)
        if not page.get_by_label("Scheduler").is_visible():
            page.get_by_role("button", name="Advanced").click()
    for name, value in (settings or {}).items():
        field = page.get_by_label(f"number input for {name}")
        slider = page.get_by_label(f"range slider for {name}")
        while slider.input_value() != str(value):  # Gradio drops values that are entered while it renders
            field.fill(str(value))
            field.blur()
    page.get_by_role("button", name="Generate", exact=True).click()


def open_settings(page: Page) -> None:
    button = page.get_by_role("button", name="Settings", exact=True)
    if button.get_attribute("aria-expanded") != "true":
        button.click()


def expect_progress(page: Page, prompt: str) -> None:
    expect(page.locator(".result-progress .prompt")).to_have_text(prompt)
    page.locator(".result-progress img.preview").wait_for()


def expect_result(page: Page, prompt: str) -> None:
    details = page.locator(".result-images .result-details .prompt")
    expect(details).to_have_text(prompt, timeout=4 * TIMEOUT)
    image = page.locator(".result-images .zoom img").first
    expect(image).to_have_js_property("complete", True)
    assert image.evaluate("image => image.naturalWidth") == 256


def test_generate_shows_progress_result_and_gallery_entry(page: Page) -> None:
    generate(page, "a fox in the snow, 3d", SHORT)
    expect_progress(page, "a fox in the snow, 3d")
    expect(page.locator(".result-progress .status-text")).to_have_text(re.compile(r"Step \d+ of 150"))
    expect_result(page, "a fox in the snow, 3d")
    expect(page.get_by_role("region", name="Queue")).to_have_count(0)
    page.reload()
    expect_result(page, "a fox in the snow, 3d")
    page.get_by_role("tab", name="Gallery").click()
    page.get_by_role("button", name="Open: a fox in the snow, 3d").first.click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("256 × 256")
    expect(dialog).to_contain_text("DDIM")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_a_reload_keeps_the_running_job(page: Page) -> None:
    generate(page, "a red rocket at night", MEDIUM)
    expect_progress(page, "a red rocket at night")
    page.reload()
    expect_progress(page, "a red rocket at night")
    expect_result(page, "a red rocket at night")
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a red rocket at night")


def test_a_second_tab_shows_the_same_job(page: Page) -> None:
    generate(page, "a whale at sea", LONG)
    with page.context.new_page() as other:
        other.goto(page.url)
        expect_progress(other, "a whale at sea")
        other.get_by_role("button", name="Stop", exact=True).click()
        other.locator(".result-progress").wait_for(state="detached")
    page.locator(".result-progress").wait_for(state="detached")


def test_stop_cancels_the_job_within_a_step(page: Page, served: Studio) -> None:
    generate(page, "a bear in a meadow", LONG)
    expect_progress(page, "a bear in a meadow")
    page.get_by_role("button", name="Stop", exact=True).click()
    page.locator(".result-progress").wait_for(state="detached")
    job = served.jobs("local")[-1]
    assert job.status == "cancelled"
    assert job.progress.step < LONG["Steps"]
    expect(page.get_by_role("button", name="Stop", exact=True)).to_be_hidden()


def test_queued_jobs_can_be_removed(page: Page, served: Studio) -> None:
    generate(page, "an owl at night", LONG)
    expect_progress(page, "an owl at night")
    generate(page, "a duck at sea")
    generate(page, "a lion in the desert")
    waiting = page.get_by_role("region", name="Queue").get_by_role("listitem")
    expect(waiting).to_have_count(2)
    expect(waiting.nth(1)).to_contain_text("2 ahead")
    page.get_by_role("button", name="Remove from the queue: a duck at sea").click()
    expect(waiting).to_have_count(1)
    expect(waiting).to_contain_text("a lion in the desert")
    page.get_by_role("button", name="Stop", exact=True).click()
    expect_progress(page, "a lion in the desert")  # queued behind the cancelled one
    assert [job.status for job in served.jobs("local")[-3:-1]] == ["cancelled", "cancelled"]


def test_every_click_on_generate_counts(page: Page, served: Studio) -> None:
    before = len(served.jobs("local"))
    generate(page, "a patient snail", LONG)
    for _ in range(2):
        page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.get_by_role("region", name="Queue").get_by_role("listitem")).to_have_count(2)
    assert len(served.jobs("local")) == before + 3


def test_invalid_input_is_shown_as_a_message(page: Page, served: Studio) -> None:
    before = len(served.jobs("local"))
    generate(page, "   ")
    toast = page.get_by_test_id("toast-body")
    expect(toast).to_contain_text("Prompt must not be empty")
    expect(toast).not_to_contain_text("Traceback")
    generate(page, "x" * 10_001)
    expect(toast.last).to_contain_text("Prompt must be at most 10,000 characters")
    assert len(served.jobs("local")) == before


def test_settings_of_an_image_fill_the_form(page: Page, served: Studio) -> None:
    from canvas import GenerationRequest

    request = GenerationRequest(
        "a cat on the beach",
        negative_prompt="rain",
        style="cartoon",
        seed=41,
        width=304,
        height=224,
        num_inference_steps=2,
        guidance_scale=2.5,
    )
    [first] = served.generate(request)
    page.get_by_role("tab", name="Gallery").click()
    page.get_by_role("button", name="Open: a cat on the beach").click()
    page.get_by_role("dialog").get_by_role("button", name="Use these settings").click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a cat on the beach")
    expect(page.get_by_label("Seed", exact=True)).to_have_value("-1")
    page.get_by_role("tab", name="Gallery").click()
    page.get_by_role("button", name="Open: a cat on the beach").click()
    page.get_by_role("dialog").get_by_role("button", name="Reuse settings and seed").click()
    expect(page.get_by_label("Seed", exact=True)).to_have_value("41")
    expect(page.locator("#summary")).to_contain_text("starter · 304 × 224 · cartoon")
    page.get_by_role("button", name="Generate", exact=True).click()
    second = page.locator(f'.result-images [data-action="use_settings"]:not([data-image="{first.id}"])')
    expect(second).to_be_visible()
    assert served.recent("local", 1)[0].request == first.request


def select_model(page: Page, name: str) -> None:
    page.locator("#model input").click()
    page.get_by_role("option", name=name).first.click()


def test_the_enhanced_prompt_and_its_truncated_part_are_shown(page: Page) -> None:
    open_settings(page)
    select_model(page, "small")
    prompt = page.get_by_label("Prompt", exact=True)
    prompt.fill("a fox " * 80 + "and a hidden moon")
    expect(page.locator("#enhanced-prompt mark")).to_contain_text("hidden moon")
    expect(page.locator("#enhanced-prompt")).to_contain_text("crossed-out words are ignored")
    prompt.fill("a fox")
    page.get_by_label("Style").click()
    page.get_by_role("option", name="fantasy").click()
    expect(page.locator("#enhanced-prompt .added")).to_contain_text("magical, epic")
    expect(page.locator("#enhanced-prompt .own")).to_have_text("a fox")


def test_what_the_built_in_model_understands_is_shown_before_with_a_model_for_the_rest(page: Page) -> None:
    prompt, hints = page.get_by_label("Prompt", exact=True), page.locator("#enhanced-prompt .prompt-hints")
    prompt.fill("a bearded puppy in the snow")
    expect(hints.locator(".known")).to_have_text(["a dog (from puppy)", "in the snow"])
    expect(hints.locator(".unknown")).to_have_text(["bearded"])
    prompt.fill("zxcv qwerty")
    expect(hints).to_contain_text("knows none of these words")
    hints.get_by_role("button", name=re.compile(r"For people and photos get .+, [\d.]+ GB")).click()
    expect(page.locator("#model-status")).to_contain_text("GB download")
    expect(page.locator("#summary")).to_contain_text("512 × 512")
    expect(hints).to_have_count(0)


def test_prompts_are_escaped(page: Page) -> None:
    prompt = "<img src=x onerror='window.hacked=1'> ${window.hacked=2} `{{value}}` a fox"
    generate(page, prompt, {"Steps": 2})
    expect_result(page, prompt)
    page.get_by_role("tab", name="Gallery").click()
    page.locator(".tile").first.click()
    expect(page.get_by_role("dialog").locator("h2")).to_have_text(prompt)
    assert page.evaluate("window.hacked") is None


def test_a_preset_sets_the_steps_and_shows_its_time(page: Page, served: Studio) -> None:
    page.locator("#preset").get_by_text("Turbo").click()
    page.get_by_label("Prompt", exact=True).fill("a quick duck")
    open_settings(page)
    page.get_by_role("button", name="Advanced").click()
    steps = preset_defaults("turbo", served.models["starter"])[0]
    expect(page.get_by_label("number input for Steps")).to_have_value(str(steps))
    page.get_by_role("button", name="Generate", exact=True).click()
    expect_result(page, "a quick duck")
    expect(page.locator(".image-summary")).to_contain_text("turbo")
    page.get_by_label("Prompt", exact=True).fill("a quick goose")
    expect(page.locator("#preset")).to_contain_text(re.compile(r"Turbo\s*(under )?[\d.]+ (s|min)"))


def test_turbo_shows_its_download_and_what_it_lacks(page: Page) -> None:
    """`tiny` uses the tiny decoder, but there is no distilled LoRA for it."""
    page.get_by_label("Prompt", exact=True).fill("a quick hare")
    open_settings(page)
    page.locator("#model input").click()
    page.get_by_role("option", name="tiny · Stable Diffusion 1.5", exact=True).click()
    page.locator("#preset").get_by_text("Turbo").click()
    note = page.locator("#summary .text-line").nth(1)
    expect(note).to_contain_text("Turbo: 10.0 MB download with the first image")
    expect(note).to_contain_text("no distilled LoRA for tiny")
    page.locator("#preset").get_by_text("Quality").click()
    expect(page.locator("#summary .text-line")).to_have_count(1)


def test_ctrl_enter_generates(page: Page) -> None:
    page.get_by_label("Prompt", exact=True).fill("a boat at sunset")
    page.keyboard.press("Control+Enter")
    expect_result(page, "a boat at sunset")


def test_models_are_listed_with_their_status_and_the_device(page: Page) -> None:
    page.get_by_role("tab", name="Models").click()
    expect(page.locator(".model h3")).to_have_text(
        ["starter", "tiny", "small", "dreamshaper", "openjourney", "mini-sd", "portrait"]
    )
    expect(page.get_by_role("button", name="Download small")).to_be_visible()
    expect(page.locator(".device")).to_contain_text("CPU · float32")
    page.get_by_role("button", name="Unload starter from memory").click()
    expect(page.locator(".model", has_text="starter")).to_contain_text("on disk")


@pytest.mark.parametrize("width", [390, 1280])
def test_no_tab_is_wider_than_the_window(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 844})
    open_settings(page)
    for tab in ("Create", "Edit", "Compare", "Gallery", "Models", "Statistics"):
        page.get_by_role("tab", name=tab).click()
        expect(page.get_by_role("tab", name=tab)).to_have_attribute("aria-selected", "true")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, tab


def test_the_number_of_expanded_prompts_is_shown_before(page: Page, served: Studio) -> None:
    before = len(served.jobs("local"))
    page.get_by_label("Prompt", exact=True).fill("{red|blue} fox, {snow|desert|city}")
    expect(page.locator("#summary")).to_contain_text("6 images")
    wildcards = served.settings.data_dir / "wildcards"
    wildcards.mkdir(exist_ok=True)
    (wildcards / "animals.txt").write_text("fox\nowl\nduck\nbear\n")
    page.get_by_label("Prompt", exact=True).fill("a {red|blue} __animals__")
    expect(page.locator("#summary")).to_contain_text("8 images")
    page.get_by_label("Prompt", exact=True).fill("{a|b|c|d|e} {a|b|c|d|e} {a|b|c|d|e}")
    expect(page.locator("#summary")).to_contain_text("at most 100 prompts")
    assert len(served.jobs("local")) == before


def test_the_result_has_the_images_of_all_prompts_each_with_a_download(page: Page, served: Studio) -> None:
    generate(page, "a {red|blue} fox, {snow|desert}", {"Steps": 2})
    images = page.locator(".result-images .zoom img")
    expect(images).to_have_count(4, timeout=4 * TIMEOUT)
    prompts = [image.get_attribute("alt") for image in images.all()]
    assert prompts == ["a red fox, snow", "a red fox, desert", "a blue fox, snow", "a blue fox, desert"]
    addresses = [image.get_attribute("src") for image in images.all()]
    downloads = page.locator(".result-images a[download]")
    assert [link.get_attribute("href") for link in downloads.all()] == addresses
    page.get_by_role("button", name="Show image 3 of 4").click()
    expect(page.locator(".result-details .prompt")).to_have_text("a blue fox, snow")
    expect(downloads).to_have_count(1)
    expect(downloads).to_have_attribute("href", addresses[2] or "")


def test_every_control_has_an_accessible_name(page: Page) -> None:
    open_settings(page)
    page.get_by_role("button", name="Advanced").click()
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("input, textarea, select, button, [role=option]")]
            .filter(element => element.checkVisibility())
            .filter(element => !(element.labels?.length || element.ariaLabel || element.title
                || element.textContent.trim() || element.getAttribute("aria-labelledby")))
            .map(element => element.outerHTML.slice(0, 200))"""
    )
    assert unnamed == []
