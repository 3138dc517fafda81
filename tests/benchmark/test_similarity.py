"""SSIM and PSNR, compared with values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from canvas.benchmark.similarity import psnr, ssim


def noise(seed: int, low: int = 0, high: int = 255) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(low, high + 1, (48, 48, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_equal_images() -> None:
    assert ssim(noise(1), noise(1)) == pytest.approx(1)
    assert psnr(noise(1), noise(1)) == math.inf


def test_flat_images_differ_in_luminance_only() -> None:
    grey, dark = (Image.new("RGB", (32, 32), (value,) * 3) for value in (204, 102))
    a, b = 0.8, 0.4
    expected = (2 * a * b + 1e-4) / (a * a + b * b + 1e-4)
    assert ssim(grey, dark) == pytest.approx(expected, abs=1e-6)
    assert psnr(grey, dark) == pytest.approx(-20 * math.log10(0.4), abs=1e-6)


def test_different_images_have_a_low_ssim() -> None:
    assert abs(ssim(noise(1), noise(2))) < 0.1
    assert ssim(noise(1), noise(2)) < ssim(noise(1), Image.blend(noise(1), noise(2), 0.2)) < 1
