from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canvas import MODELS, GenerationRequest
from canvas.errors import CanvasError, InvalidInput
from canvas.request import IMAGE_FORMATS, MAX_SEED, RESIZE_MODES, SCALES, TASKS, UPSCALERS
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
    image_format=st.sampled_from(IMAGE_FORMATS),
    quality=st.integers(1, 100),
    task=st.sampled_from(TASKS),
    image=st.none() | st.just("a" * 64 + ".png"),
    mask_image=st.none() | st.just("b" * 64 + ".png"),
    strength=st.none() | st.floats(0.01, 1),
    fit=st.sampled_from(RESIZE_MODES),
    background=st.sampled_from(["#ffffff", "#0a1b2c"]),
    mask_blur=st.integers(0, 256),
    only_masked=st.booleans(),
    extend=st.tuples(*[st.integers(0, 256).map(lambda n: n * 8)] * 4),
    variation_seed=st.none() | st.integers(0, MAX_SEED - 16),
    variation_strength=st.floats(0, 1),
    scale=st.sampled_from(SCALES),
    upscaler=st.sampled_from(UPSCALERS),
    loras=st.lists(st.tuples(st.just("snow"), st.floats(-4, 4)), max_size=3).map(tuple),
    prompt_weighting=st.booleans(),
    watermark=st.sampled_from(["", "mine"]),
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
        ("fit", "squeeze"),
        ("background", "red"),
        ("mask_feather", -1),
        ("only_masked", "yes"),
        ("extend", (8, 8)),
        ("extend", (7, 0, 0, 0)),
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
    ],
)
def test_bad_values_get_a_sentence(field: str, value: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        GenerationRequest(**{"prompt": "a fox", field: value})
    sentence = str(caught.value)
    assert caught.value.field == field
    assert sentence.startswith(f"{field}: ")
    assert "allowed is" in sentence
    assert len(sentence) < 400


@pytest.mark.parametrize("prompt", ["🦊 in ❄️", "ثعلب في الثلج", "狐", "two\nlines", "a\tb"])
def test_words_of_all_kinds_are_kept(prompt: str) -> None:
    assert GenerationRequest(prompt).prompt == prompt


def test_line_endings_become_newlines() -> None:
    assert GenerationRequest("a\r\nb\rc").prompt == "a\nb\nc"


@given(requests)
def test_dictionary_and_back(request: GenerationRequest) -> None:
    assert GenerationRequest.from_dict(request.to_dict()) == request
    assert GenerationRequest.from_dict(json.loads(json.dumps(request.to_dict()))) == request


def test_unknown_field_is_named() -> None:
    with pytest.raises(InvalidInput, match="cfg_scale"):
        GenerationRequest.from_dict({"prompt": "a fox", "cfg_scale": 7})


def test_resolve_fills_from_the_model() -> None:
    request = GenerationRequest("a fox").with_defaults(STARTER)
    assert (request.width, request.height) == (STARTER.resolution, STARTER.resolution)
    assert request.num_inference_steps == STARTER.num_inference_steps
    assert request.guidance_scale == STARTER.guidance_scale
    assert request.scheduler == STARTER.scheduler
    assert request.seed >= 0
    assert request.with_defaults(STARTER) == request


def test_guidance_of_zero_is_a_choice() -> None:
    assert GenerationRequest("a fox", guidance_scale=0).with_defaults(STARTER).guidance_scale == 0


def test_resolve_checks_the_size_against_the_model() -> None:
    with pytest.raises(InvalidInput, match=r"width: 1024 .* with the model starter"):
        GenerationRequest("a fox", width=1024).with_defaults(STARTER)


def test_single_is_the_picture_of_the_batch_alone() -> None:
    batch = GenerationRequest("a fox", seed=5, num_images=3).with_defaults(STARTER)
    assert batch.for_image(2).seed == 7
    assert batch.for_image(2).num_images == 1


def test_last_seed_of_a_batch_must_fit() -> None:
    with pytest.raises(InvalidInput, match="seed"):
        GenerationRequest("a fox", seed=MAX_SEED, num_images=2)


def test_every_error_is_a_canvas_error() -> None:
    assert issubclass(InvalidInput, CanvasError)


@pytest.mark.parametrize(
    ("fields", "missing"),
    [
        ({"task": "image_to_image"}, "image"),
        ({"task": "upscale"}, "image"),
        ({"task": "inpaint", "image": "a.png"}, "mask_image"),
    ],
)
def test_resolve_names_what_a_task_lacks(fields: dict[str, Any], missing: str) -> None:
    with pytest.raises(InvalidInput, match=f"^{missing}: None"):
        GenerationRequest("a fox", **fields).with_defaults(STARTER)


def test_strength_follows_from_the_task() -> None:
    for task, strength in (("text_to_image", None), ("image_to_image", 0.6), ("inpaint", 1.0)):
        request = GenerationRequest("a fox", task=task, image="a.png", mask_image="b.png")
        assert request.with_defaults(STARTER).strength == strength


def test_only_what_the_model_draws_at_once_is_held_to_its_size() -> None:
    for fields in ({"task": "upscale"}, {"task": "inpaint", "only_masked": True}):
        request = GenerationRequest(
            "a fox", width=2048, height=2048, image="a.png", mask_image="b.png", **fields
        )
        assert request.with_defaults(STARTER).width == 2048


def test_enlarging_needs_no_words() -> None:
    assert (
        GenerationRequest("", task="upscale", image="a.png").with_defaults(STARTER).num_images == 1
    )


def test_variations_count_their_own_seed() -> None:
    batch = GenerationRequest("a fox", seed=5, num_images=4, variation_seed=9).with_defaults(
        STARTER
    )
    assert (batch.for_image(3).seed, batch.for_image(3).variation_seed) == (5, 12)
