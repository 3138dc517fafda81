from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from canvas import MODELS, GenerationRequest
from canvas.engine.device import Device
from canvas.engine.estimate import seconds_per_step

CPU = Device("cpu", "float32", "", gigaflops=100.0)


def seconds(model_key: str, device: Device = CPU, **options: Any) -> float | None:
    spec = MODELS[model_key]
    request = GenerationRequest("a fox", model_key=model_key, **options).resolve(spec)
    return seconds_per_step(request, spec, device)


def test_size_guidance_and_speed_count() -> None:
    whole = seconds("small")
    assert whole is not None
    assert seconds("small", guidance_scale=1) == pytest.approx(whole / 2)
    assert seconds("small", width=256, height=256) == pytest.approx(whole / 4)
    assert seconds("small", replace(CPU, gigaflops=200.0)) == pytest.approx(whole / 2)
    assert (seconds("starter") or whole) < whole / 50


def test_shortcuts_of_the_mode_count() -> None:
    """With guidance a whole step is two passes: 7 such steps, 1 unguided, 7 short ones of 15."""
    whole, balanced = seconds("small"), seconds("small", mode="balanced")
    assert whole is not None
    assert balanced is not None
    assert 0.3 < balanced / whole < 0.6
    assert seconds("small", mode="turbo") == pytest.approx(whole / 2, rel=0.4)


def test_enlarging_with_detail_counts_its_windows_with_their_overlap() -> None:
    larger = {"task": "upscale", "image": "a.png", "upscaler": "detail", "scale": 2}
    one, four = (
        seconds("starter", width=side, height=side, **larger)
        for side in (MODELS["starter"].resolution, MODELS["starter"].resolution * 2)
    )
    assert one is not None
    assert four == pytest.approx(9 * one)


def test_nothing_is_said_of_what_was_not_measured() -> None:
    assert seconds("small", replace(CPU, gigaflops=None)) is None


def test_the_catalogue_tells_what_the_built_in_model_computes() -> None:
    from diffusers import UNet2DConditionModel
    from torch import no_grad, tensor, zeros
    from torch.utils.flop_counter import FlopCounterMode

    unet = UNet2DConditionModel.from_pretrained(MODELS["starter"].name, subfolder="unet")
    config = unet.config
    sample = zeros(1, config.in_channels, config.sample_size, config.sample_size)
    with no_grad(), FlopCounterMode(display=False) as counter:
        unet(sample, tensor(1), zeros(1, 77, config.cross_attention_dim))
    counted = counter.get_total_flops() / 1e9
    assert MODELS["starter"].gigaflops == pytest.approx(counted, rel=0.1)
