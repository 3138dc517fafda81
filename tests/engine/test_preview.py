"""Previews of latents of all kinds."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import ImageChops, ImageStat

from canvas.catalog import ASSETS
from canvas.engine.preview import Preview, predict_original_sample


@pytest.fixture(scope="module")
def starter() -> Any:
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(ASSETS / "starter", dtype=torch.float32)


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path) -> Any:
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(tiny_folder)


def test_small_latents_are_decoded_by_a_tiny_vae(starter: Any) -> None:
    latents = torch.randn(2, 48, 16, 16, generator=torch.Generator().manual_seed(1))
    preview = Preview(latents, starter).image()
    pixels = starter.vae.decode(latents[:1] / starter.vae.config.scaling_factor).sample
    decoded = starter.image_processor.postprocess(pixels.detach())[0].resize((256, 256))
    assert preview.size == (256, 256)
    difference = ImageChops.difference(preview, decoded)
    assert max(ImageStat.Stat(difference).mean) < 3


def test_four_channels_are_converted_to_rgb(tiny: Any) -> None:
    latents = torch.zeros(1, 4, 8, 16)
    latents[:, 0] = 2.0  # brightness
    latents[:, 1, :, :8] = 2.0  # towards green
    latents[:, 3, :, 8:] = 1.0  # away from blue
    preview = Preview(latents, tiny).image()
    assert preview.size == (256, 128)
    left, right = preview.getpixel((60, 60)), preview.getpixel((200, 60))
    assert left[1] > left[0] > 128
    assert right[2] < right[0]


@pytest.mark.parametrize("channels", [1, 2, 3, 8, 16])
def test_unknown_latents_are_shown(tiny: Any, channels: int) -> None:
    latents = torch.randn(1, channels, 8, 8, generator=torch.Generator().manual_seed(1))
    preview = Preview(latents[:, :1] if channels == 2 else latents, tiny).image()
    assert preview.mode == "RGB"
    low, high = preview.convert("L").getextrema()
    assert high - low > 20


def test_nan_latents_are_accepted(tiny: Any) -> None:
    assert Preview(torch.full((1, 4, 8, 8), float("nan")), tiny).image().size == (256, 256)


def test_large_preview_is_not_enlarged(tiny: Any) -> None:
    assert Preview(torch.zeros(1, 4, 40, 300), tiny).image().size == (300, 40)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_prediction_recovers_the_clean_latents(kind: str) -> None:
    """With the true noise as the model output."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(prediction_type=kind)
    generator = torch.Generator().manual_seed(1)
    clean, noise = (torch.randn(1, 4, 8, 8, generator=generator) for _ in range(2))
    timestep = torch.tensor([500])
    noisy = scheduler.add_noise(clean, noise, timestep)
    model_output = {
        "epsilon": noise,
        "sample": clean,
        "v_prediction": scheduler.get_velocity(clean, noise, timestep) if kind == "v_prediction" else noise,
    }[kind]
    predicted = predict_original_sample(noisy, model_output, 500.0, scheduler)
    torch.testing.assert_close(predicted, clean, atol=1e-4, rtol=1e-4)


def test_timestep_without_signal_does_not_divide_by_zero() -> None:
    scheduler = SimpleNamespace(alphas_cumprod=torch.tensor([0.9, 0.0]), config={})
    predicted = predict_original_sample(torch.ones(1, 4, 2, 2), torch.ones(1, 4, 2, 2), 5.0, scheduler)
    assert predicted.isfinite().all()
