"""The Edit tab in a real browser."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
from diffusers import UNet2DConditionModel
from PIL import Image, ImageDraw
from playwright.sync_api import Locator, Page, expect

from canvas import MODELS, GenerationRequest, Studio
from canvas.request import LOCAL_OWNER, GeneratedImage
from canvas.ui.edit_tab import DRAWING_SECONDS, EditTab
from tests.app_server import save_image, slow_down_steps
from tests.conftest import make_spec
from tests.models.test_loras import make_lora
from tests.tiny_families import make_tiny
from tests.ui.conftest import TIMEOUT


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    image = Image.new("RGB", (256, 256), "#4477bb")
    ImageDraw.Draw(image).ellipse((80, 60, 180, 200), fill="#dd6622")
    image.save(tmp_path / "scene.png")
    return tmp_path / "scene.png"


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A file of 900 x 600 pixels, none of which is like its neighbours."""
    Image.effect_noise((900, 600), 40).convert("RGB").save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_the_editor_shows_a_stored_image_until_it_is_changed(studio: Studio) -> None:
    with gr.Blocks(analytics_enabled=False):
        tab = EditTab(studio)

    def shown(background: Image.Image | None, source: str, replaced: tuple[str, float] = ("", 0.0)) -> Any:
        drawing = {"background": background, "layers": ["layer"], "composite": background}
        values = {tab._drawing: drawing, tab._source: source, tab._replaced: replaced}
        image, name, _ = tab._edited_image(values, LOCAL_OWNER)
        return image and image.tobytes(), name

    former, current = (save_image(studio, LOCAL_OWNER).filename for _ in range(2))
    before, image = (Image.open(studio.image_path(name)).convert("RGB") for name in (former, current))
    other, now = Image.new("RGB", (128, 128)), time.time()
    assert shown(image, current) == (image.tobytes(), current)
    assert shown(None, current) == shown(None, "") == (None, "")
    assert shown(other, "") == shown(other, current) == (other.tobytes(), "")
    # Until the browser has drawn the image, it sends the one before.
    assert shown(before, current, (former, now)) == (image.tobytes(), current)
    assert shown(before, current, (former, now - DRAWING_SECONDS)) == (before.tobytes(), "")
    assert shown(other, current, (former, now)) == (other.tobytes(), "")


def open_tab(page: Page) -> None:
    page.get_by_role("tab", name="Edit").click()
    # Gradio's editor is mounted when its tab is first selected, and accepts images only then.
    expect(page.locator("#edit-image canvas").first).to_be_visible()
    expect(page.get_by_text("Upload an image or select")).to_be_visible()


def drop(page: Page, path: Path) -> None:
    page.locator("#edit-image input[type=file]").first.set_input_files(path)
    expect(page.get_by_text("Upload an image or select")).to_have_count(0)


def prompt_field(page: Page) -> Locator:
    return page.locator("#edit-prompt textarea")


def choose(page: Page, operation: str, prompt: str) -> None:
    page.get_by_role("radio", name=operation, exact=True).check()
    prompt_field(page).fill(prompt)


def generate(page: Page, served: Studio, count: int) -> list[GeneratedImage]:
    """Click the button; returns the new images."""
    before = {image.id for image in served.recent()}
    shown = page.locator("#edit-result .result-images")
    shown.evaluate_all("all => all.forEach(each => each.classList.add('old'))")
    page.locator("#edit-generate").click()
    expect(page.locator("#edit-result .result-images:not(.old) img").first).to_be_visible()
    new = [image for image in served.recent() if image.id not in before]
    assert len(new) == count
    return new


def pixels(served: Studio, image: GeneratedImage) -> np.ndarray:  # type: ignore[type-arg]
    with Image.open(served.image_path(image.filename)) as file:
        return np.asarray(file.convert("RGB"), int)


