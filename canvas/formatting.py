"""Sizes and times as text."""

from __future__ import annotations


def format_bytes(size: int) -> str:
    """A size in bytes as people say it (1 GB = 10^9 bytes)."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size / 1000:.0f} kB"


def format_duration(seconds: float) -> str:
    """A time in seconds as people say it."""
    if 0 < seconds < 0.1:
        return f"{seconds:.2f} s"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min"
