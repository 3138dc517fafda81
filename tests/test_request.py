from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canvas import MODELS, GenerationRequest
from canvas.errors import InvalidInput, field_label
from canvas.guidance import CONTROL_KINDS, ControlImage, ReferenceImage
from canvas.image_formats import IMAGE_FORMATS
from canvas.request import (
    HF_INFERENCE,
    LOCAL,
    MAX_SEED,
    OLD_FIELD_NAMES,
    RESIZE_MODES,
    SCALES,
    TASKS,
    UPSCALERS,
    GeneratedImage,
    img2img_steps,
    with_old_names,
)
from canvas.schedulers import SCHEDULERS
from canvas.styles import STYLES

STARTER = MODELS["starter"]

requests = st.builds(
    GenerationRequest,
    prompt=st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1).filter(str.strip),
    negative_prompt=st.text(st.characters(exclude_categories=("Cc", "Cs"))),
    style=st.sampled_from(sorted(STYLES)),
    width=st.none() | st.integers(8, 512).map(lambda n: n * 8),
    height=st.none() | st.integers(8, 512).map(lambda n: n * 8),
    num_inference_steps=st.none() | st.integers(1, 150),
    guidance_scale=st.none() | st.floats(0, 30),
    scheduler=st.none() | st.sampled_from(sorted(SCHEDULERS)),
    seed=st.integers(-1, MAX_SEED - 16),
    num_images=st.integers(1, 16),
    image_format=st.sampled_from(sorted(IMAGE_FORMATS)),
    quality=st.integers(1, 100),
    task=st.sampled_from(TASKS),
    image=st.none() | st.just("a" * 64 + ".png"),
    mask_image=st.none() | st.just("b" * 64 + ".png"),
    strength=st.none() | st.floats(0.01, 1),
    resize_mode=st.sampled_from(RESIZE_MODES),
    fill_color=st.sampled_from(["#ffffff", "#0a1b2c"]),
    mask_blur=st.integers(0, 256),
    only_masked=st.booleans(),
    outpaint=st.tuples(*[st.integers(0, 2048)] * 4),
    variation_seed=st.none() | st.integers(0, MAX_SEED - 16),
    variation_strength=st.floats(0, 1),
    scale=st.sampled_from(SCALES),
    upscaler=st.sampled_from(UPSCALERS),
    loras=st.lists(st.tuples(st.just("snow"), st.floats(-4, 4)), max_size=3).map(tuple),
    prompt_weighting=st.booleans(),
    watermark=st.sampled_from(["", "mine"]),
    control_images=st.lists(
        st.tuples(st.just("c.png"), st.sampled_from(CONTROL_KINDS), st.floats(0, 2), st.floats(0, 0.5)).map(
            lambda values: ControlImage(*values)
        ),
        max_size=2,
    ).map(tuple),
    reference_images=st.lists(st.floats(0, 2).map(lambda weight: ReferenceImage("r.png", weight)), max_size=2).map(
        tuple
    ),
)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", ""),
        ("prompt", "  \n\t "),
        ("prompt", "a" * 100_000),
        ("prompt", "nul \0 byte"),
        ("prompt", "bell \a"),
        ("prompt", "half a pair \ud800"),
        ("prompt", 7),
        ("negative_prompt", "\x1b[31m"),
        ("width", 0),
        ("width", 7),
        ("width", 513),
        ("width", 10**9),
        ("width", float("nan")),
        ("width", "512"),
        ("height", float("inf")),
        ("height", True),
        ("height", 512.5),
        ("num_inference_steps", 0),
        ("num_inference_steps", 151),
        ("guidance_scale", -1),
        ("guidance_scale", float("nan")),
        ("guidance_scale", "high"),
        ("num_images", 1000),
        ("num_images", 0),
        ("seed", -2),
        ("seed", 2**64),
        ("seed", "abc"),
        ("style", "baroque"),
        ("scheduler", "Magic"),
        ("image_format", "gif"),
        ("quality", 0),
        ("model_key", 5),
        ("task", "txt2img"),
        ("image", "../../etc/passwd"),
        ("image", 7),
        ("mask_image", "a\nb"),
        ("strength", 0),
        ("strength", 1.5),
        ("resize_mode", "squeeze"),
        ("fill_color", "red"),
        ("mask_blur", -1),
        ("only_masked", "yes"),
        ("outpaint", (8, 8)),
        ("outpaint", (-1, 0, 0, 0)),
        ("outpaint", (0.5, 0, 0, 0)),
        ("variation_seed", -1),
        ("variation_strength", 2),
        ("scale", 3),
        ("upscaler", "magic"),
        ("loras", "snow"),
        ("loras", (("snow",),)),
        ("loras", (("snow", 9),)),
        ("loras", (("", 1),)),
        ("prompt_weighting", 1),
        ("watermark", "two\nlines"),
        ("watermark", "m" * 61),
        ("preset", "fast"),
        ("backend", "elsewhere"),
        ("control_images", "a.png"),
        ("control_images", [{"image": "a.png"}] * 5),
        ("control_images", [{"kind": "canny"}]),
        ("control_images", [{"image": "a.png", "strength": 1}]),
        ("control_images", [{"image": "../a.png"}]),
        ("control_images", [{"image": "a.png", "kind": "magic"}]),
        ("control_images", [{"image": "a.png", "weight": float("nan")}]),
        ("control_images", [{"image": "a.png", "start": 0.5, "end": 0.5}]),
        ("control_images", [{"image": "a.png", "detect": 1}]),
        ("reference_images", [{"image": "a.png", "kind": "hat"}]),
        ("reference_images", [{"image": "a.png", "weight": 3}]),
    ],
)
def test_invalid_values_are_rejected(field: str, value: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        GenerationRequest(**{"prompt": "a fox", field: value})
    message = str(caught.value)
    assert caught.value.field == field
    assert message.startswith(f"{field_label(field)} must ")
    assert len(message) < 400


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("prompt", " ", "Prompt must not be empty."),
        ("num_images", 17, "Number of images must be a whole number between 1 and 16 (got 17)."),
        ("guidance_scale", "high", "Guidance must be a number between 0 and 30 (got 'high')."),
        ("fill_color", "red", "Fill colour must be a colour such as #ffffff (got 'red')."),
        ("width", 513, "Width must be a multiple of 8 between 128 and 512 for the model starter (got 513)."),
    ],
)
def test_messages(field: str, value: Any, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        GenerationRequest(**{"prompt": "a fox", field: value})
    assert str(caught.value) == message


@pytest.mark.parametrize("prompt", ["🦊 in ❄️", "ثعلب في الثلج", "狐", "two\nlines", "a\tb"])
def test_prompts_in_any_script_are_kept(prompt: str) -> None:
    assert GenerationRequest(prompt).prompt == prompt


def test_line_endings_are_normalized() -> None:
    assert GenerationRequest("a\r\nb\rc").prompt == "a\nb\nc"


@given(requests)
def test_from_dict_inverts_to_dict(request: GenerationRequest) -> None:
    assert GenerationRequest.from_dict(request.to_dict()) == request
    assert GenerationRequest.from_dict(json.loads(json.dumps(request.to_dict()))) == request


def test_from_dict_names_an_unknown_field() -> None:
    with pytest.raises(InvalidInput, match="cfg_scale"):
        GenerationRequest.from_dict({"prompt": "a fox", "cfg_scale": 7})


def test_with_defaults_takes_values_of_the_model() -> None:
    request = GenerationRequest("a fox").with_defaults(STARTER)
    assert (request.width, request.height) == (STARTER.resolution, STARTER.resolution)
    assert request.num_inference_steps == STARTER.num_inference_steps
    assert request.guidance_scale == STARTER.guidance_scale
    assert request.scheduler == STARTER.scheduler
    assert request.seed >= 0
    assert request.with_defaults(STARTER) == request


def test_with_defaults_keeps_a_guidance_of_zero() -> None:
    assert GenerationRequest("a fox", guidance_scale=0).with_defaults(STARTER).guidance_scale == 0


def test_with_defaults_checks_the_size() -> None:
    allowed = "a multiple of 8 between 128 and 512 for the model starter"
    with pytest.raises(InvalidInput, match=f"Width must be {allowed}"):
        GenerationRequest("a fox", width=1024).with_defaults(STARTER)
    request = GenerationRequest("a fox", width=2048, model_key="mine")
    small = replace(STARTER, key="mine", resolution=1024)
    assert request.with_defaults(small).width == 2048


@pytest.mark.parametrize("task", ["image_to_image", "inpaint"])
def test_a_result_of_an_image_may_have_any_size(task: str) -> None:
    fields: dict[str, Any] = {"task": task, "image": "a.png", "mask_image": "b.png"}
    for size in ((8, 8), (597, 4096), (1024, 33)):
        request = GenerationRequest("a fox", width=size[0], height=size[1], **fields)
        assert request.with_defaults(STARTER).size == size
    with pytest.raises(InvalidInput, match=r"Width must be a whole number between 8 and 16384 \(got 7\)"):
        GenerationRequest("a fox", width=7, **fields)
    with pytest.raises(InvalidInput, match=r"Height must be a whole number between 8 and 4096 \(got 4097\)"):
        GenerationRequest("a fox", height=4097, **fields).with_defaults(STARTER)


def test_for_image_has_the_seed_of_that_image() -> None:
    batch = GenerationRequest("a fox", seed=5, num_images=3).with_defaults(STARTER)
    assert batch.for_image(2).seed == 7
    assert batch.for_image(2).num_images == 1


def test_the_last_seed_of_a_batch_has_the_same_limit() -> None:
    with pytest.raises(InvalidInput, match="Seed must be at most"):
        GenerationRequest("a fox", seed=MAX_SEED, num_images=2)


@pytest.mark.parametrize(
    ("fields", "missing", "message"),
    [
        ({"task": "image_to_image"}, "image", "task image to image requires an image"),
        ({"task": "upscale"}, "image", "task upscale requires an image"),
        ({"task": "inpaint", "image": "a.png"}, "mask_image", "requires a mask"),
    ],
)
def test_with_defaults_names_the_missing_input(fields: dict[str, Any], missing: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        GenerationRequest("a fox", **fields).with_defaults(STARTER)
    assert caught.value.field == missing


def test_the_default_strength_depends_on_the_task() -> None:
    for task, strength in (("text_to_image", None), ("image_to_image", 0.6), ("inpaint", 1.0)):
        request = GenerationRequest("a fox", task=task, image="a.png", mask_image="b.png")
        assert request.with_defaults(STARTER).strength == strength


def test_size_limits_apply_to_a_single_pass_only() -> None:
    for fields in ({"task": "upscale"}, {"task": "inpaint", "only_masked": True}):
        request = GenerationRequest("a fox", width=2048, height=2048, image="a.png", mask_image="b.png", **fields)
        assert request.with_defaults(STARTER).width == 2048


def test_upscaling_needs_no_prompt() -> None:
    assert GenerationRequest("", task="upscale", image="a.png").with_defaults(STARTER).num_images == 1


def test_a_random_seed_leaves_room_for_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "randrange", lambda stop: stop - 1)
    batch = GenerationRequest("a fox", num_images=4).with_defaults(STARTER)
    assert 2**32 - 4 <= batch.for_image(3).seed < 2**32


def test_for_image_counts_the_variation_seed() -> None:
    batch = GenerationRequest("a fox", seed=5, num_images=4, variation_seed=9).with_defaults(STARTER)
    assert (batch.for_image(3).seed, batch.for_image(3).variation_seed) == (5, 12)


@pytest.mark.parametrize(
    ("steps", "strength", "expected"),
    [
        (20, 0.9, (20, 18)),
        (30, 0.75, (30, 22)),  # as in diffusers
        (20, 1.0, (20, 20)),
        (20, 0.01, (100, 1)),
        (4, 0.5, (4, 2)),
        (4, 0.6, (5, 3)),  # two of four would be a strength of 0.5
        (4, 0.88, (5, 4)),  # three of four would be a strength of 0.75
        (4, 0.89, (5, 4)),  # four of four would be a strength of 1
        (4, 0.95, (4, 4)),
        (4, 0.1, (10, 1)),
        (1, 0.6, (2, 1)),
        (49, 1 / 49, (49, 1)),  # their product is a little less than 1
    ],
)
def test_img2img_steps(steps: int, strength: float, expected: tuple[int, int]) -> None:
    assert img2img_steps(steps, strength) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (20, 20)),
        ({"strength": 0.5}, (20, 20)),
        ({"task": "image_to_image", "strength": 0.5}, (20, 10)),
        ({"task": "image_to_image"}, (20, 20)),
        ({"task": "image_to_image", "strength": 0.5, "num_inference_steps": None}, (2, 1)),
        ({"task": "upscale", "upscaler": "lanczos", "strength": 0.5}, (20, 20)),
    ],
)
def test_steps_of_a_request(fields: dict[str, Any], expected: tuple[int, int]) -> None:
    request = GenerationRequest(**{"prompt": "a fox", "num_inference_steps": 20, **fields})
    assert request.step_counts == expected