def test_image_to_image_of_an_upload_gives_four_images(page: Page, served: Studio, scene: Path) -> None:
    open_tab(page)
    drop(page, scene)
    choose(page, "Image to image", "a fox in the snow")
    page.get_by_role("radio", name="Balanced", exact=True).and_(page.locator("#edit-form input")).check()
    four = generate(page, served, 4)
    assert {image.request.preset for image in four} == {"balanced"}
    assert {image.task for image in four} == {"image_to_image"}
    assert len({pixels(served, image).tobytes() for image in four}) == 4
    with Image.open(scene) as original:
        upload = served.inputs.open_image(four[0].request.image or "", "local").convert("RGB")
        assert upload.tobytes() == original.tobytes()


def test_inpaint_changes_only_the_painted_area(page: Page, served: Studio, photo: Path) -> None:
    open_tab(page)
    drop(page, photo)
    choose(page, "Inpaint", "a red boat")
    canvas = page.locator("#edit-image canvas").first
    box = canvas.bounding_box()
    assert box is not None
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 20, middle[1] + 12, steps=6)
    page.mouse.up()
    [image] = generate(page, served, 1)
    assert image.task == "inpaint"
    mask = served.inputs.open_image(image.request.mask_image or "", "local")
    assert mask.size == (900, 600)
    with Image.open(photo) as original:
        changed = (pixels(served, image) != np.asarray(original, int)).any(-1)
    masked = np.asarray(mask.convert("L")) >= 128
    assert masked.any()
    assert not masked.all()
    assert changed[masked].any()
    assert not changed[~masked].any()


def test_upscale_links_the_result_to_its_source(page: Page, served: Studio) -> None:
    [parent] = served.generate(GenerationRequest("a whale", seed=3, num_inference_steps=2))
    open_tab(page)
    page.locator("#edit-recent").get_by_role("button", name="Show: a whale").first.click()
    expect(prompt_field(page)).to_have_value("a whale")
    expect(page.locator("#edit-image canvas").first).to_be_visible()
    page.get_by_role("radio", name="Upscale", exact=True).check()
    [child] = generate(page, served, 1)
    assert (child.task, child.parent_id) == ("upscale", parent.id)
    assert pixels(served, child).shape == (512, 512, 3)
    page.get_by_role("tab", name="Gallery").click()
    page.get_by_role("button", name="Open: a whale").first.click()
    expect(page.get_by_role("dialog")).to_contain_text("512 × 512")
    page.get_by_role("button", name="Open the source image").click()
    expect(page.get_by_role("dialog")).to_contain_text("256 × 256")


def test_seed_variation_of_an_own_image(page: Page, served: Studio) -> None:
    [parent] = served.generate(GenerationRequest("a pear", seed=5, num_inference_steps=2))
    open_tab(page)
    page.locator("#edit-recent").get_by_role("button", name="Show: a pear").first.click()
    expect(prompt_field(page)).to_have_value("a pear")
    choose(page, "Seed variation", "a pear")
    expect(page.get_by_label("number input for Strength")).to_have_value("0.3")
    four = generate(page, served, 4)
    assert {(image.task, image.request.seed) for image in four} == {("text_to_image", 5)}
    assert {image.request.variation_strength for image in four} == {0.3}
    assert len({image.request.variation_seed for image in four}) == 4
    assert len({pixels(served, image).tobytes() for image in (*four, parent)}) == 5

    page.locator("#edit-result .action-menu summary").nth(1).click()
    page.locator("#edit-result .action-menu[open]").get_by_role("button", name="Keep editing this one").click()
    page.get_by_role("radio", name="Upscale", exact=True).check()
    [child] = generate(page, served, 1)
    assert child.parent_id in {image.id for image in four}


