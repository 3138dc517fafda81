"""The Gallery and Statistics tabs in a real browser."""

from __future__ import annotations

import base64
import io
import zipfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from canvas import GenerationRequest, Studio
from canvas.catalog import get_model
from canvas.history.queries import Query
from canvas.request import GeneratedImage
from canvas.ui.gallery_tab import PAGE_SIZE

PROMPTS = ("a purple hippo", "a purple unicorn", "a purple ladder")


@pytest.fixture
def stored(served: Studio) -> list[GeneratedImage]:
    """Three stored images, the last one the newest."""
    images = []
    for number, prompt in enumerate(PROMPTS):
        request = GenerationRequest(prompt, seed=number, style="anime", num_inference_steps=1)
        image = GeneratedImage(
            request.with_defaults(get_model("starter", served.models)),
            enhanced_prompt=prompt,
            generation_time=1.0,
            device="cpu",
            dtype="float32",
            image=Image.new("RGB", (128, 128), (number * 90, 40, 200)),
        )
        images.append(served.image_repository.save(image))
    return images


@pytest.fixture
def gallery(stored: list[GeneratedImage], page: Page) -> Page:
    page.get_by_role("tab", name="Gallery").click()
    page.locator(".tile").first.wait_for()
    return page


def tiles(page: Page) -> list[str | None]:
    return [tile.get_attribute("title") for tile in page.locator(".tile").all()]


def test_search_filters_the_grid(gallery: Page) -> None:
    gallery.get_by_label("Search").fill("purple -unicorn")
    expect(gallery.locator('.tile[title="a purple unicorn"]')).to_have_count(0)
    assert set(tiles(gallery)) == {"a purple hippo", "a purple ladder"}
    gallery.get_by_label("Search").fill("nosuchword")
    expect(gallery.locator("#gallery")).to_contain_text("No matches")
    gallery.get_by_label("Search").fill("purple ladder")
    expect(gallery.locator("#gallery .grid-header")).to_contain_text("1 image")


def test_size_and_dates_filter_the_grid_and_the_export(
    stored: list[GeneratedImage], page: Page, served: Studio
) -> None:
    old = replace(
        stored[0],
        request=replace(stored[0].request, prompt="an old ladder", width=64, height=72),
        created_at=datetime(2025, 3, 14, 12, tzinfo=UTC),
        image=Image.new("RGB", (64, 72)),
        id=None,
        filename="",
    )
    served.image_repository.save(old)
    page.get_by_role("tab", name="Gallery").click()
    head = page.locator("#gallery .grid-header")
    page.get_by_label("Size").click()
    page.get_by_role("option", name="64 × 72").click()
    expect(head).to_contain_text("1 image")
    assert tiles(page) == ["an old ladder"]
    page.get_by_label("Size").click()
    page.get_by_role("option", name="all").click()
    expect(page.locator(".tile").nth(2)).to_be_visible()
    page.get_by_label("Created").click()
    page.get_by_role("option", name="custom range").click()
    for name, day in (("From", "2025-03-14"), ("Until", "2025-03-14")):
        field = page.get_by_label(name).or_(page.locator(f".block:has-text('{name}') input.time"))
        field.last.fill(day)
        field.last.press("Enter")
    expect(head).to_contain_text("1 image")
    assert tiles(page) == ["an old ladder"]
    page.get_by_text("Export as ZIP").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    with zipfile.ZipFile(download.value.path()) as content:
        assert b"an old ladder" in content.read("metadata.jsonl")
        assert len(content.read("metadata.jsonl").splitlines()) == 1


def test_favourites_can_be_filtered(gallery: Page, served: Studio) -> None:
    gallery.get_by_role("button", name="Open: a purple hippo").first.click()
    dialog = gallery.get_by_role("dialog")
    dialog.get_by_role("button", name="Favourite").click()
    expect(dialog.get_by_role("button", name="Favourite")).to_have_attribute("aria-pressed", "true")
    gallery.keyboard.press("Escape")
    gallery.get_by_label("Favourites only").check()
    expect(gallery.locator(".tile:not(.favourite)")).to_have_count(0)
    favourites = {image.request.prompt for image in served.recent("local", 100) if image.favourite}
    assert "a purple hippo" in favourites
    assert set(tiles(gallery)) == favourites


