"""The form of the Edit tab, without a browser."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from canvas import GenerationRequest, Studio
from canvas.errors import InvalidInput
from canvas.jobs.job import Job
from canvas.request import LOCAL_OWNER
from canvas.ui.edit_tab import INSTRUCTION, KEEP_SIZE, OPERATIONS, SIDES, EditForm, EditTab
from tests.app_server import save_image


@pytest.fixture(scope="module")
def shared_form(shared_studio: Studio) -> EditForm:
    with pytest.MonkeyPatch.context() as patch, gr.Blocks(analytics_enabled=False):
        patch.setattr(Studio, "instruction_models", property(lambda _: ["flux-klein"]))
        return EditForm(shared_studio)


@pytest.fixture
def form(shared_form: EditForm, monkeypatch: pytest.MonkeyPatch) -> EditForm:
    """The form on a computer where one model follows instructions."""
    monkeypatch.setattr(Studio, "instruction_models", property(lambda _: ["flux-klein"]))
    return shared_form


def values_of(form: EditForm, **changes: Any) -> dict[Any, Any]:
    return {form[name]: changes.get(name, form[name].value) for name in form}


@pytest.mark.parametrize(
    ("operation", "model", "chosen"),
    [
        ("image_to_image", "flux-klein", INSTRUCTION),
        ("image_to_image", "small", None),
        ("inpaint", "flux-klein", None),
        ("inpaint", "small", None),
    ],
)
def test_a_model_that_follows_instructions_selects_them(
    form: EditForm, operation: str, model: str, chosen: str | None
) -> None:
    update = form.on_model(values_of(form, operation=operation, model_key=model))[form["operation"]]
    assert update == gr.skip() if chosen is None else update.value == chosen


def test_instructions_select_a_model_that_follows_them(form: EditForm) -> None:
    updates = form.on_operation(values_of(form, operation=INSTRUCTION, model_key="small"))
    model = updates[form["model_key"]]
    assert ([key for _, key in model.choices], model.value) == (["flux-klein"], "flux-klein")
    updates = form.on_operation(values_of(form, operation="inpaint", model_key="small"))
    assert "small" in [key for _, key in updates[form["model_key"]].choices]
    assert "value" not in updates[form["model_key"]].constructor_args, "the model stays"


@pytest.mark.parametrize("operation", [name for name in OPERATIONS if name != INSTRUCTION])
def test_each_operation_has_its_strength(form: EditForm, operation: str) -> None:
    strength = OPERATIONS[operation].strength
    update = form.on_operation(values_of(form, operation=operation))[form["strength"]]
    assert update == (gr.skip() if strength is None else strength)


@pytest.mark.parametrize(
    ("operation", "upscaler", "shown", "hidden"),
    [
        ("image_to_image", "lanczos", {"strength", "model"}, {"sides", "mask", "upscaler"}),
        ("inpaint", "lanczos", {"strength", "mask"}, {"sides", "upscaler"}),
        ("outpaint", "lanczos", {"sides"}, {"upscaler"}),
        ("upscale", "lanczos", {"upscaler"}, {"model", "prompt", "strength"}),
        ("upscale", "detail", {"upscaler", "model", "prompt"}, {"sides", "mask"}),
    ],
)
def test_only_the_fields_of_the_operation_are_shown(
    form: EditForm, operation: str, upscaler: str, shown: set[str], hidden: set[str]
) -> None:
    updates = form.toggle_groups(values_of(form, operation=operation, upscaler=upscaler))
    visible = {name for name, group in form._groups.items() if updates[group].visible}
    assert shown <= visible
    assert not hidden & visible


def test_instructions_are_offered_where_a_model_follows_them(form: EditForm, monkeypatch: pytest.MonkeyPatch) -> None:
    assert INSTRUCTION in [name for _, name in form.operations().choices]
    monkeypatch.setattr(Studio, "instruction_models", property(lambda _: []))
    assert INSTRUCTION not in [name for _, name in form.operations().choices]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"operation": "image_to_image", "strength": 0.4, "num_images": 3}, ("image_to_image", 0.4, 3, None)),
        ({"operation": INSTRUCTION, "num_images": 3, "strength": 0.4}, ("image_to_image", 1.0, 3, None)),
        ({"operation": "inpaint", "strength": 0.4, "num_images": 3}, ("inpaint", 0.4, 1, None)),
        ({"operation": "outpaint", "left": 8, "bottom": None}, ("inpaint", None, 1, (8, 0, 0, 0))),
        ({"operation": "upscale", "upscaler": "lanczos"}, ("upscale", None, 1, None)),
        ({"operation": "upscale", "upscaler": "detail", "strength": 0.4}, ("upscale", 0.4, 1, None)),
    ],
)
def test_each_operation_is_a_request(form: EditForm, changes: dict[str, Any], expected: tuple[Any, ...]) -> None:
    fields = {name: form[name].value for name in form} | {"prompt": "a fox"} | changes
    request = form.to_request(fields, "a.png")
    sides = request.outpaint if any(request.outpaint or ()) else None
    assert (request.task, request.strength, request.num_images, sides) == expected
    assert (request.image, request.seed) == ("a.png", -1)


@pytest.mark.parametrize(
    ("operation", "ratio", "size"),
    [
        ("image_to_image", KEEP_SIZE, (None, None)),
        ("image_to_image", "4:3", (296, 224)),
        ("inpaint", "1:1", (256, 256)),
        (INSTRUCTION, "1:1", (None, None)),
    ],
)
def test_an_aspect_ratio_sets_the_size_where_it_is_offered(
    form: EditForm, operation: str, ratio: str, size: tuple[int | None, int | None]
) -> None:
    fields = {name: form[name].value for name in form}
    fields |= {"prompt": "a fox", "operation": operation, "aspect_ratio": ratio}
    request = form.to_request(fields, "a.png")
    assert (request.width, request.height) == size


@pytest.mark.parametrize(
    ("color", "expected"),
    [("#0a141e", "#0a141e"), ("rgb(10, 20, 30)", "#0a141e"), ("rgba(10.4, 19.6, 30, 1)", "#0a141e")],
)
def test_the_colour_picker_may_return_either_notation(form: EditForm, color: str, expected: str) -> None:
    fields = {name: form[name].value for name in form} | {"prompt": "a fox", "fill_color": color}
    assert form.to_request(fields, "a.png").fill_color == expected


def test_a_valid_form_is_restored_and_any_other_is_new(form: EditForm, monkeypatch: pytest.MonkeyPatch) -> None:
    form._saved = gr.State()
    saved = {name: form[name].value for name in form}
    saved |= {"operation": "inpaint", "model_key": "small", "strength": 0.4}

    def restored(value: object) -> tuple[Any, ...]:
        updates = form.restore({form._saved: value})
        operation, model = updates[form["operation"]], updates[form["model_key"]]
        keys = ("value" in each.constructor_args and each.value for each in (operation, model))
        return (*keys, updates[form["strength"]])

    assert restored(saved) == ("inpaint", "small", 0.4)
    first = (INSTRUCTION, "flux-klein", gr.skip())
    for other in (None, [], {**saved, "more": 1}, {**saved, "operation": "gone"}, {**saved, "model_key": "gone"}):
        assert restored(other) == first
    assert restored({**saved, "operation": INSTRUCTION}) == first, "the model does not follow instructions"
    assert restored({**saved, "strength": 7}) == first
    monkeypatch.setattr(Studio, "instruction_models", property(lambda _: []))
    assert restored(None) == (False, False, gr.skip())


class Edit:
    """The tab with one stored image in its editor, and what it submits."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        with gr.Blocks(analytics_enabled=False):
            self.tab = EditTab(studio)
        self.image = save_image(studio, LOCAL_OWNER)
        self.pixels = Image.open(studio.image_path(self.image.filename)).convert("RGB")
        self.submitted: list[GenerationRequest] = []

    def values(self, layers: Any = (), *, empty: bool = False, **changes: Any) -> dict[Any, Any]:
        tab, form = self.tab, self.tab._form
        drawing = None if empty else {"background": self.pixels, "layers": list(layers)}
        values = {widget: widget.value for widget in form.guidance.widgets}
        values |= {tab._drawing: drawing, tab._source: self.image.filename, tab._replaced: ("", 0.0), tab._job: ""}
        return values | values_of(form, **{"prompt": "a fox", **changes})

    def request(self, layers: Any = (), **changes: Any) -> GenerationRequest:
        self.tab._submit(self.values(layers, **changes), LOCAL_OWNER)
        return self.submitted[-1]