@given(st.integers(4, 150), st.floats(0.01, 1))
def test_img2img_steps_are_near_the_strength_and_never_more(steps: int, strength: float) -> None:
    schedule, computed = img2img_steps(steps, strength)
    assert 1 <= computed <= steps
    assert computed <= schedule
    assert abs(computed / schedule - strength) <= 0.1 + 1e-9


OLD_VALUES = {
    "fit": "pad",
    "background": "#000000",
    "mask_feather": 3,
    "extend": (8, 0, 0, 0),
    "mode": "turbo",
    "where": "remote",
}


def test_old_field_names_still_work() -> None:
    assert OLD_VALUES.keys() == OLD_FIELD_NAMES.keys()
    old_names: Any = OLD_VALUES
    request: Any = GenerationRequest("a fox", **old_names)
    assert request == GenerationRequest.from_dict({"prompt": "a fox", **OLD_VALUES})
    assert request == replace(GenerationRequest("a fox"), **OLD_VALUES)
    for old, new in OLD_FIELD_NAMES.items():
        assert getattr(request, old) == getattr(request, new) == OLD_VALUES[old]
    assert not request.to_dict().keys() & OLD_VALUES.keys()
    with pytest.raises(AttributeError, match="frames"):
        _ = request.frames


@pytest.mark.parametrize(("old", "new"), [("here", LOCAL), ("huggingface", HF_INFERENCE)])
def test_old_backends_still_work(old: str, new: str) -> None:
    for name in ("where", "backend"):
        assert GenerationRequest.from_dict({"prompt": "a fox", name: old}).backend == new


def test_with_old_names_adds_the_old_names() -> None:
    request = GenerationRequest("a fox", preset="turbo").with_defaults(STARTER)
    image = GeneratedImage(request, "a fox", 1.0, "cpu", "float32", client="cli")
    settings = with_old_names(image.settings())
    assert settings["mode"] == settings["preset"] == "turbo"
    assert settings["channel"] == settings["client"] == "cli"
    assert (settings["backend"], settings["where"]) == ("local", "here")
    assert settings.keys() >= OLD_FIELD_NAMES.keys()
