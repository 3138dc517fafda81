"""Takes the README's screenshots of the running program: `python -m tests.ui.screenshots`.

Generates a few images with the built-in model in a temporary data folder, opens the page in the
system's Chromium in two widths and two colour schemes, and writes WebP files to the folder given
as argument. Without an argument it updates those in `assets/screenshots`. Look at them before
committing.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from canvas import GenerationRequest, Studio
from canvas.catalog import ASSETS
from canvas.server.launch import launch
from canvas.settings import Settings
from canvas.ui.result_panel import EXAMPLES

PROMPTS = (
    *EXAMPLES,
    "a whale at sea, flat",
    "a unicorn in the meadow, 3d",
    "a penguin in the snow",
    "a cactus in the desert, flat",
    "a balloon at sunset, 3d",
    "a castle in a meadow, flat",
)
WINDOWS = {"desktop": (1280, 800), "phone": (390, 844)}
COLOR_SCHEMES = ("light", "dark")
QUALITY = 88  # of WebP
LOADED = """() => [...document.images]
    .filter(image => image.checkVisibility() && image.getBoundingClientRect().top < innerHeight)
    .every(image => image.complete)"""


def main(folder: Path) -> None:
    """Write all screenshots to the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as data_dir:
        settings = Settings(data_dir=Path(data_dir), port=0)
        with Studio(settings) as studio, sync_playwright() as playwright:
            page = launch(studio, block=False)
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            for name, scheme, visit in _visits(browser, str(page.local_url)):
                _save(visit, folder / f"empty-{name}-{scheme}.webp")
            for seed, prompt in enumerate(PROMPTS):
                studio.generate(GenerationRequest(prompt, seed=seed))
            for name, scheme, visit in _visits(browser, str(page.local_url)):
                _take_all(visit, studio, folder, f"{name}-{scheme}")
            browser.close()
            page.close()


def _visits(browser: Browser, address: str) -> Iterator[tuple[str, str, Page]]:
    for name, (width, height) in WINDOWS.items():
        for scheme in COLOR_SCHEMES:
            with _visit(browser, address, (width, height), scheme) as page:
                yield name, scheme, page


@contextmanager
def _visit(browser: Browser, address: str, size: tuple[int, int], scheme: str) -> Iterator[Page]:
    with browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        color_scheme=scheme,  # type: ignore[arg-type]
        reduced_motion="reduce",
    ) as context:
        page = context.new_page()
        page.goto(address)
        page.locator("#current-result .result").wait_for()
        yield page


def _take_all(page: Page, studio: Studio, folder: Path, name: str) -> None:
    """Write the screenshots of one window size and colour scheme."""
    page.locator("#starter-card").get_by_role("button", name="Not now").click()
    page.get_by_label("Prompt", exact=True).fill(PROMPTS[-1])
    page.locator("#summary .text-line").wait_for()
    _save(page, folder / f"create-{name}.webp")
    page.get_by_role("button", name="Advanced", exact=True).click()
    _save(page, folder / f"settings-{name}.webp")
    page.get_by_role("button", name="Advanced", exact=True).click()
    jobs = [studio.submit(GenerationRequest(prompt, num_inference_steps=150)) for prompt in (PROMPTS[0], PROMPTS[1])]
    page.locator(".result-progress img.preview").first.wait_for()
    _save(page, folder / f"progress-{name}.webp")
    for job in reversed(jobs):
        job.cancel()
    page.get_by_role("tab", name="Gallery").click()
    page.locator(".tile").first.wait_for()
    _save(page, folder / f"gallery-{name}.webp")
    page.locator(".tile").first.click()
    page.get_by_role("dialog").wait_for()
    _save(page, folder / f"detail-{name}.webp")
    page.keyboard.press("Escape")
    for tab, element in (("Models", ".model"), ("Statistics", ".total")):
        page.get_by_role("tab", name=tab).click()
        page.locator(element).first.wait_for()
        _save(page, folder / f"{tab.lower()}-{name}.webp")


def _save(page: Page, path: Path) -> None:
    page.mouse.move(0, 0)
    page.evaluate("document.fonts.ready")
    page.wait_for_function(LOADED)
    Image.open(io.BytesIO(page.screenshot())).save(path, "WEBP", quality=QUALITY)


def update(shown: Path) -> None:
    """Take all again and replace the files that exist."""
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
        for path in shown.glob("*.webp"):
            shutil.copyfile(Path(folder) / path.name, path)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        update(ASSETS / "screenshots")
