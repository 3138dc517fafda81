"""Seconds of a picture before one like it was timed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from canvas import MODELS, GenerationRequest
from canvas.engine.device import Device
from canvas.engine.estimate import DECODING, LITTLE_DECODING, estimate_seconds

CPU = Device("cpu", "float32", "", gigaflops=100.0)


def seconds(model_key: str, device: Device = CPU, **options: Any) -> float:
    spec = MODELS[model_key]
    request = GenerationRequest("a fox", model_key=model_key, **options).with_defaults(spec)
    found = estimate_seconds(request, spec, device)
    assert found is not None
    return found


def test_size_guidance_and_speed_count() -> None:
    whole = seconds("small")
    decoding = 512 * 512 * DECODING / (100 * 0.7)
    unguided = seconds("small", guidance_scale=1)
    assert unguided - decoding == pytest.approx((whole - decoding) / 2)
    assert seconds("small", width=256, height=256) == pytest.approx(whole / 4)
    assert seconds("small", replace(CPU, gigaflops=200.0)) == pytest.approx(whole / 2)
    assert seconds("starter") < whole / 50


def test_a_small_model_takes_time_for_its_layers_however_fast_the_machine() -> None:
    device = replace(CPU, gigaflops=1e9, layer_seconds=1e-5)
    quality, balanced, turbo = (
        seconds("starter", device, preset=preset) for preset in ("quality", "balanced", "turbo")
    )
    assert quality > balanced > turbo > 0.01
    twice = seconds("starter", device, num_inference_steps=8)
    assert 1.5 * quality < twice < 2 * quality, "the words are read once"


def test_shortcuts_of_the_mode_count() -> None:
    """With guidance a whole step is two passes: 7 such steps, 1 unguided, 7 short ones of 15."""
    whole = seconds("small")
    assert 0.3 < seconds("small", preset="balanced") / whole < 0.6
    turbo = seconds("small", preset="turbo")
    assert whole / 20 < turbo < whole / 10, "4 of 40 passes, and a tiny decoder"


def test_enlarging_with_detail_counts_its_windows_with_their_overlap() -> None:
    larger = {"task": "upscale", "image": "a.png", "upscaler": "detail", "scale": 2}
    one, four = (
        seconds("starter", width=side, height=side, **larger)
        for side in (MODELS["starter"].resolution, MODELS["starter"].resolution * 2)
    )
    decoding = MODELS["starter"].resolution ** 2 * LITTLE_DECODING / (100 * 0.7)
    assert four - 4 * decoding == pytest.approx(9 * (one - decoding))


def test_nothing_is_said_of_what_was_not_measured() -> None:
    spec, request = MODELS["small"], GenerationRequest("a fox", model_key="small")
    unknown = replace(CPU, gigaflops=None)
    assert estimate_seconds(request.with_defaults(spec), spec, unknown) is None


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
    assert MODELS["starter"].gflops_per_step == pytest.approx(counted, rel=0.1)