def test_delete_can_be_undone(gallery: Page, served: Studio, stored: list[GeneratedImage]) -> None:
    newest = stored[-1]
    gallery.locator(f'.tile[data-image="{newest.id}"]').click()
    gallery.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(gallery.locator(f'.tile[data-image="{newest.id}"]')).to_have_count(0)
    assert gallery.request.get(f"{served.address}pictures/{newest.filename}").status == 404  # type: ignore[attr-defined]
    gallery.get_by_role("button", name="Undo").click()
    expect(gallery.locator(f'.tile[data-image="{newest.id}"]')).to_have_count(1)
    assert gallery.request.get(f"{served.address}pictures/{newest.filename}").status == 200  # type: ignore[attr-defined]


def test_a_selection_can_be_compared_exported_and_imported(gallery: Page, stored: list[GeneratedImage]) -> None:
    gallery.get_by_role("button", name="Select", exact=True).click()
    gallery.locator(".tile[aria-pressed]").first.wait_for()
    for image in stored[:2]:
        gallery.locator(f'.tile[data-image="{image.id}"]').click()
        chosen = gallery.locator(f'.tile[data-image="{image.id}"][aria-pressed="true"]')
        expect(chosen).to_have_count(1)
    gallery.get_by_role("button", name="Compare").click()
    slider = gallery.get_by_role("slider", name="Comparison slider position")
    slider.fill("20")
    expect(gallery.locator(".compare-slider")).to_have_attribute("style", "--split: 20%;")
    gallery.get_by_role("button", name="Close").click()
    gallery.get_by_text("Export as ZIP").click()
    gallery.locator("#gallery").get_by_label("Format").select_option("webp")
    with gallery.expect_download() as download:
        gallery.get_by_role("button", name="Download").click()
    archive = download.value.path()
    with zipfile.ZipFile(archive) as content:
        assert len(content.read("metadata.jsonl").splitlines()) == 2
        assert sum(name.endswith(".webp") for name in content.namelist()) == 2
    zipped = {"name": "mine.zip", "mimeType": "application/zip", "buffer": archive.read_bytes()}
    gallery.locator("input[type=file][accept*=zip]").set_input_files(zipped)
    imported = gallery.get_by_test_id("toast-body").filter(has_text="0 imported, 2 already in the gallery")
    expect(imported).to_be_visible()


def test_shift_selects_a_range_and_all_can_be_selected(
    gallery: Page, served: Studio, stored: list[GeneratedImage]
) -> None:
    first, _, last = (gallery.locator(f'.tile[data-image="{image.id}"]') for image in stored)
    last.click(modifiers=["Shift"])
    expect(gallery.locator(".grid-header")).to_contain_text("1 selected")
    first.click(modifiers=["Shift"])
    expect(gallery.locator(".grid-header")).to_contain_text("3 selected")
    assert [tile.get_attribute("data-image") for tile in gallery.locator('.tile[aria-pressed="true"]').all()] == [
        str(image.id) for image in reversed(stored)
    ]
    total = len(served.database.ids(Query(owner="local")))  # also those of other pages
    gallery.get_by_role("button", name="Select all").click()
    expect(gallery.locator(".grid-header")).to_contain_text(f"{total} selected")
    expect(gallery.get_by_role("button", name="Select all")).to_have_count(0)
    gallery.get_by_role("button", name="Done").click()
    expect(gallery.locator(".tile[aria-pressed]")).to_have_count(0)


