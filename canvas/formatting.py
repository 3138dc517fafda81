"""Sizes, durations and progress as text."""

from __future__ import annotations

import traceback
from typing import Any

from canvas.request import ProgressUpdate


def format_bytes(size: int) -> str:
    """A size in bytes, such as "4.3 GB"; 1 GB is 10^9 bytes."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size / 1000:.0f} kB"


def format_duration(seconds: float) -> str:
    """A duration in seconds, such as "4.2 s" or "3 min"."""
    if 0 < seconds < 0.1:
        return f"{seconds:.2f} s"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min"


def format_progress(status: str, progress: Any) -> tuple[float, str]:
    """The finished fraction of a job and a text, from its status and `Job.progress`."""
    if progress is None:
        return 0.0, status
    if isinstance(progress, ProgressUpdate):
        fraction = progress.fraction
        text = f"step {progress.step} of {progress.num_steps}"
        if progress.num_images > 1:
            text = f"image {progress.image_index + 1} of {progress.num_images}, {text}"
    else:
        done, total = progress.bytes_done, progress.bytes_total
        fraction = done / total if total else 1.0
        rate = format_bytes(int(progress.bytes_per_second))
        text = f"{format_bytes(done)} of {format_bytes(total)}, {rate}/s"
    if progress.seconds_left is not None:
        text += f", {format_duration(progress.seconds_left)} left"
    return fraction, text


def format_traceback(error: BaseException, *, with_message: bool) -> str:
    """The traceback of an error; without the messages, which can contain what a visitor sent."""
    if with_message:
        return "".join(traceback.format_exception(error)).rstrip()
    frames = "".join(traceback.format_tb(error.__traceback__))
    return f"{type(error).__name__}\n{frames}".rstrip()
