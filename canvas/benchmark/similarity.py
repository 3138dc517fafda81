"""How alike two pictures are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


def ssim(one: Image, other: Image) -> float:
    """Structural similarity, 1 for equal pictures.

    Wang et al. 2004, mean over the colours: window of 11 pixels, sigma 1.5, K 0.01 and 0.03.
    """
    import torch
    from torch.nn.functional import conv2d

    a, b = _planes(one), _planes(other)
    bell = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2))
    window = torch.outer(bell, bell)[None, None] / bell.sum() ** 2
    mean_a, mean_b = conv2d(a, window), conv2d(b, window)
    spread_a = conv2d(a * a, window) - mean_a**2
    spread_b = conv2d(b * b, window) - mean_b**2
    together = conv2d(a * b, window) - mean_a * mean_b
    light, contrast = 0.01**2, 0.03**2
    top = (2 * mean_a * mean_b + light) * (2 * together + contrast)
    bottom = (mean_a**2 + mean_b**2 + light) * (spread_a + spread_b + contrast)
    return float((top / bottom).mean())


def psnr(one: Image, other: Image) -> float:
    """Peak signal to noise ratio in dB; infinite for equal pictures."""
    error = float(((_planes(one) - _planes(other)) ** 2).mean())
    return math.inf if error == 0 else -10 * math.log10(error)


def _planes(image: Image) -> torch.Tensor:
    """(3, 1, H, W) from 0 to 1."""
    import numpy as np
    import torch

    pixels = torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float64) / 255)
    return pixels.permute(2, 0, 1)[:, None]