def test_arrow_keys_move_through_the_images(gallery: Page, stored: list[GeneratedImage]) -> None:
    gallery.locator(f'.tile[data-image="{stored[2].id}"]').click()
    heading = gallery.get_by_role("dialog").get_by_role("heading")
    expect(heading).to_have_text("a purple ladder")
    gallery.keyboard.press("ArrowRight")
    expect(heading).to_have_text("a purple unicorn")
    gallery.keyboard.press("ArrowRight")
    expect(heading).to_have_text("a purple hippo")
    gallery.keyboard.press("ArrowLeft")
    expect(heading).to_have_text("a purple unicorn")
    gallery.keyboard.press("Escape")
    expect(gallery.get_by_role("dialog")).to_have_count(0)


def test_arrow_keys_cross_the_pages_and_a_new_page_begins_at_its_top(page: Page, served: Studio) -> None:
    request = GenerationRequest("a grey mouse", num_inference_steps=1).with_defaults(served.models["starter"])
    ids = []
    for number in range(PAGE_SIZE + 2):
        pixels = Image.new("RGB", (64, 64), (number, 0, 0))
        made = GeneratedImage(replace(request, seed=number), "a grey mouse", 1.0, "cpu", "float32", image=pixels)
        ids.append(served.image_repository.save(made).id)
    page.get_by_role("tab", name="Gallery").click()
    page.get_by_label("Search").fill("mouse")
    expect(page.locator(".grid-header")).to_contain_text("50 images")
    page.locator(f'.tile[data-image="{ids[2]}"]').click()
    page.get_by_role("dialog").wait_for()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".pagination")).to_contain_text("Page 2 of 2")
    page.get_by_role("dialog").locator(f'[data-action="delete"][data-image="{ids[1]}"]').wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Previous").click()
    expect(page.locator(".pagination")).to_contain_text("Page 1 of 2")
    page.get_by_role("button", name="Next").scroll_into_view_if_needed()
    assert page.evaluate("scrollY") > 300
    page.get_by_role("button", name="Next").click()
    expect(page.locator(".pagination")).to_contain_text("Page 2 of 2")
    expect(page.locator("#gallery")).to_be_in_viewport()
    assert page.evaluate("document.getElementById('gallery').getBoundingClientRect().top") > -5
    served.user_gallery("local").delete([image_id for image_id in ids if image_id])


def test_a_heart_marks_a_tile(gallery: Page, served: Studio, stored: list[GeneratedImage]) -> None:
    heart = gallery.get_by_role("button", name="Favourite: a purple hippo").first
    tile = gallery.locator(f'.tile[data-image="{stored[0].id}"] img')
    expect(tile).to_have_attribute("alt", "a purple hippo")
    heart.click()
    expect(heart).to_have_attribute("aria-pressed", "true")
    expect(gallery.get_by_role("dialog")).to_have_count(0)
    assert served.image(stored[0].id or 0).favourite
    heart.click()
    expect(heart).to_have_attribute("aria-pressed", "false")


DROP = """([selector, content]) => {
    const files = new DataTransfer();
    files.items.add(new File([Uint8Array.from(atob(content), one => one.charCodeAt(0))], "a.png", {type: "image/png"}));
    const options = {dataTransfer: files, bubbles: true, cancelable: true};
    document.querySelector(selector).dispatchEvent(new DragEvent("drop", options));
}"""


def test_a_dropped_image_is_imported_or_its_settings_are_loaded(
    gallery: Page, served: Studio, stored: list[GeneratedImage]
) -> None:
    path = served.image_path(stored[1].filename)
    before = gallery.locator(".tile").count()
    foreign = io.BytesIO()
    Image.new("RGB", (96, 64), (1, 2, 3)).save(foreign, "PNG")
    question = gallery.get_by_role("dialog", name="What should happen with this image?")
    gallery.evaluate(DROP, ["#gallery", base64.b64encode(foreign.getvalue()).decode()])
    question.get_by_role("button", name="Import into the gallery").click()
    expect(gallery.get_by_test_id("toast-body")).to_contain_text("1 imported, 0 already in the gallery")
    expect(gallery.locator(".tile")).to_have_count(min(before + 1, PAGE_SIZE))
    gallery.evaluate(DROP, ["#gallery", base64.b64encode(path.read_bytes()).decode()])
    question.get_by_role("button", name="Load its settings").click()
    expect(gallery.get_by_label("Prompt", exact=True)).to_have_value("a purple unicorn")
    expect(gallery.get_by_role("tab", name="Create")).to_have_attribute("aria-selected", "true")


