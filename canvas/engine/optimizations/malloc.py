"""The C library's heap while a picture is made: what one layer frees is kept for the next.

Left alone, glibc asks the kernel for each large block and gives it back when it is freed, so
that the same pages are cleared thousands of times a picture: a sixth of the processor's time.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import MappingProxyType

from canvas.engine import system_info

# Parameters of mallopt, by malloc.h.
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -2, -3, -4, -8
RETAIN_OPTS = MappingProxyType({MMAP_MAX: 0, TRIM_THRESHOLD: 2**31 - 1, TOP_PAD: 64 << 20})
# What glibc's own thresholds come to in a program that frees large blocks.
DEFAULT_OPTS = MappingProxyType(
    {MMAP_THRESHOLD: 32 << 20, MMAP_MAX: 65536, TRIM_THRESHOLD: 64 << 20, TOP_PAD: 128 << 10}
)
TRIM_ABOVE = 256 << 20  # bytes; less is not worth the time to give it back


def single_arena() -> None:
    """Let the threads that start from now on share one heap, the only one that can grow large."""
    _set({ARENA_MAX: 1})


@contextmanager
def retain_freed_memory() -> Iterator[None]:
    """Keep what is freed within the block, and give it back after the block if it is much."""
    before = system_info.resident_memory()
    _set(RETAIN_OPTS)
    try:
        yield
    finally:
        _set(DEFAULT_OPTS)
        if system_info.resident_memory() - before > TRIM_ABOVE:
            system_info.trim()


def _set(parameters: dict[int, int] | MappingProxyType[int, int]) -> None:
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for name, value in parameters.items():
            libc.mallopt(name, value)
