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
    """The SSIM of each window of (N, 1, H, W) from 0 to 1: (N, 1, H - 10, W - 10).

    Wang et al. 2004: Gaussian window of 11 pixels, sigma 1.5, K 0.01 and 0.03.
    """
    import torch

    gaussian = torch.exp(-((torch.arange(11, dtype=a.dtype, device=a.device) - 5) ** 2) / (2 * 1.5**2))
    gaussian /= gaussian.sum()
    down, across = (_sliding(gaussian, size) for size in a.shape[2:])

    def mean(values: torch.Tensor) -> torch.Tensor:
        return down @ values @ across.T

    mean_a, mean_b = mean(a), mean(b)
    variance_a = mean(a * a) - mean_a**2
    variance_b = mean(b * b) - mean_b**2
    covariance = mean(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    numerator = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    denominator = (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
    return numerator / denominator


def _sliding(window: torch.Tensor, size: int) -> torch.Tensor:
    """The matrix [size - n + 1, size] whose rows are a window of n values at each position."""
    import torch
    from torch.nn.functional import pad

    return torch.stack([pad(window, (at, size - len(window) - at)) for at in range(size - len(window) + 1)])


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