def test_the_fit_is_previewed_and_the_form_survives_a_reload(page: Page, served: Studio, scene: Path) -> None:
    open_tab(page)
    drop(page, scene)
    choose(page, "Image to image", "a blue door")
    page.get_by_role("button", name="Size and aspect ratio").click()
    page.locator("#edit-form").get_by_label("Aspect ratio").click()
    page.get_by_role("option", name="16:9").click()
    page.get_by_role("radio", name="Pad", exact=True).check()
    expect(page.locator("#edit-fit-preview")).to_contain_text("256 × 256 padded to")
    shown = page.locator("#edit-fit-preview img")
    assert shown.evaluate("image => image.naturalWidth > 1.5 * image.naturalHeight")
    saved = "JSON.stringify(localStorage).includes('magic-canvas-edit')"
    page.wait_for_function(saved)
    page.reload()
    page.get_by_role("tab", name="Edit").click()
    expect(prompt_field(page)).to_have_value("a blue door")
    page.get_by_role("button", name="Size and aspect ratio").click()
    expect(page.locator("#edit-form").get_by_label("Aspect ratio")).to_have_value("16:9")
    open_tab(page)
    drop(page, scene)
    [image, *_] = generate(page, served, 4)
    assert (image.request.resize_mode, image.request.width) == ("pad", 344)


@pytest.fixture
def klein(served: Studio, tmp_path: Path) -> Iterator[str]:
    """The key of a tiny FLUX.2-klein."""
    served.warm_up(wait=True)  # imports diffusers in another thread
    spec = make_spec(str(make_tiny("flux2-klein", tmp_path / "klein")), "tiny-klein")
    served.models["tiny-klein"] = replace(spec, type="auto", title="Tiny klein")
    yield "tiny-klein"
    served.unload_model("tiny-klein")
    del served.models["tiny-klein"]


def test_edits_by_instruction_come_first_where_a_model_follows_them(klein: str, page: Page, served: Studio) -> None:
    [parent] = served.generate(GenerationRequest("a red kite", seed=3, num_inference_steps=1))
    page.get_by_role("button", name="Show: a red kite").first.click()
    expect(page.locator(".result-details .prompt")).to_have_text("a red kite")
    page.locator(".image-actions").get_by_role("button", name="Edit", exact=True).click()
    form = page.locator("#edit-form")
    expect(page.get_by_role("radio", name="Edit by instruction")).to_be_checked()
    expect(form.get_by_role("radio").first).to_have_accessible_name("Edit by instruction")
    expect(form.get_by_label("Model", exact=True)).to_have_value(re.compile("Tiny klein"))
    expect(form.get_by_text("Strength", exact=True)).to_have_count(0)
    expect(prompt_field(page)).to_have_value("")
    expect(page.locator("#edit-image canvas").first).to_be_visible()
    prompt_field(page).fill("make it night")
    form.get_by_label("number input for Number of images").fill("1")
    [image] = generate(page, served, 1)
    assert (image.request.prompt, image.request.model_key, image.task) == ("make it night", klein, "image_to_image")
    assert image.parent_id == parent.id
    assert not any("strength" in note for note in image.notes)
    page.get_by_text("Before and after").click()
    compared = page.locator(".before-after")
    sources = [each.get_attribute("src") for each in compared.locator("img").all()]
    assert sources == [f"pictures/{parent.filename}", f"pictures/{image.filename}"]
    slider = compared.get_by_role("slider", name="Comparison slider position")
    slider.press("ArrowRight")
    expect(compared.locator(".compare-slider")).to_have_attribute("style", "--split: 51%;")
    form.get_by_role("radio", name="Image to image").check()
    expect(form.get_by_text("Strength", exact=True).first).to_be_visible()


