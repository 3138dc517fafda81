"""Estimates from the speed of the device and from the generation times of earlier images."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from canvas import MODELS, GenerationRequest
from canvas.engine.device import Device
from canvas.engine.estimate import (
    CONTROLNET_COST,
    SMALL_MODEL_DECODING,
    VAE_DECODING,
    XL_CONTROLNET_COST,
    estimate_duration,
    estimate_seconds,
)
from canvas.guidance import ReferenceImage
from canvas.history.database import Database
from canvas.presets import PRESETS
from canvas.request import GeneratedImage

CPU = Device("cpu", "float32", "", gflops=100.0)
STARTER = replace(MODELS["starter"], num_inference_steps=4)  # so that each preset takes another number
XL_UNET: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def seconds(model_key: str, device: Device = CPU, **options: Any) -> float:
    spec = STARTER if model_key == "starter" else MODELS[model_key]
    request = GenerationRequest("a fox", model_key=model_key, **options).with_defaults(spec)
    estimated = estimate_seconds(request, spec, device)
    assert estimated is not None
    return estimated


def test_estimate_depends_on_size_guidance_and_speed() -> None:
    whole = seconds("small")
    decoding = 512 * 512 * VAE_DECODING / (100 * 0.7)
    unguided = seconds("small", guidance_scale=1)
    assert unguided - decoding == pytest.approx((whole - decoding) / 2)
    assert seconds("small", width=256, height=256) == pytest.approx(whole / 4)
    assert seconds("small", replace(CPU, gflops=200.0)) == pytest.approx(whole / 2)
    assert seconds("starter") < whole / 50


def test_kernel_launches_dominate_small_models_on_a_fast_device() -> None:
    device = replace(CPU, gflops=1e9, kernel_launch_seconds=1e-5)
    quality, balanced, turbo = (
        seconds("starter", device, preset=preset) for preset in ("quality", "balanced", "turbo")
    )
    assert quality > balanced > turbo > 0.01
    twice = seconds("starter", device, num_inference_steps=8)
    assert 1.5 * quality < twice < 2 * quality, "prompts are encoded once"


def test_estimate_depends_on_the_preset() -> None:
    """Of 15 steps 7 are full, with two UNet calls each, one is conditional and 7 are cached."""
    whole = seconds("small")
    assert 0.3 < seconds("small", preset="balanced") / whole < 0.6
    turbo = seconds("small", preset="turbo")
    assert whole / 20 < turbo < whole / 10, "4 of 40 UNet calls, and a tiny VAE"


def test_upscaling_with_detail_counts_overlapping_tiles() -> None:
    options = {"task": "upscale", "image": "a.png", "upscaler": "detail", "scale": 2}
    one, four = (
        seconds("starter", width=side, height=side, **options) for side in (STARTER.resolution, STARTER.resolution * 2)
    )
    decoding = STARTER.resolution**2 * SMALL_MODEL_DECODING / (100 * 0.7)
    assert four - 4 * decoding == pytest.approx(9 * (one - decoding))


def test_estimate_is_none_without_the_speed_of_the_device() -> None:
    spec, request = MODELS["small"], GenerationRequest("a fox", model_key="small")
    unknown = replace(CPU, gflops=None)
    assert estimate_seconds(request.with_defaults(spec), spec, unknown) is None


def test_catalog_has_the_gflops_of_the_built_in_model() -> None:
    from diffusers import UNet2DConditionModel
    from torch import no_grad, tensor, zeros
    from torch.utils.flop_counter import FlopCounterMode

    unet = UNet2DConditionModel.from_pretrained(STARTER.name, subfolder="unet")
    config = unet.config
    sample = zeros(1, config.in_channels, config.sample_size, config.sample_size)
    text_encoder = json.loads((Path(STARTER.name) / "text_encoder" / "config.json").read_text())
    embeddings = zeros(1, text_encoder["max_position_embeddings"], config.cross_attention_dim)
    with no_grad(), FlopCounterMode(display=False) as counter:
        unet(sample, tensor(1), embeddings)
    gflops = counter.get_total_flops() / 1e9
    assert STARTER.gflops_per_step == pytest.approx(gflops, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cost", "config", "side"),
    [(CONTROLNET_COST, {"cross_attention_dim": 768}, 64), (XL_CONTROLNET_COST, XL_UNET, 128)],
)
def test_cost_of_a_controlnet_is_counted(cost: float, config: dict[str, Any], side: int) -> None:
    from diffusers import ControlNetModel, UNet2DConditionModel
    from torch import device, empty, no_grad, tensor
    from torch.utils.flop_counter import FlopCounterMode

    flops = []
    with device("meta"), no_grad():
        unet = UNet2DConditionModel(**config)
        net = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
        inputs = (empty(1, 4, side, side), tensor(1), empty(1, 77, config["cross_attention_dim"]))
        conditions = {"text_embeds": empty(1, 1280), "time_ids": empty(1, 6)}
        for module, options in ((unet, {}), (net, {"controlnet_cond": empty(1, 3, 8 * side, 8 * side)})):
            with FlopCounterMode(display=False) as counter:
                module(*inputs, added_cond_kwargs=conditions, **options)
            flops.append(counter.get_total_flops())
    assert cost == pytest.approx(flops[1] / flops[0], rel=0.01)


def test_reference_images_count_where_the_model_attends_to_them() -> None:
    references = (ReferenceImage("a.png"), ReferenceImage("b.png"))
    plain, one, two = (seconds("flux-klein", reference_images=references[:number]) for number in range(3))
    assert two - one == pytest.approx(one - plain)
    assert one > 1.5 * plain
    assert seconds("sdxl", reference_images=references) == seconds("sdxl")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "ai_images.db")
    yield database
    database.close()


def make_request(**options: Any) -> GenerationRequest:
    return GenerationRequest("a fox", seed=1, **options).with_defaults(STARTER)


def save(database: Database, request: GenerationRequest, seconds: float) -> None:
    image = GeneratedImage(request, "a fox", seconds, "cpu", "float32")
    database.save_image(replace(image, filename="a.png", filepath="a.png"))


def duration(database: Database, request: GenerationRequest, device: Device = CPU) -> float | None:
    return estimate_duration(request, STARTER, device, database.recent_times)


def test_without_history_the_speed_of_the_device_is_used(database: Database) -> None:
    request = make_request()
    assert duration(database, request) == estimate_seconds(request, STARTER, CPU)
    assert duration(database, request, replace(CPU, gflops=None)) is None


def test_generation_times_count_for_each_image(database: Database) -> None:
    save(database, make_request(), 3.0)
    assert duration(database, make_request()) == pytest.approx(3.0)
    assert duration(database, make_request(num_images=4)) == pytest.approx(12.0)


def test_generation_times_of_another_preset_correct_the_estimate(database: Database) -> None:
    request, turbo = make_request(), make_request(preset="turbo")
    predicted, predicted_turbo = (estimate_seconds(r, STARTER, CPU) for r in (request, turbo))
    assert predicted
    assert predicted_turbo
    save(database, request, 3.0 * predicted)
    assert duration(database, turbo) == pytest.approx(3.0 * predicted_turbo)


def test_the_estimates_of_presets_stay_ordered_whatever_was_measured(database: Database) -> None:
    save(database, make_request(preset="balanced"), 0.1)
    save(database, make_request(preset="turbo"), 9.0)
    quality, balanced, turbo = (duration(database, make_request(preset=preset)) for preset in PRESETS)
    assert quality > balanced > turbo > 0  # type: ignore[operator]


def test_times_of_other_numbers_of_steps_count_in_proportion(database: Database) -> None:
    long, short = make_request(num_inference_steps=150), make_request()
    save(database, long, 2 * (estimate_seconds(long, STARTER, CPU) or 0))
    assert duration(database, short) == pytest.approx(2 * (estimate_seconds(short, STARTER, CPU) or 0))


def test_images_of_the_same_size_count_before_those_of_others() -> None:
    request, other = make_request(), replace(make_request(), width=128, height=128)
    times = [(other, 100.0), (other, 200.0), (request, 3.0)]
    assert estimate_duration(request, STARTER, CPU, lambda *_: times) == pytest.approx(3.0)
    assert (estimate_duration(request, STARTER, CPU, lambda *_: times[:1]) or 0) > 10


def test_a_model_of_unknown_size_is_estimated_from_its_images(database: Database) -> None:
    spec = replace(STARTER, type="auto", gflops_per_step=0.0)
    request = make_request()
    assert estimate_duration(request, spec, CPU, database.recent_times) is None
    save(database, request, 3.0)
    assert estimate_duration(request, spec, CPU, database.recent_times) == pytest.approx(3.0)


def test_a_wrong_native_size_does_not_change_the_size_of_the_unet() -> None:
    request = GenerationRequest("a fox", width=512, height=512, num_inference_steps=20)
    entry = replace(MODELS["small"], gflops_per_step=0.0)
    expected = estimate_seconds(request.with_defaults(entry), entry, CPU)
    small = replace(entry, resolution=256)
    assert estimate_seconds(request.with_defaults(small), small, CPU) == expected
