"""Noise between two seeds, for pictures that are much or little like another."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PARALLEL = 0.9995  # cosine beyond which the arc is a straight line


def slerp(first: torch.Tensor, second: torch.Tensor, share: float) -> torch.Tensor:
    """Spherical interpolation: `first` at a share of 0, `second` at 1, of full length between.

    A straight mixture of two noises would be too quiet for the model (K. Shoemake,
    "Animating rotation with quaternion curves", 1985).
    """
    import torch

    if share in (0, 1):
        return second if share else first
    norms = first.norm() * second.norm()
    cosine = float((first * second).sum() / norms)
    if abs(cosine) > PARALLEL:
        return first + share * (second - first)
    angle = torch.arccos(torch.tensor(cosine, dtype=torch.float64))
    weights = torch.sin((1 - share) * angle), torch.sin(share * angle)
    return (float(weights[0]) * first + float(weights[1]) * second) / float(torch.sin(angle))
