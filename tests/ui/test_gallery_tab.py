"""The Gallery and Statistics tabs in a real browser."""

from __future__ import annotations

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


def test_favourites_can_be_filtered(gallery: Page) -> None:
    gallery.get_by_role("button", name="Open: a purple hippo").first.click()
    dialog = gallery.get_by_role("dialog")
    dialog.get_by_role("button", name="Favourite").click()
    expect(dialog.get_by_role("button", name="Favourite")).to_have_attribute("aria-pressed", "true")
    gallery.keyboard.press("Escape")
    gallery.get_by_label("Favourites only").check()
    expect(gallery.locator(".tile:not(.favourite)")).to_have_count(0)
    assert set(tiles(gallery)) == {"a purple hippo"}


def test_delete_can_be_undone(gallery: Page, served: Studio, stored: list[GeneratedImage]) -> None:
    newest = stored[-1]
    gallery.locator(f'.tile[data-image="{newest.id}"]').click()
    gallery.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(gallery.locator(f'.tile[data-image="{newest.id}"]')).to_have_count(0)
    assert gallery.request.get(f"{gallery.url}pictures/{newest.filename}").status == 404
    gallery.get_by_role("button", name="Undo").click()
    expect(gallery.locator(f'.tile[data-image="{newest.id}"]')).to_have_count(1)
    assert gallery.request.get(f"{gallery.url}pictures/{newest.filename}").status == 200


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
    gallery.get_by_label("Format").select_option("webp")
    with gallery.expect_download() as download:
        gallery.get_by_role("button", name="Download").click()
    archive = download.value.path()
    with zipfile.ZipFile(archive) as content:
        assert len(content.read("metadata.jsonl").splitlines()) == 2
        assert sum(name.endswith(".webp") for name in content.namelist()) == 2
    zipped = {"name": "mine.zip", "mimeType": "application/zip", "buffer": archive.read_bytes()}
    gallery.locator("input[type=file][accept*=zip]").set_input_files(zipped)
    expect(gallery.get_by_test_id("toast-body")).to_contain_text("0 imported, 2 already in the gallery")


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