def test_an_export_closes_its_menu_and_is_confirmed(gallery: Page, served: Studio) -> None:
    gallery.evaluate("addEventListener('beforeunload', () => { document.title = 'left' })")
    gallery.get_by_text("Export as ZIP").click()
    with gallery.expect_download() as download:
        gallery.get_by_role("button", name="Download", exact=True).click()
    assert download.value.suggested_filename == "magic-canvas.zip"
    total = len(served.database.ids(Query(owner="local")))
    expect(gallery.get_by_test_id("toast-body")).to_contain_text(f"{total} images as a ZIP, in the downloads")
    expect(gallery.locator(".export form")).to_be_hidden()
    assert gallery.title() != "left", "Gradio closes its connection when the page is left"


def test_on_a_phone_filters_are_folded_and_buttons_come_first(gallery: Page, stored: list[GeneratedImage]) -> None:
    gallery.set_viewport_size({"width": 390, "height": 844})
    expect(gallery.get_by_label("Search")).to_be_visible()
    expect(gallery.get_by_label("Created")).to_be_hidden()
    assert gallery.locator(".tile").first.bounding_box()["y"] < 400  # type: ignore[index]
    gallery.get_by_role("button", name="Filters").click()
    expect(gallery.get_by_label("Created")).to_be_visible()
    gallery.locator(".tile").first.click()
    dialog = gallery.get_by_role("dialog")
    button, fact = dialog.get_by_role("button", name="Upscale"), dialog.locator("dl")
    assert button.bounding_box()["y"] < fact.bounding_box()["y"]  # type: ignore[index]


def test_upscale_opens_the_image_in_the_editor(gallery: Page, stored: list[GeneratedImage]) -> None:
    gallery.locator(f'.tile[data-image="{stored[0].id}"]').click()
    gallery.get_by_role("dialog").get_by_role("button", name="Upscale").click()
    expect(gallery.locator("#edit-prompt textarea")).to_have_value(stored[0].request.prompt)
    expect(gallery.get_by_label("Upscale", exact=True)).to_be_checked()


def test_settings_are_loaded_from_an_image(page: Page, served: Studio, stored: list[GeneratedImage]) -> None:
    chooser = page.locator("#settings-panel input[type=file]")
    chooser.set_input_files(served.image_path(stored[1].filename))
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a purple unicorn")
    expect(page.locator("#summary")).to_contain_text("anime")


def test_an_image_without_settings_is_reported(page: Page, tmp_path: Path) -> None:
    plain = tmp_path / "plain.png"
    Image.new("RGB", (32, 32)).save(plain)
    page.locator("#settings-panel input[type=file]").set_input_files(plain)
    expect(page.get_by_test_id("toast-body")).to_contain_text("contains no generation settings")


def test_statistics_and_cleanup_with_undo(page: Page, served: Studio, stored: list[GeneratedImage]) -> None:
    page.get_by_role("tab", name="Statistics").click()
    total = len(served.database.ids(Query(owner="local")))
    expect(page.locator(".total").first).to_have_text(f"{total}images")
    page.get_by_role("button", name="Clean up…").click()  # in the Disk chart: opens the form below
    page.get_by_label("Keep favourites").uncheck()
    page.get_by_label("Older than (days)").fill("0")
    page.get_by_label("Older than (days)").blur()
    result = page.locator("#cleanup-result")
    expect(result).to_contain_text(f"{total} images will be deleted")
    result.get_by_role("button", name="Delete").click()
    expect(page.locator(".total").first).to_have_text("0images")
    result.get_by_role("button", name="Undo").click()
    expect(page.locator(".total").first).to_have_text(f"{total}images")
