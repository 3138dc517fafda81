"""Changing pictures in a real browser."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from diffusers import UNet2DConditionModel
from PIL import Image, ImageDraw
from playwright.sync_api import Page, expect

from canvas import MODELS, GenerationRequest, Studio
from canvas.request import GeneratedImage
from tests.models.test_loras import make_lora
from tests.ui.conftest import PATIENCE


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    picture = Image.new("RGB", (256, 256), "#4477bb")
    ImageDraw.Draw(picture).ellipse((80, 60, 180, 200), fill="#dd6622")
    picture.save(tmp_path / "scene.png")
    return tmp_path / "scene.png"


def open_tab(page: Page) -> None:
    page.get_by_role("tab", name="Edit").click()
    # Gradio's editor is drawn when its tab is first seen, and takes pictures only then.
    expect(page.locator("#edit-picture canvas").first).to_be_visible()
    expect(page.get_by_text("Upload an image or select")).to_be_visible()


def drop(page: Page, path: Path) -> None:
    page.locator("#edit-picture input[type=file]").first.set_input_files(path)
    expect(page.get_by_text("Upload an image or select")).to_have_count(0)


def choose(page: Page, what: str, prompt: str) -> None:
    page.get_by_role("radio", name=what, exact=True).check()
    page.get_by_label("What to draw").fill(prompt)


def make(page: Page, served: Studio, count: int) -> list[GeneratedImage]:
    """Press the button; the pictures that come of it."""
    before = {image.id for image in served.recent()}
    shown = page.locator("#edit-result .stage-picture")
    shown.evaluate_all("all => all.forEach(each => each.classList.add('earlier'))")
    page.get_by_role("button", name="Make", exact=True).click()
    expect(page.locator("#edit-result .stage-picture:not(.earlier) img").first).to_be_visible()
    new = [image for image in served.recent() if image.id not in before]
    assert len(new) == count
    return new


def pixels(served: Studio, image: GeneratedImage) -> np.ndarray:  # type: ignore[type-arg]
    with Image.open(served.image_path(image.filename)) as picture:
        return np.asarray(picture.convert("RGB"), int)


def test_drop_a_picture_and_get_four_variations(page: Page, served: Studio, scene: Path) -> None:
    open_tab(page)
    drop(page, scene)
    choose(page, "Variations", "a fox in the snow")
    page.get_by_role("radio", name="Balanced", exact=True).and_(
        page.locator("#edit-form input")
    ).check()
    four = make(page, served, 4)
    assert {image.request.preset for image in four} == {"balanced"}
    assert {image.task for image in four} == {"image_to_image"}
    assert len({pixels(served, image).tobytes() for image in four}) == 4
    with Image.open(scene) as original:
        handed = served.inputs.open_image(four[0].request.image or "", "local").convert("RGB")
        assert handed.tobytes() == original.tobytes()


def test_paint_a_mask_and_repaint(page: Page, served: Studio, scene: Path) -> None:
    open_tab(page)
    drop(page, scene)
    choose(page, "Repaint", "a red boat")
    canvas = page.locator("#edit-picture canvas").first
    box = canvas.bounding_box()
    assert box is not None
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 20, middle[1] + 12, steps=6)
    page.mouse.up()
    [image] = make(page, served, 1)
    assert image.task == "inpaint"
    mask = served.inputs.open_image(image.request.mask_image or "", "local")
    assert mask.size == (256, 256)
    with Image.open(scene) as original:
        changed = (pixels(served, image) != np.asarray(original, int)).any(-1)
    masked = np.asarray(mask.convert("L")) >= 128
    assert masked.any()
    assert not masked.all()
    assert changed[masked].any()
    assert not changed[~masked].any()


def test_enlarge_from_the_gallery_links_parent_and_child(page: Page, served: Studio) -> None:
    [parent] = served.generate(GenerationRequest("a whale", seed=3, num_inference_steps=2))
    open_tab(page)
    page.locator("#edit-strip").get_by_role("button", name="Show: a whale").first.click()
    expect(page.get_by_label("What to draw")).to_have_value("a whale")
    expect(page.locator("#edit-picture canvas").first).to_be_visible()
    page.get_by_role("radio", name="Enlarge", exact=True).check()
    [child] = make(page, served, 1)
    assert (child.task, child.parent_id) == ("upscale", parent.id)
    assert pixels(served, child).shape == (512, 512, 3)
    page.get_by_role("tab", name="Gallery").click()
    page.get_by_role("button", name="Open: a whale").first.click()
    expect(page.get_by_role("dialog")).to_contain_text("512 × 512")
    page.get_by_role("button", name="Made from this picture").click()
    expect(page.get_by_role("dialog")).to_contain_text("256 × 256")


def test_other_seeds_of_an_own_picture(page: Page, served: Studio) -> None:
    [parent] = served.generate(GenerationRequest("a pear", seed=5, num_inference_steps=2))
    open_tab(page)
    page.locator("#edit-strip").get_by_role("button", name="Show: a pear").first.click()
    expect(page.get_by_label("What to draw")).to_have_value("a pear")
    choose(page, "Other seeds", "a pear")
    expect(page.get_by_label("number input for Strength")).to_have_value("0.3")
    four = make(page, served, 4)
    assert {(image.task, image.request.seed) for image in four} == {("text_to_image", 5)}
    assert {image.request.variation_strength for image in four} == {0.3}
    assert len({image.request.variation_seed for image in four}) == 4
    assert len({pixels(served, image).tobytes() for image in (*four, parent)}) == 5

    page.get_by_role("button", name="Show picture 2 of 4").click()
    page.get_by_role("button", name="Go on with this one").click()
    page.get_by_role("radio", name="Enlarge", exact=True).check()
    [child] = make(page, served, 1)
    assert child.parent_id in {image.id for image in four}


def test_the_fit_is_shown_before_and_the_form_outlives_a_reload(
    page: Page, served: Studio, scene: Path
) -> None:
    open_tab(page)
    drop(page, scene)
    choose(page, "Variations", "a blue door")
    page.get_by_role("button", name="Shape").click()
    page.get_by_label("Shape of the result").click()
    page.get_by_role("option", name="16:9").click()
    page.get_by_role("radio", name="Pad", exact=True).check()
    expect(page.locator("#edit-fit")).to_contain_text("of 256 × 256, filled up")
    shown = page.locator("#edit-fit img")
    assert shown.evaluate("image => image.naturalWidth > 1.5 * image.naturalHeight")
    saved = "JSON.stringify(localStorage).includes('magic-canvas-edit')"
    page.wait_for_function(saved)
    page.reload()
    page.get_by_role("tab", name="Edit").click()
    expect(page.get_by_label("What to draw")).to_have_value("a blue door")
    page.get_by_role("button", name="Shape").click()
    expect(page.get_by_label("Shape of the result")).to_have_value("16:9")
    open_tab(page)
    drop(page, scene)
    [made, *_] = make(page, served, 4)
    assert (made.request.resize_mode, made.request.width) == ("pad", 344)


def test_a_long_one_is_stopped(page: Page, served: Studio, tmp_path: Path) -> None:
    Image.radial_gradient("L").resize((640, 640)).save(tmp_path / "large.png")
    open_tab(page)
    drop(page, tmp_path / "large.png")
    page.get_by_role("radio", name="Enlarge", exact=True).check()
    page.get_by_role("radio", name="4", exact=True).check()
    page.get_by_label("How", exact=True).click()
    page.get_by_role("option", name="With new detail").click()
    expect(page.get_by_label("What to draw")).to_be_visible()
    page.get_by_role("button", name="Make", exact=True).click()
    # By a key, as the button moves while the picture grows.
    page.locator("#edit-stop").press("Enter", timeout=3 * PATIENCE)
    expect(page.get_by_role("button", name="Make", exact=True)).to_be_visible()
    expect(page.locator("#edit-stop")).to_have_count(0)
    job = served.jobs("local")[-1]
    assert (job.status, job.images) == ("cancelled", [])


def test_only_what_belongs_to_the_task_is_shown(page: Page) -> None:
    open_tab(page)
    for what, shown, hidden in (
        ("Enlarge", "Times as large", "What to draw"),
        ("Extend", "Extend left", "Strength"),
        ("Repaint", "Soft edge", "How many"),
    ):
        page.get_by_role("radio", name=what, exact=True).check()
        form = page.locator("#edit-form")
        expect(form.get_by_text(shown, exact=True).first).to_be_visible()
        expect(form.get_by_text(hidden, exact=True)).to_have_count(0)


def test_the_words_of_a_lora_are_offered_and_put_into_the_prompt(
    page: Page, served: Studio
) -> None:
    unet = UNet2DConditionModel.from_pretrained(MODELS["starter"].name, subfolder="unet")
    served.settings.loras_dir.mkdir(exist_ok=True)
    words = {"modelspec.trigger_phrase": "sks fox, winter"}
    make_lora(served.settings.loras_dir / "frost.safetensors", unet, **words)
    open_tab(page)
    page.get_by_label("What to draw").fill("a hill")
    form = page.locator("#edit-form")
    form.get_by_role("button", name="LoRA").click()
    page.locator("#edit-lora input").click()
    page.get_by_role("option", name="frost").click()
    form.get_by_role("button", name="sks fox").click()
    expect(page.get_by_label("What to draw")).to_have_value("a hill, sks fox")
    form.get_by_role("button", name="Add to the prompt").click()
    expect(page.get_by_label("What to draw")).to_have_value("a hill, sks fox <lora:frost:1>")


def test_pictures_come_from_disk_clipboard_and_camera(page: Page) -> None:
    open_tab(page)
    for source in ("Upload", "Paste", "Webcam"):
        button = page.locator("#edit-picture").get_by_role("button", name=source, exact=True)
        expect(button).to_be_visible()


def test_without_a_picture_or_paint_it_says_what_to_do(
    page: Page, served: Studio, scene: Path
) -> None:
    open_tab(page)
    page.get_by_label("What to draw").fill("a fox")
    page.get_by_role("button", name="Make", exact=True).click()
    expect(page.get_by_text("Choose a picture first")).to_be_visible()
    drop(page, scene)
    page.get_by_role("radio", name="Repaint", exact=True).check()
    page.get_by_role("button", name="Make", exact=True).click()
    expect(page.get_by_text("Paint over what is to be repainted first")).to_be_visible()
    assert all(job.finished for job in served.jobs("local"))


def test_a_file_that_is_no_picture_and_an_animation_are_told(page: Page, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    first, second = (Image.new("RGB", (64, 64), color) for color in ("red", "blue"))
    first.save(tmp_path / "moving.gif", save_all=True, append_images=[second])
    open_tab(page)
    page.locator("#edit-picture input[type=file]").first.set_input_files(tmp_path / "text.png")
    expect(page.get_by_text("This file cannot be used")).to_be_visible()
    drop(page, tmp_path / "moving.gif")
    expect(page.get_by_text("the first frame is taken")).to_be_visible()
    expect(page.get_by_text("This file cannot be used")).to_be_hidden()
