"""How far something is, in a number and in words, for whoever waits for it."""

from __future__ import annotations

from typing import Any

from canvas.models import duration, gigabytes
from canvas.request import Step


def told(status: str, progress: Any) -> tuple[float, str]:
    """How far a job is, 0 to 1, and what to say of it."""
    if progress is None:
        return 0.0, status
    if isinstance(progress, Step):
        note = f"step {progress.step} of {progress.num_steps}"
        if progress.num_images > 1:
            note = f"picture {progress.image_index + 1} of {progress.num_images}, {note}"
        return progress.fraction, note + _time(progress.seconds_left)
    done, total = progress.bytes_done, progress.bytes_total
    rate = gigabytes(int(progress.bytes_per_second))
    note = f"{gigabytes(done)} of {gigabytes(total)}, {rate}/s"
    return done / total if total else 1.0, note + _time(progress.seconds_left)


def _time(seconds: float | None) -> str:
    return "" if seconds is None else f", {duration(seconds)} left"