def test_the_progress_comes_into_view(page: Page, served: Studio, scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_down_steps(monkeypatch, 1.0)
    page.set_viewport_size({"width": 1280, "height": 700})
    open_tab(page)
    drop(page, scene)
    choose(page, "Image to image", "a fox in the snow")
    page.evaluate("scrollTo(0, 0)")
    page.locator("#edit-generate").click()
    expect(page.locator("#edit-result .result-progress")).to_be_in_viewport(ratio=0.9)
    page.locator("#edit-stop").click()


def test_stop_cancels_the_job(page: Page, served: Studio, tmp_path: Path) -> None:
    Image.radial_gradient("L").resize((640, 640)).save(tmp_path / "large.png")
    open_tab(page)
    drop(page, tmp_path / "large.png")
    page.get_by_role("radio", name="Upscale", exact=True).check()
    page.get_by_role("radio", name="4", exact=True).check()
    page.get_by_label("Upscaler", exact=True).click()
    page.get_by_role("option", name="Diffusion model").click()
    expect(prompt_field(page)).to_be_visible()
    page.locator("#edit-generate").click()
    # With a key, as the button moves while the result grows.
    page.locator("#edit-stop").press("Enter", timeout=3 * TIMEOUT)
    expect(page.locator("#edit-generate")).to_be_visible()
    expect(page.locator("#edit-stop")).to_have_count(0)
    job = served.jobs("local")[-1]
    assert (job.status, job.images) == ("cancelled", [])


def test_only_the_fields_of_the_operation_are_shown(page: Page) -> None:
    open_tab(page)
    expect(page.locator("#edit-image")).to_contain_text("To inpaint, paint over the area to change.")
    for operation, description, shown, hidden in (
        ("Image to image", "Lower strength stays closer to the original.", "Speed", "Scale"),
        ("Seed variation", "Varies one of your images by blending its seed with new ones.", "Strength", "Model"),
        ("Upscale", "Increases the resolution of the image.", "Scale", "Prompt"),
        ("Outpaint", "Adds this many pixels on each side.", "Left", "Strength"),
        ("Inpaint", "The rest stays unchanged.", "Mask blur", "Number of images"),
    ):
        page.get_by_role("radio", name=operation, exact=True).check()
        form = page.locator("#edit-form")
        is_verb = operation in ("Upscale", "Outpaint", "Inpaint")
        expect(page.locator("#edit-generate")).to_have_text(operation if is_verb else "Generate")
        expect(form.get_by_text(description)).to_be_visible()
        expect(form.get_by_text(shown, exact=True).first).to_be_visible()
        expect(form.get_by_text(hidden, exact=True)).to_have_count(0)


def test_a_lora_and_its_trigger_words_are_added_to_the_prompt(page: Page, served: Studio) -> None:
    unet = UNet2DConditionModel.from_pretrained(MODELS["starter"].name, subfolder="unet")
    served.settings.loras_dir.mkdir(exist_ok=True)
    metadata = {"modelspec.trigger_phrase": "sks fox, winter"}
    make_lora(served.settings.loras_dir / "frost.safetensors", unet, **metadata)
    open_tab(page)
    prompt_field(page).fill("a hill")
    form = page.locator("#edit-form")
    form.get_by_role("button", name="LoRA").click()
    page.locator("#edit-lora input").click()
    page.get_by_role("option", name="frost").click()
    form.get_by_role("button", name="sks fox").click()
    expect(prompt_field(page)).to_have_value("a hill, sks fox")
    form.get_by_role("button", name="Add to prompt").click()
    expect(prompt_field(page)).to_have_value("a hill, sks fox <lora:frost:1>")


def test_images_can_come_from_disk_clipboard_and_camera(page: Page) -> None:
    open_tab(page)
    for source in ("Upload", "Paste", "Webcam"):
        button = page.locator("#edit-image").get_by_role("button", name=source, exact=True)
        expect(button).to_be_visible()


def test_a_missing_image_mask_or_side_is_explained(page: Page, served: Studio, scene: Path) -> None:
    open_tab(page)
    page.locator("#edit-generate").click()
    expect(page.get_by_text("Write a prompt first.")).to_be_visible()
    prompt_field(page).fill("a fox")
    page.locator("#edit-generate").click()
    expect(page.get_by_text("Choose an image first")).to_be_visible()
    drop(page, scene)
    page.get_by_role("radio", name="Inpaint", exact=True).check()
    page.locator("#edit-generate").click()
    expect(page.get_by_text("Paint over the area to change first")).to_be_visible()
    page.get_by_role("radio", name="Outpaint", exact=True).check()
    page.locator("#edit-generate").click()
    expect(page.get_by_text("Enter how many pixels to add")).to_be_visible()
    assert all(job.finished for job in served.jobs("local"))


def test_an_image_in_the_editor_is_not_uploaded_while_nothing_happens(page: Page, served: Studio, scene: Path) -> None:
    open_tab(page)
    drop(page, scene)
    choose(page, "Image to image", "a fox in the snow")
    generate(page, served, 4)
    assert_idle(page)
    page.get_by_role("tab", name="Create").click()
    assert_idle(page)
    page.get_by_role("tab", name="Edit").click()
    page.locator("#edit-recent button").first.click()  # the editor is an output of this event
    assert_idle(page)


def assert_idle(page: Page) -> None:
    """Fail if the page goes on uploading something while only its timer runs."""
    posts: list[str] = []
    page.on("request", lambda request: posts.append(request.url) if request.method == "POST" else None)
    for _ in range(4):  # on a busy machine, what the last click caused takes a while
        posts.clear()
        page.wait_for_timeout(10_000)
        uploads = [url for url in posts if "/upload" in url or "/component_server" in url]
        if not uploads:
            break
    assert uploads == []
    assert posts, "the timer of the page must have run meanwhile"


def test_ctrl_enter_runs_the_task_of_the_open_tab(page: Page, served: Studio, scene: Path) -> None:
    jobs = len(served.jobs("local"))
    page.get_by_role("tab", name="Models").click()
    page.keyboard.press("Control+Enter")
    open_tab(page)
    drop(page, scene)
    choose(page, "Image to image", "a fox in the snow")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#edit-result .result-images img").first).to_be_visible()
    expect(page.locator("#announcements")).to_have_text("Finished: a fox in the snow")
    [job] = served.jobs("local")[jobs:]
    assert job.request is not None
    assert job.request.task == "image_to_image"


def test_the_size_of_the_result_is_shown_before_it_is_generated(page: Page, served: Studio, photo: Path) -> None:
    open_tab(page)
    drop(page, photo)
    size = page.locator("#edit-size")
    expect(size).to_have_text("Result: 900 × 600")
    choose(page, "Outpaint", "a field")
    page.get_by_label("Left", exact=True).fill("128")
    expect(size).to_have_text("Result: 1028 × 600")
    [wide] = generate(page, served, 1)
    with Image.open(photo) as original:
        assert pixels(served, wide).shape == (600, 1028, 3)
        assert (pixels(served, wide)[:, 128:] == np.asarray(original, int)).all()
    page.get_by_role("radio", name="Upscale", exact=True).check()
    expect(size).to_have_text("Result: 1800 × 1200")
    [large] = generate(page, served, 1)
    assert pixels(served, large).shape == (1200, 1800, 3)
    page.get_by_role("tab", name="Statistics").click()
    expect(page.locator(".chart").get_by_role("heading", name="Seconds per image")).to_be_visible()
    made = [each for each in served.recent("local", 1000) if each.request.needs_model]  # all but the last
    number = sum(each.request.model_key == "starter" for each in made)
    bars = page.locator(".chart", has_text="By model")
    expect(bars.locator("dt").first).to_have_text("starter")
    expect(bars.locator("dd").nth(1)).to_have_text(f"{number:,}")


def test_the_buttons_of_the_editor_stand_out_in_the_dark(page: Page, scene: Path) -> None:
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": 390, "height": 844})
    open_tab(page)
    drop(page, scene)
    buttons = page.locator("#edit-image button:visible:enabled")
    expect(buttons.nth(5)).to_be_visible()
    for button in buttons.all():
        with Image.open(io.BytesIO(button.screenshot())) as shown:
            levels = np.asarray(shown.convert("L"), int)
        assert levels.max() - levels.min() > 90, button.get_attribute("title")
    page.set_viewport_size({"width": 1280, "height": 800})


def test_broken_files_and_animations_are_noted(page: Page, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not an image")
    first, second = (Image.new("RGB", (64, 64), color) for color in ("red", "blue"))
    first.save(tmp_path / "moving.gif", save_all=True, append_images=[second])
    open_tab(page)
    page.locator("#edit-image input[type=file]").first.set_input_files(tmp_path / "text.png")
    expect(page.get_by_text("This file cannot be used")).to_be_visible()
    drop(page, tmp_path / "moving.gif")
    expect(page.get_by_text("Only the first frame")).to_be_visible()
    expect(page.get_by_text("This file cannot be used")).to_be_hidden()
