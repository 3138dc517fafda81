"""The Create and Models tabs in a real browser."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from canvas import GenerationRequest, Studio
from canvas.dynamic_prompts import escape
from canvas.formatting import format_duration
from canvas.history.queries import Query
from canvas.presets import preset_defaults
from canvas.ui.result_panel import EXAMPLES, GENERAL_EXAMPLES
from tests.app_server import slow_down_steps
from tests.ui.conftest import TIMEOUT

LONG = {"Steps": 150, "Number of images": 16}  # still running during a test
MEDIUM = {"Steps": 150, "Number of images": 2}
# Of each result, beside the link to download it.
BUTTONS = (
    *("Edit", "Upscale", "Variations", "Favourite", "Reuse settings", "Reuse settings and seed"),
    *("Copy prompt", "Delete"),
)


def generate(page: Page, prompt: str, settings: dict[str, int] | None = None) -> None:
    """Fill the form and press Generate."""
    page.get_by_label("Prompt", exact=True).fill(prompt)
    if "Steps" in (settings or {}):
        open_settings(page)
    for name, value in (settings or {}).items():
        field = page.get_by_label(f"number input for {name}")
        slider = page.get_by_label(f"range slider for {name}")
        while slider.input_value() != str(value):  # Gradio drops values that are entered while it renders
            field.fill(str(value))
            field.blur()
    page.get_by_role("button", name="Generate", exact=True).click()


def open_settings(page: Page) -> None:
    button = page.get_by_role("button", name="Advanced", exact=True)
    if button.get_attribute("aria-expanded") != "true":
        button.click()


def expect_progress(page: Page, prompt: str) -> None:
    expect(page.locator(".result-progress .prompt")).to_have_text(prompt)
    page.locator(".result-progress img.preview").wait_for()


def expect_result(page: Page, prompt: str, width: int = 256) -> None:
    details = page.locator(".result-images .result-details .prompt")
    expect(details).to_have_text(prompt, timeout=4 * TIMEOUT)
    image = page.locator(".result-images .zoom img").first
    expect(image).to_have_js_property("complete", True)
    assert image.evaluate("image => image.naturalWidth") == width


@pytest.mark.smoke
def test_generate_shows_progress_result_and_gallery_entry(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_down_steps(monkeypatch, 0.1)  # a slow page has to show a preview
    generate(page, "a fox in the snow, 3d", {"Steps": 25})
    expect_progress(page, "a fox in the snow, 3d")
    expect(page.locator(".result-progress .status-text")).to_have_text(re.compile(r"Step \d+ of 25"))
    expect_result(page, "a fox in the snow, 3d")
    expect(page.get_by_role("region", name="Queue")).to_have_count(0)
    page.reload()
    expect_result(page, "a fox in the snow, 3d")
    page.get_by_role("tab", name="Gallery").click()
    page.get_by_role("button", name="Open: a fox in the snow, 3d").first.click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("256 × 256")
    expect(dialog).to_contain_text("DDIM")
    for label in ("Source", "Created"):
        expect(dialog.locator("dt").get_by_text(label, exact=True)).to_be_visible()
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
    expect(waiting.first).to_contain_text(re.compile(r"1 ahead, about \d+ (s|min)"))
    expect(waiting.nth(1)).to_contain_text("2 ahead")
    page.get_by_role("button", name="Remove from the queue: a duck at sea").click()
    expect(waiting).to_have_count(1)
    expect(waiting).to_contain_text("a lion in the desert")
    page.get_by_role("button", name="Stop", exact=True).click()
    expect_progress(page, "a lion in the desert")  # queued behind the cancelled one
    assert [job.status for job in served.jobs("local")[-3:-1]] == ["cancelled", "cancelled"]


def test_every_click_on_generate_counts_and_the_queue_can_be_cleared(page: Page, served: Studio) -> None:
    before = len(served.jobs("local"))
    generate(page, "a patient snail", LONG)
    for _ in range(2):
        page.get_by_role("button", name="Generate", exact=True).click()
    waiting = page.get_by_role("region", name="Queue").get_by_role("listitem")
    expect(waiting).to_have_count(2)
    assert len(served.jobs("local")) == before + 3
    expect(waiting.first).to_contain_text("takes about")
    page.get_by_role("button", name="Remove all").click()
    expect(page.get_by_role("region", name="Queue")).to_have_count(0)
    assert [job.status for job in served.jobs("local")[before + 1 :]] == ["cancelled"] * 2


def test_invalid_input_is_shown_as_a_message(page: Page, served: Studio) -> None:
    before = len(served.jobs("local"))
    generate(page, "   ")
    toast = page.get_by_test_id("toast-body")
    expect(toast).to_contain_text("Write a prompt first.")
    expect(toast).not_to_contain_text("Traceback")
    generate(page, "x" * 10_001)
    expect(toast.last).to_contain_text("Prompt must be at most 10,000 characters")
    assert len(served.jobs("local")) == before


def test_settings_of_an_image_fill_the_form(page: Page, served: Studio) -> None:
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
    page.get_by_role("dialog").get_by_role("button", name="Reuse settings", exact=True).click()
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
    expect(page.locator("#enhanced-prompt .label")).to_have_text("Sent to the model")
    expect(page.locator("#enhanced-prompt mark")).to_contain_text("hidden moon")
    expect(page.locator("#enhanced-prompt")).to_contain_text("crossed-out words are ignored")
    prompt.fill("a fox")
    page.get_by_label("Style").click()
    page.get_by_role("option", name="fantasy").click()
    expect(page.locator("#enhanced-prompt .added")).to_contain_text("magical, epic")
    expect(page.locator("#enhanced-prompt .own")).to_have_text("a fox")


def test_what_the_built_in_model_understands_is_shown_before_with_a_model_for_the_rest(page: Page) -> None:
    prompt, hints = page.get_by_label("Prompt", exact=True), page.locator("#enhanced-prompt .prompt-hints")
    button = page.locator("#generate")
    place = button.bounding_box()
    prompt.fill("a bearded puppy in the snow")
    expect(hints.locator(".known")).to_have_text(["a dog (from puppy)", "in the snow"])
    expect(hints.locator(".unknown")).to_have_text(["bearded"])
    assert button.bounding_box() == place, "the button moved while somebody typed"
    prompt.fill("a lighthouse at night")
    expect(hints.locator("p", has_text="Not known")).to_contain_text("lighthouse (nearest: tokyo tower)")
    prompt.fill("ein Fuchs im Schnee")
    expect(hints.locator(".known")).to_have_text(["a fox (from Fuchs)", "in the snow (from Schnee)"])
    suggestion = hints.get_by_role("button", name=re.compile(r"For photos and anything else get .+, [\d.]+ GB"))
    expect(suggestion).to_have_count(0)
    for text, unknown in (
        ("quantum entanglement", ["quantum entanglement"]),
        ("the meaning of life", ["meaning", "life"]),
        ("a logo", ["logo"]),
        ("zxcv qwerty", ["zxcv qwerty"]),
    ):
        prompt.fill(text)
        expect(hints.locator(".unknown")).to_have_text(unknown)
        expect(hints).to_contain_text("knows none of these words")
        expect(suggestion).to_be_visible()
    suggestion.click()
    expect(page.locator("#model-status")).to_contain_text("GB download")
    expect(page.locator("#summary")).to_contain_text("512 × 512")
    expect(hints).to_have_count(0)


def test_prompts_are_escaped(page: Page) -> None:
    prompt = "<img src=x onerror='window.hacked=1'> ${window.hacked=2} `{{value}}` a fox"
    generate(page, escape(prompt), {"Steps": 2})
    expect_result(page, prompt)
    page.get_by_role("tab", name="Gallery").click()
    page.locator(".tile").first.click()
    expect(page.get_by_role("dialog").locator("h2")).to_have_text(prompt)
    assert page.evaluate("window.hacked") is None


def test_a_preset_sets_the_steps_and_shows_its_time(page: Page, served: Studio) -> None:
    page.locator("#preset").get_by_text("Turbo").click()
    page.get_by_label("Prompt", exact=True).fill("a quick duck")
    open_settings(page)
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
    page.locator("#model input").click()
    page.get_by_role("option", name="Small Stable Diffusion · general, fewest steps · 3.2 GB").click()
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
    page.get_by_label("Prompt", exact=True).fill("a __nothing__")
    expect(page.locator("#summary")).to_contain_text('There is no wildcard list "nothing"')
    expect(page.locator("#summary")).to_contain_text("Add wildcards/nothing.txt to the data folder.")
    assert len(served.jobs("local")) == before


def test_a_batch_shows_the_images_of_all_prompts_each_with_its_buttons(page: Page, served: Studio) -> None:
    generate(page, "a {red|blue} fox, {snow|desert}", {"Steps": 2})
    images = page.locator(".result-images .zoom img")
    expect(images).to_have_count(4, timeout=4 * TIMEOUT)
    prompts = ["a red fox, snow", "a red fox, desert", "a blue fox, snow", "a blue fox, desert"]
    assert [image.get_attribute("alt") for image in images.all()] == prompts
    expect(page.locator(".result-details .prompt")).to_have_text("a {red|blue} fox, {snow|desert}")
    job = served.jobs("local")[-1]
    seconds = sum(image.generation_time for image in job.images)
    expect(page.locator(".image-summary")).to_contain_text(format_duration(seconds))
    saved = page.locator(".cell-actions > a[download]")
    assert [link.get_attribute("href") for link in saved.all()] == [
        f"pictures/{image.filename}" for image in job.images
    ]
    with page.expect_download() as download:
        page.get_by_role("link", name="Download all 4 as ZIP").click()
    with zipfile.ZipFile(download.value.path()) as file:
        assert len([name for name in file.namelist() if name.endswith(".png")]) == 4
    page.locator(".action-menu summary").nth(2).click()
    expect(page.locator(".action-menu[open] .menu > *")).to_have_text(
        [re.compile(name) for name in ("Download", *BUTTONS)]
    )
    page.locator(".action-menu[open]").get_by_role("button", name="Delete").click()
    expect(images).to_have_count(3)
    assert [image.get_attribute("alt") for image in images.all()] == [*prompts[:2], prompts[3]]


def test_the_buttons_of_a_result(page: Page, served: Studio) -> None:
    [image] = served.generate(GenerationRequest("a lonely kite", seed=7, style="cartoon", num_inference_steps=2))
    page.get_by_role("button", name="Show: a lonely kite").first.click()
    expect_result(page, "a lonely kite")
    actions = page.locator(".image-actions")
    expect(actions.get_by_role("button")).to_have_text([re.compile(name) for name in BUTTONS])
    with page.expect_download() as download:
        actions.get_by_role("link", name="Download").click()
    assert Path(download.value.path()).read_bytes() == served.image_path(image.filename).read_bytes()
    favourite = actions.get_by_role("button", name="Favourite")
    favourite.click()
    expect(favourite).to_have_attribute("aria-pressed", "true")
    assert served.image(image.id or 0).favourite
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    actions.get_by_role("button", name="Copy prompt").click()
    expect(actions.get_by_text("Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == "a lonely kite"
    actions.get_by_role("button", name="Reuse settings and seed").click()
    expect(page.locator("#prompt textarea")).to_have_value("a lonely kite")
    expect(page.locator("#summary")).to_contain_text("cartoon")
    expect(page.locator("#seed input")).to_have_value("7")
    actions.get_by_role("button", name="Reuse settings", exact=True).click()
    expect(page.locator("#seed input")).to_have_value("-1")
    actions.get_by_role("button", name="Delete").click()
    expect(page.locator("#undo")).to_contain_text("1 image deleted.")
    expect(page.get_by_role("button", name="Show: a lonely kite")).to_have_count(0)
    page.locator("#undo").get_by_role("button", name="Undo").click()
    expect(page.get_by_role("button", name="Show: a lonely kite").first).to_be_visible()
    expect(page.locator("#undo")).to_be_empty()


def test_edit_upscale_and_variations_of_a_result(page: Page, served: Studio) -> None:
    [ship] = served.generate(GenerationRequest("a tall ship", seed=7, num_inference_steps=2))
    for button, operation in (("Edit", "Inpaint"), ("Upscale", "Upscale")):
        page.get_by_role("tab", name="Create").click()
        page.get_by_role("button", name="Show: a tall ship").first.click()
        expect_result(page, "a tall ship")
        page.locator(".image-actions").get_by_role("button", name=button, exact=True).click()
        expect(page.get_by_role("tab", name="Edit")).to_have_attribute("aria-selected", "true")
        expect(page.get_by_role("radio", name=operation, exact=True)).to_be_checked()
        expect(page.locator("#edit-image canvas").first).to_be_visible()
    expect(page.locator("#edit-size")).to_have_text("Result: 512 × 512")
    page.locator("#edit-generate").click()  # everything else is filled in
    expect(page.locator("#edit-result .result-images")).to_be_visible()
    large = served.recent("local", 1)[0]
    assert (large.task, large.parent_id, large.request.size) == ("upscale", ship.id, (512, 512))
    page.get_by_role("tab", name="Create").click()
    page.get_by_role("button", name="Show: a tall ship").nth(1).click()  # the original
    expect(page.locator(".image-actions").get_by_role("button", name="Variations")).to_be_visible()
    page.locator(".image-actions").get_by_role("button", name="Variations").click()
    expect(page.locator("#current-result .result-images .zoom img")).to_have_count(4, timeout=4 * TIMEOUT)
    assert [each.request.seed for each in served.jobs("local")[-1].images] == [8, 9, 10, 11]


def test_the_lightbox_goes_through_the_images_with_the_arrow_keys(page: Page) -> None:
    generate(page, "a {red|green} door", {"Steps": 2})
    shown = page.locator(".result-images .zoom")
    expect(shown).to_have_count(2, timeout=4 * TIMEOUT)
    shown.first.click()
    lightbox = page.locator("dialog.lightbox")
    expect(lightbox.locator(".prompt")).to_have_text("a red door")
    expect(lightbox.locator(".position")).to_have_text("1 / 2")
    page.keyboard.press("ArrowRight")
    expect(lightbox.locator(".prompt")).to_have_text("a green door")
    expect(lightbox.locator("img")).to_have_js_property("naturalWidth", 256)
    page.keyboard.press("ArrowLeft")
    lightbox.get_by_role("button", name="Previous image").click()
    expect(lightbox.locator(".prompt")).to_have_text("a green door")
    page.keyboard.press("Escape")
    expect(lightbox).to_be_hidden()
    expect(shown.first).to_be_focused()
    assert len(page.context.pages) == 1


@pytest.mark.parametrize("size", [(1280, 800), (390, 844)])
def test_the_first_screen_has_everything_that_an_image_needs(page: Page, served: Studio, size: tuple[int, int]) -> None:
    if not served.recent():
        served.generate(GenerationRequest("a fox", num_inference_steps=2))
        page.reload()
    page.set_viewport_size({"width": size[0], "height": size[1]})
    image = page.locator(".result-images .zoom").first
    strip = ["#recent .thumbnail >> nth=0"] if size[0] > 1000 else []
    for element in ("#prompt", "#model", "#aspect-ratio", "#resolution", "#preset", "#generate", *strip):
        expect(page.locator(element)).to_be_in_viewport(ratio=1)
    expect(page.get_by_label("number input for Number of images")).to_be_in_viewport(ratio=1)
    assert bottom(page.locator("#generate")) <= size[1]
    assert top(image) < size[1] - 150
    before = top(image), top(page.locator("#generate"))
    open_settings(page)
    expect(page.get_by_label("Style")).to_be_in_viewport()
    assert (top(image), top(page.locator("#generate"))) == before, "Advanced pushes nothing away"
    page.locator("#settings-button").click()
    expect(page.get_by_label("Style")).to_be_hidden()
    page.set_viewport_size({"width": 1280, "height": 800})


def top(locator: Locator) -> float:
    box = locator.bounding_box()
    assert box is not None
    return box["y"]


def bottom(locator: Locator) -> float:
    box = locator.bounding_box()
    assert box is not None
    return box["y"] + box["height"]


def test_the_models_say_what_they_draw_and_whether_they_are_downloaded(page: Page) -> None:
    model = page.locator("#model input")
    expect(model).to_have_value("Built-in model · storybook · no download")
    model.click()
    page.get_by_role("option", name="DreamShaper 8 · painterly and photo · 2.1 GB · not downloaded").click()
    status = page.locator("#model-status")
    expect(status).to_contain_text(re.compile(r"2\.1 GB download \([\d.]+ [MG]B disk space free\)"))
    expect(status.locator(".error")).to_be_visible()  # the Hub of the tests does not have it
    expect(status).to_contain_text("licence creativeml-openrail-m")
    expect(page.get_by_label("range slider for Resolution")).to_have_attribute("max", "512")


def test_the_resolution_ends_at_the_size_that_the_model_draws_well(page: Page) -> None:
    slider = page.get_by_label("range slider for Resolution")
    expect(slider).to_have_attribute("max", "256")
    slider.press("End")
    page.locator("#aspect-ratio input").click()
    page.get_by_role("option", name="4:3").click()
    expect(page.locator("#summary")).to_contain_text("296 × 224")
    open_settings(page)
    expect(page.get_by_text("For larger images, upscale the result.")).to_be_visible()


def test_the_bar_of_a_job_starts_empty_after_stop(page: Page, served: Studio) -> None:
    served.submit(GenerationRequest("a long whale", num_inference_steps=150, num_images=4))
    served.submit(GenerationRequest("a longer whale", num_inference_steps=150))
    page.wait_for_function("() => document.querySelector('.progress')?.ariaValueNow > 15", timeout=4 * TIMEOUT)
    page.get_by_role("button", name="Stop", exact=True).click()
    share = page.wait_for_function(  # in the first frame that shows the next job
        """() => {
            const text = document.querySelector(".result-progress .prompt")?.textContent;
            const bar = document.querySelector(".result-progress .progress");
            const width = bar?.querySelector("span").getBoundingClientRect().width;
            return text === "a longer whale" && { share: width / bar.getBoundingClientRect().width };
        }"""
    ).json_value()
    assert share["share"] < 0.1


@pytest.mark.parametrize("tab", ["Create", "Edit"])
@pytest.mark.parametrize("size", [(390, 844), (1280, 800)])
def test_messages_cover_no_button(page: Page, size: tuple[int, int], tab: str) -> None:
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.get_by_role("tab", name=tab).click()
    button = page.get_by_role("button", name="Generate", exact=True)
    button.evaluate("button => button.scrollIntoView({ block: 'end' })")
    button.click()
    toast = page.get_by_test_id("toast-body")
    expect(toast).to_contain_text("Write a prompt first.")
    covered = toast.evaluate(
        """(toast) => {
            const over = toast.getBoundingClientRect();
            const buttons = document.querySelectorAll(
                "#prompt-form button, [role=tab], .image-actions > *, #edit-form button, #edit-image button");
            return [...buttons].filter((button) => {
                const box = button.getBoundingClientRect();
                return box.width && box.left < over.right && box.right > over.left
                    && box.top < over.bottom && box.bottom > over.top;
            }).map((button) => button.outerHTML.slice(0, 200));
        }"""
    )
    assert covered == []
    expect(toast).to_be_in_viewport(ratio=1)
    page.set_viewport_size({"width": 1280, "height": 800})


@pytest.fixture
def empty_gallery(served: Studio) -> Iterator[None]:
    """No image of `served`, until the test has ended."""
    gallery = served.user_gallery("local")
    token, _ = gallery.delete(gallery.ids(Query(owner="local")))
    yield
    if token:
        gallery.undo(token)


def test_the_examples_suit_the_model(empty_gallery: None, page: Page) -> None:
    examples = page.locator("#current-result").get_by_role("listitem").get_by_role("button")
    expect(examples).to_have_text(EXAMPLES)
    page.locator("#model input").click()
    page.get_by_role("option", name="DreamShaper 8").click()
    expect(examples).to_have_text(GENERAL_EXAMPLES)
    examples.nth(1).click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value(GENERAL_EXAMPLES[1])


def test_estimates_stay_ordered_whatever_was_measured(page: Page, served: Studio) -> None:
    served.generate(GenerationRequest("a fast fox", num_inference_steps=1))
    for preset in ("balanced", "turbo"):
        served.generate(GenerationRequest("a slow fox", preset=preset, num_inference_steps=60))
    page.get_by_label("Prompt", exact=True).fill("a fox")
    labels = page.locator("#preset label")
    for label in labels.all():
        expect(label).to_contain_text(re.compile(r"[\d.]+ s$"))
    quality, balanced, turbo = (float(label.inner_text().split()[-2]) for label in labels.all())
    assert quality >= balanced >= turbo  # rounded


def test_every_control_has_an_accessible_name(page: Page) -> None:
    open_settings(page)
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("input, textarea, select, button, [role=option]")]
            .filter(element => element.checkVisibility())
            .filter(element => !(element.labels?.length || element.ariaLabel || element.title
                || element.textContent.trim() || element.getAttribute("aria-labelledby")))
            .map(element => element.outerHTML.slice(0, 200))"""
    )
    assert unnamed == []
