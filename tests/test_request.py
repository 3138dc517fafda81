from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canvas import MODELS, GenerationRequest
from canvas.errors import CanvasError, InvalidInput
from canvas.request import IMAGE_FORMATS, MAX_SEED
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


def test_unknown_field_is_named() -> None:
    with pytest.raises(InvalidInput, match="cfg_scale"):
        GenerationRequest.from_dict({"prompt": "a fox", "cfg_scale": 7})


def test_resolve_fills_from_the_model() -> None:
    request = GenerationRequest("a fox").resolve(STARTER)
    assert (request.width, request.height) == (STARTER.resolution, STARTER.resolution)
    assert request.num_inference_steps == STARTER.num_inference_steps
    assert request.guidance_scale == STARTER.guidance_scale
    assert request.scheduler == STARTER.scheduler
    assert request.seed >= 0
    assert request.resolve(STARTER) == request


def test_guidance_of_zero_is_a_choice() -> None:
    assert GenerationRequest("a fox", guidance_scale=0).resolve(STARTER).guidance_scale == 0


def test_resolve_checks_the_size_against_the_model() -> None:
    with pytest.raises(InvalidInput, match=r"width: 1024 .* with the model starter"):
        GenerationRequest("a fox", width=1024).resolve(STARTER)


def test_single_is_the_picture_of_the_batch_alone() -> None:
    batch = GenerationRequest("a fox", seed=5, num_images=3).resolve(STARTER)
    assert batch.single(2).seed == 7
    assert batch.single(2).num_images == 1


def test_last_seed_of_a_batch_must_fit() -> None:
    with pytest.raises(InvalidInput, match="seed"):
        GenerationRequest("a fox", seed=MAX_SEED, num_images=2)


def test_every_error_is_a_canvas_error() -> None:
    assert issubclass(InvalidInput, CanvasError)
