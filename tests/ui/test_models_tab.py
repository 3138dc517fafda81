"""The Models tab in a real browser: the list, the search of the Hub, defaults and errors; the starter card."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from canvas import Studio
from canvas.formatting import format_bytes
from canvas.model_status import ModelStatus
from tests.app_server import wait_until_finished
from tests.hub_server import Fault, LocalHub
from tests.tiny_single_files import make_single_file

REPO = "ann/fox-painter"


@pytest.fixture
def repo(served: Studio, served_hub: LocalHub, tiny_full_folder: Path) -> Iterator[str]:
    """A model on the Hub of the page; what the test adds is removed again."""
    served_hub.add(REPO, tiny_full_folder)
    served_hub.cards[REPO] = {"likes": 1234, "downloads": 56_789, "cardData": {"license": "openrail"}}
    yield REPO
    for key in [key for key in served.models if served.own_models.is_own(key)]:
        served.own_models.remove(key)
    served_hub.faults.clear()


@pytest.fixture
def models(page: Page) -> Page:
    page.get_by_role("tab", name="Models").click()
    page.locator(".model").first.wait_for()
    return page


def row(page: Page, title: str) -> Locator:
    return page.locator("#models .model", has=page.get_by_role("heading", name=title))


def search(page: Page, text: str) -> None:
    page.get_by_label("Add a model").fill(text)
    page.get_by_role("button", name="Search", exact=True).click()


def test_models_are_listed_with_their_status_and_the_device(models: Page, served: Studio) -> None:
    expect(models.locator("#models .model h3")).to_have_count(len(served.models))
    expect(models.get_by_role("button", name="Download Stable Diffusion 1.5")).to_be_visible()
    served.warm_up(wait=True)
    expect(models.locator(".device")).to_contain_text("CPU · float32")
    unload = models.get_by_role("button", name="Unload Built-in model from memory")
    expect(unload).to_have_text("Unload from memory")
    unload.click()
    expect(row(models, "Built-in model")).to_contain_text("on disk")


def test_a_model_of_the_hub_is_added_with_one_click(models: Page, served: Studio, repo: str) -> None:
    search(models, "fox")
    found = models.locator(".model.found")
    expect(found).to_have_count(1)
    [model] = served.own_models.search(repo, family="", sort="most downloads", open_only=False)
    size = format_bytes(model.size or 0)
    for text in (repo, "56,789", "1,234", "openrail", "Stable Diffusion 1 and 2", size):
        expect(found).to_contain_text(text)
    found.get_by_role("button", name="Add fox-painter").click()
    expect(found).to_contain_text("In the list")
    expect(row(models, "fox-painter")).to_contain_text("on disk")
    tables = tomllib.loads(served.settings.models_file.read_text())
    assert tables["fox-painter"]["name"] == repo
    models.get_by_role("tab", name="Create").click()
    models.locator("#model input").click()
    models.get_by_role("option", name="fox-painter").click()
    models.get_by_role("tab", name="Models").click()
    models.get_by_role("button", name="Use Built-in model").click()
    expect(models.get_by_role("tab", name="Create")).to_have_attribute("aria-selected", "true")
    expect(models.locator("#model input")).to_have_value(re.compile("Built-in model"))
    models.get_by_role("tab", name="Models").click()
    models.once("dialog", lambda dialog: dialog.accept())
    models.get_by_role("button", name="Remove fox-painter from the list").click()
    expect(row(models, "fox-painter")).to_have_count(0)
    assert "fox-painter" not in served.settings.models_file.read_text()


def test_the_search_says_what_does_not_run_or_is_not_there(models: Page, served_hub: LocalHub, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "CogVideoXPipeline"}')
    served_hub.add("bob/owl-video", tmp_path)
    search(models, "owl")
    found = models.locator(".model.found")
    expect(found).to_contain_text("This program does not run CogVideoXPipeline.")
    expect(found.get_by_role("button")).to_have_count(0)
    search(models, "zoe/nothing")
    expect(models.locator("#found-models")).to_contain_text("zoe/nothing does not exist on the Hub or is private.")
    search(models, "no such words")
    expect(models.locator("#found-models")).to_have_text("No matches")


@pytest.fixture
def gated_repo(served_hub: LocalHub, repo: str, tiny_full_folder: Path) -> Iterator[str]:
    """A model with more likes and fewer downloads than `repo`, for which access must be requested."""
    name = "bob/fox-drawer"
    served_hub.add(name, tiny_full_folder)
    served_hub.cards[name] = {"likes": 5678, "downloads": 9, "gated": "manual"}
    yield name
    del served_hub.repositories[name]


def test_the_results_are_sorted_and_filtered(models: Page, repo: str, gated_repo: str) -> None:
    search(models, "fox")
    found = models.locator(".model.found")
    expect(found.get_by_role("link")).to_have_text([repo, gated_repo])
    expect(found.nth(1)).to_contain_text("Gated: request access on its page and set HF_TOKEN first.")
    expect(found.first).not_to_contain_text("Gated")
    form = models.locator("#model-search")
    form.get_by_label("Sort").click()
    models.get_by_role("option", name="most likes").click()
    search(models, "fox")
    expect(found.get_by_role("link")).to_have_text([gated_repo, repo])
    form.get_by_label("Only models that need no access request").check()
    search(models, "fox")
    expect(found.get_by_role("link")).to_have_text([repo])
    form.get_by_label("Architecture").click()
    models.get_by_role("option", name="SDXL", exact=True).click()
    search(models, "fox")
    expect(models.locator("#found-models")).to_have_text("No matches")


def test_folders_and_files_are_added_by_their_path(
    models: Page, served: Studio, repo: str, tiny_folder: Path, tmp_path: Path
) -> None:
    for path in (tiny_folder, make_single_file("sd15", tmp_path / "painter.safetensors")):
        search(models, str(path))
        models.locator(".model.found").get_by_role("button", name=f"Add {path.name}").click()
        expect(row(models, path.name)).to_contain_text("on disk")
    added = {spec.name for key, spec in served.models.items() if served.own_models.is_own(key)}
    assert added == {str(tiny_folder), str(tmp_path / "painter.safetensors")}


def test_defaults_are_edited(models: Page, served: Studio) -> None:
    models.get_by_role("button", name="Defaults of Stable Diffusion 1.5").click()
    dialog = models.get_by_role("dialog")
    dialog.get_by_label("Steps").fill("12")
    dialog.get_by_label("Resolution").fill("448")
    dialog.get_by_role("button", name="Save").click()
    expect(dialog).to_have_count(0)
    expect(row(models, "Stable Diffusion 1.5")).to_contain_text("448 px")
    assert served.models["small"].num_inference_steps == 12
    models.get_by_role("button", name="Defaults of Stable Diffusion 1.5").click()
    dialog.get_by_role("button", name="Restore").click()
    expect(row(models, "Stable Diffusion 1.5")).to_contain_text("512 px")


def test_a_failed_download_keeps_the_licence_and_can_be_dismissed(
    models: Page, served: Studio, served_hub: LocalHub, repo: str
) -> None:
    search(models, repo)
    served_hub.faults[f"{repo}/unet/diffusion_pytorch_model.fp16.safetensors"] = Fault.damaged()
    models.locator(".model.found").get_by_role("button", name="Add fox-painter").click()
    added = row(models, "fox-painter")
    expect(added.get_by_role("alert")).to_contain_text("damaged")
    expect(added).to_contain_text("licence openrail")
    added.get_by_role("button", name="Dismiss").click()
    expect(added.get_by_role("alert")).to_have_count(0)
    expect(added).to_contain_text("licence openrail")


@pytest.fixture
def suggested(served: Studio, served_hub: LocalHub, tiny_full_folder: Path) -> Iterator[ModelStatus]:
    """The model that the starter card suggests, on the Hub and not yet downloaded."""
    status = served.general_model()
    assert status is not None
    served_hub.add(status.spec.name, tiny_full_folder)
    yield status
    served.delete_model(status.key)
    del served_hub.repositories[status.spec.name]


def test_the_starter_card_downloads_a_model_and_selects_it(
    page: Page, served_hub: LocalHub, suggested: ModelStatus
) -> None:
    card = page.locator("#starter-card")
    expect(card).to_contain_text("Drawing with the built-in model. For real photos and art get")
    expect(card).to_contain_text(
        re.compile(rf"\({suggested.spec.size}, about [\d.]+ (s|min) per image on this computer\)")
    )
    button = card.get_by_role("button", name=f"Download {suggested.spec.title}")
    served_hub.faults[f"{suggested.spec.name}/unet/diffusion_pytorch_model.fp16.safetensors"] = Fault.stalls(after=1)
    button.click()
    expect(card.get_by_role("progressbar")).to_be_visible()
    expect(card).to_contain_text(re.compile(r"Downloading .+ of "))
    card.get_by_role("button", name="Cancel").click()
    expect(button).to_be_visible()
    served_hub.faults.clear()
    button.click()
    expect(page.locator("#model input")).to_have_value(re.compile(suggested.spec.title), timeout=60_000)
    expect(card.locator("section")).to_have_count(0)
    page.reload()
    expect(page.locator("#current-result .result")).to_be_visible()
    expect(card.locator("section")).to_have_count(0)


def test_the_starter_card_can_be_dismissed(page: Page) -> None:
    page.locator("#starter-card").get_by_role("button", name="Not now").click()
    expect(page.locator("#starter-card section")).to_have_count(0)
    page.reload()
    page.locator("#recent").wait_for(state="attached")
    page.wait_for_timeout(1000)
    expect(page.locator("#starter-card section")).to_have_count(0)


def test_the_starter_card_goes_once_a_model_was_downloaded_elsewhere(
    page: Page, served: Studio, suggested: ModelStatus
) -> None:
    card = page.locator("#starter-card section")
    expect(card).to_have_count(1)
    assert wait_until_finished(served.download_model(suggested.key, "local")) == "done"
    page.get_by_role("tab", name="Models").click()
    page.get_by_role("tab", name="Create").click()
    expect(card).to_have_count(0)


def test_a_public_server_offers_neither_search_nor_changes(tmp_path: Path) -> None:
    from canvas.settings import Settings
    from canvas.ui.app import build_page

    with Studio(Settings(data_dir=tmp_path, cache_dir=tmp_path, public=True)) as studio:
        page = build_page(studio)
    assert not [block for block in page.blocks.values() if getattr(block, "elem_id", "") == "model-search"]
    card = next(block for block in page.blocks.values() if getattr(block, "elem_id", "") == "starter-card")
    events = page.config["dependencies"]
    assert not [event for event in events if card._id in event["outputs"]]
