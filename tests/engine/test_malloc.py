"""Freed memory is reused during inference and returned to the system afterwards."""

from __future__ import annotations

import resource
import subprocess
import sys
import threading

import pytest

from canvas.engine import system_info
from canvas.engine.optimizations import malloc

BLOCK = 96 << 20
PAGES = BLOCK // resource.getpagesize()
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")


def faults_of_ten_blocks(size: int = BLOCK) -> int:
    """Page faults while ten blocks are filled and freed."""
    import torch

    for _ in range(10):  # until the heap has room for an aligned block
        torch.ones(size, dtype=torch.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(size, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def measure() -> None:
    """Run in a process of its own below: page faults by default, in the block, and after it."""
    counts: list[int] = []

    def work() -> None:
        counts.append(faults_of_ten_blocks())
        with malloc.retain_freed_memory():
            counts.append(faults_of_ten_blocks())
        # Larger than what may be retained.
        counts.append(faults_of_ten_blocks(BLOCK + malloc.TRIM_ABOVE))

    malloc.single_arena()
    thread = threading.Thread(target=work)  # as in the app
    thread.start()
    thread.join()
    sys.stdout.write(" ".join(map(str, counts)))


@pytest.mark.long
@linux
def test_freed_memory_is_reused_in_the_block_only() -> None:
    code = "from tests.engine.test_malloc import measure; measure()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    default, retained, after = map(int, result.stdout.split())
    assert retained < PAGES / 4
    if default > 9 * PAGES:  # without huge pages
        assert after > 9 * PAGES


@pytest.mark.slow
@linux
def test_much_memory_is_returned_after_the_block() -> None:
    import torch

    system_info.trim()
    before = system_info.resident_memory()
    with malloc.retain_freed_memory():
        torch.ones(4 * malloc.TRIM_ABOVE, dtype=torch.uint8)
        assert system_info.resident_memory() - before > 3 * malloc.TRIM_ABOVE
    assert system_info.resident_memory() - before < malloc.TRIM_ABOVE
