"""The section "Guide by an image" in a real browser, with random weights for the built-in model and for each family."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from playwright.sync_api import Locator, Page, expect

from canvas import GenerationRequest, Studio
from canvas.guidance import ControlImage, ReferenceImage
from canvas.request import GeneratedImage
from canvas.ui.guidance_panel import GuidancePanel
from tests.tiny_guidance import (
    FAMILIES,
    GuidedModel,
    guided_models,
    make_drawing,
    make_photo,
    pixels_of,
    starter_controlnet,
)
from tests.ui.test_create_tab import expect_result, open_settings, select_model


@pytest.fixture(scope="module")
def controlled(served: Studio) -> Iterator[Studio]:
    """The served studio with a ControlNet `mine`."""
    with starter_controlnet(served):
        yield served


@pytest.fixture(scope="module")
def families(controlled: Studio) -> Iterator[dict[str, GuidedModel]]:
    with guided_models(controlled, controlled.hub) as models:  # type: ignore[attr-defined]
        yield models


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    make_photo((160, 128)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_the_download_of_the_usual_adapter_is_shown(studio: Studio) -> None:
    with gr.Blocks():
        panel = GuidancePanel(studio, "create")
    assert "GB download with the first image" in panel._render_needs(ReferenceImage("a.png"), "dreamshaper")
    assert panel._render_needs(ReferenceImage("a.png", model="mine"), "dreamshaper") == ""
    assert "no usual IP-Adapter" in panel._render_needs(ReferenceImage("a.png"), "starter")


def open_section(page: Page) -> Locator:
    open_settings(page)
    section = page.locator("#create-form .guidance-panel")
    section.get_by_role("button", name="Guide by an image").click()
    return section


def choose(section: Locator, path: Path, kind: str = "control") -> None:
    section.locator(f"#create-{kind}-image input[type=file]").set_input_files(path)
    expect(section.locator(f"#create-{kind}-image img")).to_be_visible()


def preview(page: Page) -> Locator:
    return page.locator("#create-control-preview")


def select(page: Page, field: str, option: str) -> None:
    page.locator(f"#{field} input").click()
    page.get_by_role("option", name=option, exact=True).click()


def generated(page: Page, served: Studio, prompt: str, width: int = 256) -> GeneratedImage:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_role("button", name="Generate", exact=True).click()
    expect_result(page, prompt, width)
    return served.recent("local", 1)[0]


def test_the_edges_are_shown_before_and_guide_the_image(page: Page, controlled: Studio, photo: Path) -> None:
    section = open_section(page)
    choose(section, photo)
    shown = preview(page)
    expect(shown).to_contain_text("Canny edges: detected in the image.")
    white = shown.locator("img").evaluate(
        """image => {
            const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight).getContext("2d");
            canvas.drawImage(image, 0, 0);
            const pixels = canvas.getImageData(0, 0, image.naturalWidth, image.naturalHeight).data;
            return pixels.filter((value, index) => index % 4 === 0 && value > 127).length / (pixels.length / 4);
        }"""
    )
    assert 0 < white < 0.3, "white edges on black"
    expect(shown).to_contain_text("There is no usual ControlNet of the kind canny for the model starter.")
    select(page, "create-controlnet", "mine")
    expect(shown.locator(".error")).to_have_count(0)
    expect(page.locator("#summary")).to_contain_text("guided by 1 image")
    image = generated(page, controlled, "a guided boat")
    [item] = image.request.control_images
    assert item == ControlImage(item.image, "canny", detect=True, model="mine")
    [plain] = controlled.generate(replace(image.request, control_images=()))
    assert controlled.image_path(plain.filename).read_bytes() != controlled.image_path(image.filename).read_bytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_images_guide_every_family(
    page: Page, controlled: Studio, families: dict[str, GuidedModel], photo: Path, family: str
) -> None:
    model, section = families[family], open_section(page)
    select_model(page, model.key)
    if model.control:
        choose(section, photo)
        select(page, "create-controlnet", model.key)
    else:
        choose(section, photo, "reference")
    expect(page.locator("#summary")).to_contain_text("64 × 64 · guided by 1 image")
    image = generated(page, controlled, f"the boat of {family}", 64)
    name = next(item.image for item in (*image.request.control_images, *image.request.reference_images))
    control = ControlImage(name, "canny", detect=True, model=model.key)
    assert image.request.control_images == ((control,) if model.control else ())
    assert image.request.reference_images == (() if model.control else (ReferenceImage(name),))
    plain = replace(image.request, control_images=(), reference_images=())
    assert pixels_of(controlled, image) != pixels_of(controlled, *controlled.generate(plain))
    # With an IP-Adapter, which the page takes from reused settings
    guides: dict[str, Any] = {**image.request.to_dict(), **model.guides(name)}
    [first] = controlled.generate(GenerationRequest.from_dict({**guides, "prompt": f"the boat of {family} again"}))
    reuse(page, first.request.prompt, 64)
    number = len(first.request.control_images) + len(first.request.reference_images)
    expect(page.locator("#summary")).to_contain_text(f"guided by {number} image")
    again = generate_again(page, controlled, first)
    assert again.request == first.request
    assert pixels_of(controlled, again) == pixels_of(controlled, first)


def test_a_drawing_is_recognized_and_what_cannot_be_used_is_explained(
    page: Page, controlled: Studio, tmp_path: Path, photo: Path
) -> None:
    make_drawing((160, 128)).save(tmp_path / "drawing.png")
    section = open_section(page)
    choose(section, tmp_path / "drawing.png")
    expect(preview(page)).to_contain_text("Line art: the image is used as it is.")
    section.get_by_role("button", name="Remove Image").click()
    expect(preview(page)).to_be_empty()
    choose(section, photo)
    select(page, "create-control-kind", "Depth")
    expect(preview(page).locator(".error").first).to_contain_text("Depth")
    select(page, "create-control-kind", "Canny edges")
    expect(preview(page)).to_contain_text("Canny edges: detected in the image.")
    choose(section, photo, "reference")
    needs = page.locator("#create-reference-status")
    expect(needs.locator(".error")).to_contain_text("for which there is no usual IP-Adapter")
    model = page.locator("#create-controlnet input")
    model.fill("nothing")
    model.press("Enter")
    page.get_by_label("Prompt", exact=True).fill("a boat")
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("ControlNet nothing not found.")
    select_model(page, "DreamShaper 8")
    expect(needs).to_contain_text("download with the first image")
    section.locator("#create-reference-image").get_by_role("button", name="Remove Image").click()
    expect(needs).to_be_empty()


def reuse(page: Page, prompt: str, width: int = 256) -> None:
    page.get_by_role("button", name=f"Show: {prompt}").first.click()
    expect_result(page, prompt, width)
    page.locator(".image-actions").get_by_role("button", name="Reuse settings and seed").click()


def generate_again(page: Page, served: Studio, first: GeneratedImage) -> GeneratedImage:
    """The image that the form generates after that of the reused settings."""
    page.get_by_role("button", name="Generate", exact=True).click()
    page.locator(f'.result-images [data-action="use_settings"]:not([data-image="{first.id}"])').wait_for()
    return served.recent("local", 1)[0]


def test_reused_settings_bring_back_the_images(page: Page, controlled: Studio) -> None:
    names = [controlled.inputs.upload(make_photo((size, 128))).name for size in (160, 192)]
    weights = zip(names, (0.4, 0.8), strict=True)
    items = tuple(ControlImage(name, "canny", weight, 0.1, 0.75, model="mine") for name, weight in weights)
    request = GenerationRequest("a reused boat", control_images=items, seed=3, num_inference_steps=4)
    [first] = controlled.generate(request)
    reuse(page, "a reused boat")
    expect(page.locator("#summary")).to_contain_text("guided by 2 images")
    open_settings(page)
    section = page.locator("#create-form .guidance-panel")
    expect(section.locator("#create-control-image img")).to_be_visible()
    expect(preview(page)).to_contain_text("Canny edges: detected in the image.")
    expect(page.locator("#create-controlnet input")).to_have_value("mine")
    expect(section.locator("#create-guidance-added li")).to_have_text([re.compile("Control image: Canny edges · 0.4")])
    assert generate_again(page, controlled, first).request == first.request
    section.get_by_role("button", name="Add another image").first.click()
    expect(section.locator("#create-guidance-added li")).to_have_count(2)
    expect(section.locator("#create-control-image img")).to_have_count(0)
    section.get_by_role("button", name="Remove: Control image: Canny edges · 0.4").click()
    expect(page.locator("#summary")).to_contain_text("guided by 1 image")
    [plain] = controlled.generate(GenerationRequest("a plain boat", num_inference_steps=1))
    assert plain.request.control_images == ()
    reuse(page, "a plain boat")
    expect(page.locator("#summary")).not_to_contain_text("guided by")


def test_a_note_says_which_images_cannot_be_reused(page: Page, controlled: Studio) -> None:
    kept, lost = (controlled.inputs.upload(make_photo((size, 96))).name for size in (128, 144))
    [image] = controlled.generate(GenerationRequest("a lonely boat", num_inference_steps=1))
    adapter = controlled.usual_adapter("style", "dreamshaper")
    references = (ReferenceImage(kept, 0.5, "style", adapter), ReferenceImage(lost))
    request = replace(image.request, prompt="a lost boat", model_key="dreamshaper", reference_images=references)
    pixels = make_photo((256, 256))
    controlled.image_repository.save(replace(image, request=request, id=None, filename="", image=pixels))
    (controlled.settings.uploads_dir / lost).unlink()
    reuse(page, "a lost boat")
    expect(page.get_by_test_id("toast-body")).to_contain_text("1 image that guided this one cannot be used again")
    expect(page.locator("#summary")).to_contain_text("guided by 1 image")
    open_settings(page)
    expect(page.locator("#create-reference-image img")).to_be_visible()
    expect(page.get_by_role("radio", name="Style", exact=True)).to_be_checked()
    # The usual adapter is not kept by name: it would not fit another model
    expect(page.locator("#create-reference-status")).to_contain_text("download with the first image")
