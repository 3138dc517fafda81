"""What picking a model means, in one line: where it is, what to fetch, how long it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from canvas.catalog import ModelSpec

COMMON_SPEED = 100e6 / 8  # bytes a second of a usual connection
Where = Literal["memory", "disk", "hub"]


@dataclass(frozen=True)
class ModelState:
    """Where a model is; `sentence` tells it to a user. Bytes are None when nobody asked."""

    key: str
    where: Where
    missing_bytes: int | None
    free_bytes: int
    sentence: str


def describe(
    spec: ModelSpec,
    where: Where,
    *,
    missing_bytes: int | None,
    free_bytes: int,
    seconds: float | None,
) -> ModelState:
    """The state of a model with its sentence."""
    to_fetch = f"{spec.size} to download"
    if missing_bytes is not None:
        time = duration(missing_bytes / COMMON_SPEED)
        to_fetch = f"{gigabytes(missing_bytes)} to download, {time} at 100 Mbit/s"
    place = {
        "memory": "in memory",
        "disk": "on disk",
        "hub": f"{to_fetch}, {gigabytes(free_bytes)} free",
    }[where]
    parts = [place, f"native {spec.resolution} × {spec.resolution}"]
    if where == "hub" and spec.license:
        parts.insert(1, f"licence {spec.license}")
    if seconds is not None:
        parts.append(f"about {duration(seconds)} a picture here")
    sentence = " · ".join(parts)
    return ModelState(spec.key, where, missing_bytes, free_bytes, sentence)


def gigabytes(size: int) -> str:
    """A size in bytes as people say it (1 GB = 10^9 bytes)."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size / 1000:.0f} kB"


def duration(seconds: float) -> str:
    """A time in seconds as people say it."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min"
