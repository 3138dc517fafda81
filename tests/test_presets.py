"""What the three modes fill in, and that a user's own values win."""

from __future__ import annotations

from dataclasses import replace

import pytest

from canvas.catalog import MODELS
from canvas.errors import InvalidInput
from canvas.presets import PRESETS, distilled_lora_missing, preset_defaults, uses_distilled_lora
from canvas.request import GenerationRequest

SMALL, STARTER, TINY = MODELS["small"], MODELS["starter"], MODELS["tiny"]


def test_quality_is_what_the_model_says() -> None:
    for spec in MODELS.values():
        assert preset_defaults("quality", spec) == (
            spec.num_inference_steps,
            spec.guidance_scale,
            spec.scheduler,
        )


def test_balanced_takes_fewer_steps_with_a_solver_that_can() -> None:
    slow = replace(STARTER, num_inference_steps=20)
    assert preset_defaults("balanced", slow) == (15, STARTER.guidance_scale, "DPM++ 2M")
    assert preset_defaults("balanced", MODELS["dreamshaper"])[2] == "DEIS"


def test_turbo_uses_few_step_weights_where_they_fit() -> None:
    assert uses_distilled_lora("turbo", SMALL)
    assert preset_defaults("turbo", SMALL) == (4, 0.0, "DDIM trailing")
    assert not uses_distilled_lora("turbo", TINY)
    assert preset_defaults("turbo", TINY) == (6, TINY.guidance_scale, TINY.scheduler)
    assert not uses_distilled_lora("quality", SMALL)
    lacking = [spec.key for spec in (TINY, SMALL, STARTER) if distilled_lora_missing("turbo", spec)]
    assert lacking == ["tiny"], "starter takes few steps as it is"
    assert not distilled_lora_missing("quality", TINY)


def test_a_model_made_for_few_steps_keeps_its_scheduler() -> None:
    kept = (STARTER.guidance_scale, STARTER.scheduler)
    assert preset_defaults("balanced", STARTER) == (2, *kept)
    assert preset_defaults("turbo", STARTER) == (1, *kept)


def test_no_mode_takes_more_steps_than_the_model_wants() -> None:
    short = replace(TINY, num_inference_steps=3)
    for preset in PRESETS:
        assert preset_defaults(preset, short)[0] <= 3


def test_resolve_fills_what_is_open_and_leaves_the_rest() -> None:
    open_request = GenerationRequest("a fox", model_key="small", preset="turbo").with_defaults(
        SMALL
    )
    assert (open_request.num_inference_steps, open_request.guidance_scale) == (4, 0.0)
    assert open_request.scheduler == "DDIM trailing"
    own = GenerationRequest(
        "a fox", preset="balanced", num_inference_steps=9, guidance_scale=2.0, scheduler="UniPC"
    ).with_defaults(STARTER)
    assert (own.num_inference_steps, own.guidance_scale, own.scheduler) == (9, 2.0, "UniPC")
    assert own.with_defaults(STARTER) == own


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(InvalidInput, match="allowed is one of quality, balanced, turbo"):
        GenerationRequest("a fox", preset="fast")
