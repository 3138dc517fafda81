from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from canvas.engine import super_resolution
from canvas.engine.super_resolution import SUPER_RESOLUTION_MODELS, upscale_image
from canvas.errors import GenerationCancelled, InvalidInput

needs_ncnn = pytest.mark.skipif(
    not super_resolution.is_ncnn_available(), reason="the optional packages are not installed"
)


def make_waves(size: tuple[int, int]) -> Image.Image:
    """Smooth shapes and edges that are not aligned with the tiles."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    planes = [np.sin(x / a + y / b) > c for a, b, c in ((9, 31, 0), (23, 11, 0.4), (17, 7, -0.3))]
    soft = [127 + 60 * plane + 50 * np.sin(x / 13) for plane in planes]
    return Image.fromarray(np.stack(soft, -1).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("scale", [2, 4])
def test_lanczos_keeps_the_image(scale: int) -> None:
    upscaled = upscale_image(make_waves((50, 30)), scale, "lanczos")
    assert upscaled.size == (50 * scale, 30 * scale)
    downscaled = np.asarray(upscaled.resize((50, 30), Image.Resampling.BOX), float)
    assert np.abs(downscaled - np.asarray(make_waves((50, 30)), float)).mean() < 4


def test_too_large_result_is_rejected() -> None:
    with pytest.raises(InvalidInput, match="at most 100 million pixels"):
        upscale_image(Image.new("RGB", (4000, 4000)), 4, "lanczos")


@needs_ncnn
@pytest.mark.parametrize("scale", [2, 4])
def test_model_keeps_the_image_and_sharpens_edges(scale: int) -> None:
    small = make_waves((64, 48))
    upscaled = upscale_image(small, scale, "illustration")
    assert upscaled.size == (64 * scale, 48 * scale)
    downscaled = np.asarray(upscaled.resize(small.size, Image.Resampling.BOX), float)
    assert np.abs(downscaled - np.asarray(small, float)).mean() < 8
    lanczos = upscale_image(small, scale, "lanczos")
    gradients = [np.abs(np.diff(np.asarray(p, float), axis=1)).max() for p in (upscaled, lanczos)]
    assert gradients[0] > gradients[1]


@needs_ncnn
def test_tiles_equal_a_single_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    image = make_waves((100, 70))
    progress: list[tuple[int, int]] = []
    single_pass = np.asarray(upscale_image(image, 2, "illustration"), int)
    model = replace(SUPER_RESOLUTION_MODELS["illustration"], tile=48)
    monkeypatch.setattr(super_resolution, "SUPER_RESOLUTION_MODELS", {"illustration": model})
    tiled = upscale_image(image, 2, "illustration", lambda done, total: progress.append((done, total)))
    assert np.abs(np.asarray(tiled, int) - single_pass).max() <= 1
    assert progress == [(done, 6) for done in range(7)]


@needs_ncnn
def test_cancel_within_one_tile() -> None:
    cancelled = threading.Event()
    with pytest.raises(GenerationCancelled):
        upscale_image(make_waves((400, 32)), 2, "illustration", lambda *_: cancelled.set(), cancelled)
