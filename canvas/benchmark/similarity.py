"""Image similarity: SSIM and PSNR."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


def ssim(one: Image, other: Image) -> float:
    """Structural similarity, 1 for equal images: the mean of `ssim_map` over all windows and RGB."""
    return float(ssim_map(_to_tensor(one), _to_tensor(other)).mean())


def ssim_map(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The SSIM of each window of (N, 1, H, W) from 0 to 1, in float64: (N, 1, H - 10, W - 10).

    Wang et al. 2004: Gaussian window of 11 pixels, sigma 1.5, K 0.01 and 0.03.
    """
    import torch
    from torch.nn.functional import conv2d

    gaussian = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2))
    window = torch.outer(gaussian, gaussian)[None, None] / gaussian.sum() ** 2
    mean_a, mean_b = conv2d(a, window), conv2d(b, window)
    variance_a = conv2d(a * a, window) - mean_a**2
    variance_b = conv2d(b * b, window) - mean_b**2
    covariance = conv2d(a * b, window) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    numerator = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    denominator = (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
    return numerator / denominator


def psnr(one: Image, other: Image) -> float:
    """Peak signal-to-noise ratio in dB; infinite for equal images."""
    return decibels(float(((_to_tensor(one) - _to_tensor(other)) ** 2).mean()))


def decibels(error: float) -> float:
    """The PSNR of a mean squared error relative to the square of the range."""
    return math.inf if error == 0 else -10 * math.log10(error)


def _to_tensor(image: Image) -> torch.Tensor:
    """(3, 1, H, W) from 0 to 1."""
    import numpy as np
    import torch

    pixels = torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float64) / 255)
    return pixels.permute(2, 0, 1)[:, None]
