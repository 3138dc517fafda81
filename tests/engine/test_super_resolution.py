from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from canvas.engine import super_resolution
from canvas.engine.super_resolution import NETWORKS, upscale_image
from canvas.errors import GenerationCancelled, InvalidInput

needs_networks = pytest.mark.skipif(
    not super_resolution.is_ncnn_available(), reason="the optional packages are not installed"
)


def waves(size: tuple[int, int]) -> Image.Image:
    """Smooth shapes with edges, without any regularity of the tiles."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    planes = [np.sin(x / a + y / b) > c for a, b, c in ((9, 31, 0), (23, 11, 0.4), (17, 7, -0.3))]
    soft = [127 + 60 * plane + 50 * np.sin(x / 13) for plane in planes]
    return Image.fromarray(np.stack(soft, -1).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("scale", [2, 4])
def test_lanczos_enlarges_plainly(scale: int) -> None:
    larger = upscale_image(waves((50, 30)), scale, "lanczos")
    assert larger.size == (50 * scale, 30 * scale)
    again = np.asarray(larger.resize((50, 30), Image.Resampling.BOX), float)
    assert np.abs(again - np.asarray(waves((50, 30)), float)).mean() < 4


def test_too_large_a_result_is_refused() -> None:
    with pytest.raises(InvalidInput, match="at most 100 million pixels"):
        upscale_image(Image.new("RGB", (4000, 4000)), 4, "lanczos")


@needs_networks
@pytest.mark.parametrize("scale", [2, 4])
def test_network_keeps_the_picture_and_sharpens_its_edges(scale: int) -> None:
    small = waves((64, 48))
    larger = upscale_image(small, scale, "illustration")
    assert larger.size == (64 * scale, 48 * scale)
    again = np.asarray(larger.resize(small.size, Image.Resampling.BOX), float)
    assert np.abs(again - np.asarray(small, float)).mean() < 8
    plain = upscale_image(small, scale, "lanczos")
    steepest = [np.abs(np.diff(np.asarray(p, float), axis=1)).max() for p in (larger, plain)]
    assert steepest[0] > steepest[1]


@needs_networks
def test_network_in_tiles_gives_what_one_pass_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = waves((100, 70))
    seen: list[tuple[int, int]] = []
    whole = np.asarray(upscale_image(picture, 2, "illustration"), int)
    small = replace(NETWORKS["illustration"], tile=48)
    monkeypatch.setattr(super_resolution, "NETWORKS", {"illustration": small})
    tiled = upscale_image(
        picture, 2, "illustration", lambda done, total: seen.append((done, total))
    )
    assert np.abs(np.asarray(tiled, int) - whole).max() <= 1
    assert seen == [(done, 6) for done in range(7)]


@needs_networks
def test_network_stops_within_a_tile() -> None:
    cancelled = threading.Event()
    with pytest.raises(GenerationCancelled):
        upscale_image(waves((400, 32)), 2, "illustration", lambda *_: cancelled.set(), cancelled)
