"""Tunes glibc's malloc during inference: freed memory is kept for the next layer.

By default glibc maps large blocks and unmaps them when they are freed, so that the kernel
clears the same pages thousands of times per image: a sixth of the CPU time.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

from canvas.engine import system_info

# Parameters of mallopt, from malloc.h.
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -2, -3, -4, -8
RETAIN_OPTS = MappingProxyType({MMAP_MAX: 0, TRIM_THRESHOLD: 2**31 - 1, TOP_PAD: 64 << 20})
# The values that glibc's dynamic thresholds reach in a program that frees large blocks.
DEFAULT_OPTS = MappingProxyType(
    {MMAP_THRESHOLD: 32 << 20, MMAP_MAX: 65536, TRIM_THRESHOLD: 64 << 20, TOP_PAD: 128 << 10}
)
TRIM_ABOVE = 256 << 20  # bytes; returning less is not worth the time


def single_arena() -> None:
    """Let new threads share the main arena, the only one that can grow large."""
    _mallopt({ARENA_MAX: 1})


@contextmanager
def retain_freed_memory() -> Iterator[None]:
    """Keep freed memory inside the block; afterwards return it to the system if it is much."""
    before = system_info.resident_memory()
    _mallopt(RETAIN_OPTS)
    try:
        yield
    finally:
        _mallopt(DEFAULT_OPTS)
        if system_info.resident_memory() - before > TRIM_ABOVE:
            system_info.trim()


def _mallopt(parameters: Mapping[int, int]) -> None:
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for name, value in parameters.items():
            libc.mallopt(name, value)
