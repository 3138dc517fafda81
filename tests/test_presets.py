"""The defaults of the presets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from canvas.catalog import MODELS
from canvas.errors import InvalidInput
from canvas.presets import PRESETS, distilled_lora_missing, preset_defaults, uses_distilled_lora
from canvas.request import GenerationRequest

SMALL, STARTER, TINY = MODELS["small"], MODELS["starter"], MODELS["tiny"]


def test_quality_has_the_defaults_of_the_model() -> None:
    for spec in MODELS.values():
        assert preset_defaults("quality", spec) == (spec.num_inference_steps, spec.guidance_scale, spec.scheduler)


def test_balanced_takes_fewer_steps_with_a_second_order_scheduler() -> None:
    slow = replace(STARTER, num_inference_steps=20)
    assert preset_defaults("balanced", slow) == (15, STARTER.guidance_scale, "DPM++ 2M")
    assert preset_defaults("balanced", MODELS["dreamshaper"])[2] == "DEIS"


def test_turbo_uses_the_distilled_lora_if_it_fits() -> None:
    assert uses_distilled_lora("turbo", SMALL)
    assert preset_defaults("turbo", SMALL) == (4, 0.0, "DDIM trailing")
    assert not uses_distilled_lora("turbo", TINY)
    assert preset_defaults("turbo", TINY) == (6, TINY.guidance_scale, TINY.scheduler)
    assert not uses_distilled_lora("quality", SMALL)
    missing = [spec.key for spec in (TINY, SMALL, STARTER) if distilled_lora_missing("turbo", spec)]
    assert missing == ["tiny"], "starter takes few steps anyway"
    assert not distilled_lora_missing("quality", TINY)


def test_one_step_weights_precede_those_of_four() -> None:
    fast = replace(SMALL, accelerations=("few_step_lora", "one_step_lora", "taesd"))
    assert preset_defaults("turbo", fast) == (1, 0.0, "TCD")


def test_a_model_for_few_steps_keeps_its_scheduler() -> None:
    unchanged = (STARTER.guidance_scale, STARTER.scheduler)
    four = replace(STARTER, num_inference_steps=4)
    assert preset_defaults("balanced", four) == (2, *unchanged)
    assert preset_defaults("balanced", STARTER) == (1, *unchanged)
    for spec in (STARTER, four):
        assert preset_defaults("turbo", spec) == (1, *unchanged)


def test_a_model_for_few_steps_has_at_most_eight() -> None:
    eight, nine = (replace(STARTER, num_inference_steps=steps) for steps in (8, 9))
    assert preset_defaults("turbo", eight)[0] == 2
    assert preset_defaults("turbo", nine)[0] == 6
    assert [distilled_lora_missing("turbo", spec) for spec in (eight, nine)] == [False, True]


def test_no_preset_takes_more_steps_than_the_default() -> None:
    short = replace(TINY, num_inference_steps=3)
    for preset in PRESETS:
        assert preset_defaults(preset, short)[0] <= 3


def test_with_defaults_fills_only_fields_that_are_none() -> None:
    turbo = GenerationRequest("a fox", model_key="small", preset="turbo").with_defaults(SMALL)
    assert (turbo.num_inference_steps, turbo.guidance_scale) == (4, 0.0)
    assert turbo.scheduler == "DDIM trailing"
    custom = GenerationRequest(
        "a fox", preset="balanced", num_inference_steps=9, guidance_scale=2.0, scheduler="UniPC"
    ).with_defaults(STARTER)
    assert (custom.num_inference_steps, custom.guidance_scale, custom.scheduler) == (9, 2.0, "UniPC")
    assert custom.with_defaults(STARTER) == custom


def test_an_unknown_preset_is_rejected() -> None:
    with pytest.raises(InvalidInput, match="Preset must be one of quality, balanced, turbo"):
        GenerationRequest("a fox", preset="fast")
