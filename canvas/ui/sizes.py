"""Width and height from a resolution and an aspect ratio, and back."""

from __future__ import annotations

import math

from canvas import validation
from canvas.catalog import ModelSpec

ASPECT_RATIOS = ("1:1", "4:3", "3:2", "16:9", "3:4", "2:3", "9:16")


def size_of(spec: ModelSpec, resolution: float, aspect_ratio: str) -> tuple[int, int]:
    """Width and height of about `resolution`² pixels, multiples of 8 that the model can make."""
    resolution = validation.number("resolution", resolution, spec.min_size, spec.max_size)
    validation.choice("aspect_ratio", aspect_ratio, ASPECT_RATIOS)
    across, down = (int(part) for part in aspect_ratio.split(":"))
    stretch = math.sqrt(across / down)
    return _fitting(spec, resolution * stretch), _fitting(spec, resolution / stretch)


def _fitting(spec: ModelSpec, side: float) -> int:
    lowest, highest = math.ceil(spec.min_size / 8) * 8, spec.max_size // 8 * 8
    return min(max(round(side / 8) * 8, lowest), highest)


def setting_of(spec: ModelSpec, width: int, height: int) -> tuple[int, str] | None:
    """The resolution and aspect ratio that give exactly this size; None when none do."""
    for resolution in range(spec.min_size, spec.max_size + 1, spec.size_step):
        for aspect_ratio in ASPECT_RATIOS:
            if size_of(spec, resolution, aspect_ratio) == (width, height):
                return resolution, aspect_ratio
    return None