@pytest.fixture(scope="module")
def shared_edit(shared_studio: Studio) -> Edit:
    return Edit(shared_studio)


@pytest.fixture
def edit(shared_edit: Edit, monkeypatch: pytest.MonkeyPatch) -> Edit:
    shared_edit.submitted = []
    monkeypatch.setattr(Studio, "submit", lambda _, request, *rest: shared_edit.submitted.append(request))
    return shared_edit


def layer(box: tuple[int, int, int, int] | None, size: tuple[int, int] = (128, 128)) -> Image.Image:
    painted = Image.new("RGBA", size)
    if box:
        painted.paste((255, 0, 0, 255), box)
    return painted


def test_the_painted_layers_are_the_mask(edit: Edit) -> None:
    layers = [layer((0, 0, 8, 8)), layer((64, 64, 72, 80)), layer((0, 0, 64, 64), (64, 64))]
    request = edit.request(layers, operation="inpaint")
    assert request.image == edit.image.filename
    mask = edit.studio.inputs.open_image(request.mask_image or "", LOCAL_OWNER)
    assert mask.convert("L").getbbox() == (0, 0, 72, 80), "a layer of another size is left out"
    assert mask.convert("L").getpixel((30, 30)) == 0
    with pytest.raises(InvalidInput, match="Paint over the area"):
        edit.request([layer(None)], operation="inpaint")
    assert edit.request(layers, operation="image_to_image").mask_image is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": " "}, "Write a prompt first"),
        ({"empty": True}, "Choose an image first"),
        ({"operation": "outpaint"}, "at least one side"),
        ({"operation": INSTRUCTION}, "does not edit by instruction"),
    ],
)
def test_what_is_missing_is_explained(edit: Edit, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        edit.request(**changes)


def test_upscaling_needs_no_prompt_and_outpainting_one_side(edit: Edit) -> None:
    assert edit.request(operation="upscale", prompt="").task == "upscale"
    for side in SIDES:
        assert sum(edit.request(operation="outpaint", **{side: 16}).outpaint or ()) == 16


def test_a_seed_variation_is_that_of_the_loaded_image(edit: Edit) -> None:
    request = edit.request(operation="seed_variation", strength=0.4, num_images=3)
    assert (request.prompt, request.seed, request.num_images) == ("a fox", edit.image.request.seed, 3)
    assert (request.variation_strength, request.image) == (0.4, None)
    assert 0 <= (request.variation_seed or 0) < 2**32
    values = edit.values(operation="seed_variation") | {edit.tab._source: ""}
    with pytest.raises(InvalidInput, match="text-to-image results"):
        edit.tab._submit(values, LOCAL_OWNER)


@pytest.mark.parametrize(
    ("changes", "result", "fit"),
    [
        ({"operation": "image_to_image", "aspect_ratio": "1:1"}, "256 × 256", "128 × 128 scaled to 256 × 256"),
        ({"operation": "inpaint", "aspect_ratio": "4:3"}, "296 × 224", "128 × 128 cropped to 296 × 224"),
        (
            {"operation": "inpaint", "aspect_ratio": "4:3", "resize_mode": "pad"},
            "296 × 224",
            "128 × 128 padded to 296 × 224",
        ),
        ({"operation": "upscale", "scale": 2}, "256 × 256", ""),
        ({"operation": "upscale", "empty": True}, "", ""),
    ],
)
def test_the_size_of_the_result_is_shown_before(edit: Edit, changes: dict[str, Any], result: str, fit: str) -> None:
    updates = edit.tab.show_size(edit.values(**changes))
    size, preview = updates[edit.tab._size], updates[edit.tab._form.fit_preview]
    assert (f"Result: {result}" in size) if result else size == ""
    assert fit in preview if fit else preview == ""


def test_an_image_is_loaded_with_its_prompt(edit: Edit) -> None:
    form, image_id = edit.tab._form, edit.image.id or 0
    updates = edit.tab.load_image(image_id, LOCAL_OWNER, replaced="former.png")
    assert updates[edit.tab._source] == edit.image.filename
    assert updates[edit.tab._replaced][0] == "former.png"
    assert updates[form["prompt"]] == edit.image.request.prompt
    assert updates[form["operation"]] == updates[form["strength"]] == updates[form["model_key"]] == gr.skip()
    updates = edit.tab.load_image(image_id, LOCAL_OWNER, "inpaint")
    assert (updates[form["operation"]].value, updates[form["strength"]]) == ("inpaint", 0.9)


def test_instructions_are_the_first_choice_for_an_edit(edit: Edit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Studio, "instruction_models", property(lambda _: ["flux-klein"]))
    form = edit.tab._form
    updates = edit.tab.load_image(edit.image.id or 0, LOCAL_OWNER, "inpaint")
    assert (updates[form["operation"]].value, updates[form["prompt"]]) == (INSTRUCTION, "")
    updates = edit.tab.load_image(edit.image.id or 0, LOCAL_OWNER, "upscale")
    assert (updates[form["operation"]].value, updates[form["prompt"]]) == ("upscale", edit.image.request.prompt)


@pytest.mark.parametrize(("operation", "label"), [("upscale", "Upscale"), ("inpaint", "Inpaint"), (INSTRUCTION, None)])
def test_the_button_is_named_after_a_task_that_is_a_verb(edit: Edit, operation: str, label: str | None) -> None:
    updates = edit.tab.name_button({edit.tab._form["operation"]: operation})
    assert updates[edit.tab._generate].value == (label or "Generate")


def test_stop_cancels_the_job_that_is_shown(edit: Edit, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job("local", "generate", "starter", status="running")
    monkeypatch.setattr(Studio, "job", lambda *_: job)
    edit.tab.stop({edit.tab._job: ""}, gr.Request())
    assert not job.cancelled.is_set()
    edit.tab.stop({edit.tab._job: job.id}, gr.Request())
    assert job.cancelled.is_set()


def test_a_result_is_compared_with_what_it_was_made_from_if_the_proportions_are_alike(edit: Edit) -> None:
    def before(width: int, height: int, name: str = edit.image.filename) -> str:
        request = GenerationRequest("a fox", task="image_to_image", image=name, width=width, height=height)
        job = Job("local", "generate", "starter", request, status="done")
        return edit.tab._before_url(job, replace(edit.image, request=request), LOCAL_OWNER)

    assert before(256, 256) == before(504, 512) == f"pictures/{edit.image.filename}"
    assert before(256, 192) == before(192, 256) == ""
    assert before(256, 256, "0" * 64 + ".png") == ""
    uploaded = edit.studio.inputs.upload(edit.pixels.resize((64, 64))).name
    assert before(256, 256, uploaded).startswith("data:image/jpeg")
