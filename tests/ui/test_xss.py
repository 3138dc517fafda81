"""Text of other people is escaped on the page, and the page contacts no other host."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import Page, Request, expect

from canvas import Studio
from canvas.history.import_zip import import_folder
from tests.ui.test_create_tab import open_settings

pytestmark = pytest.mark.smoke
EVIL = "<img src=x onerror=window.hacked=1> <script>window.hacked=2</script> {{hacked}} ${hacked}"
INFOTEXT = (
    f"{EVIL}\nNegative prompt: {EVIL}\nSteps: 7, Sampler: Euler a, CFG scale: 6.5, Seed: 5, "
    f"Size: 128x128, Model: {EVIL.replace(',', '')}, Version: {EVIL}"
)


def image_with_evil_settings(folder: Path) -> Path:
    """An image with HTML in its settings and its name."""
    folder.mkdir()
    path = folder / "<img src=x onerror=window.hacked=3>.png"
    settings = PngInfo()
    settings.add_text("parameters", INFOTEXT)
    Image.effect_noise((128, 128), 50).convert("RGB").save(path, pnginfo=settings)
    return path


def test_imported_prompts_and_names_are_escaped(page: Page, served: Studio, tmp_path: Path) -> None:
    image_with_evil_settings(tmp_path / "evil")
    result = import_folder(served.database, served.image_repository.storage, tmp_path / "evil", "local")
    assert result.added == 1
    page.get_by_role("tab", name="Gallery").click()
    page.locator(".tile").first.click()
    dialog = page.get_by_role("dialog")
    expect(dialog.locator("h2")).to_have_text(EVIL)
    expect(dialog).to_contain_text("<img src=x onerror=window.hacked=3>.png")
    assert page.evaluate("window.hacked") is None
    assert dialog.locator("img[src='x'], script").count() == 0
    served.image_repository.trash.delete([image.id or 0 for image in served.recent()][:1], "local")


def test_settings_loaded_from_an_image_are_escaped(page: Page, tmp_path: Path) -> None:
    open_settings(page)
    path = image_with_evil_settings(tmp_path / "evil")
    page.locator("#settings-panel input[type=file]").first.set_input_files(path)
    expect(page.get_by_label("Prompt", exact=True)).to_have_value(EVIL)
    expect(page.get_by_label("Negative prompt")).to_have_value(EVIL)
    assert page.evaluate("window.hacked") is None
    assert page.locator("img[src='x']").count() == 0


def test_the_page_contacts_no_other_host(page: Page) -> None:
    requests: list[Request] = []

    def record(request: Request) -> None:  # playwright rejects builtin methods
        requests.append(request)

    visit = page.context.new_page()
    visit.on("request", record)
    visit.goto(page.url)
    visit.locator("#current-result .result").wait_for()
    for name in ("Edit", "Gallery", "Models", "Statistics", "Create"):
        visit.get_by_role("tab", name=name).click()
        expect(visit.get_by_role("tab", name=name)).to_have_attribute("aria-selected", "true")
    assert len(requests) > 10
    other_hosts = {
        request.url
        for request in requests
        if urlsplit(request.url).scheme not in ("data", "blob")
        and urlsplit(request.url).netloc != urlsplit(page.url).netloc
    }
    assert other_hosts == set()
