"""Memory that is freed while a picture is made is used again, and goes back afterwards."""

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
linux = pytest.mark.skipif(sys.platform != "linux", reason="glibc's")


def faults_of_ten_blocks(size: int = BLOCK) -> int:
    """How often the kernel had to find a page while ten blocks were filled and freed."""
    import torch

    for _ in range(10):  # until there are holes for a block and its alignment
        torch.ones(size, dtype=torch.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(size, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def measure() -> None:
    """Run by itself below, as a heap is that of a whole process: usual, kept, usual again."""
    found: list[int] = []

    def work() -> None:
        found.append(faults_of_ten_blocks())
        with malloc.retain_freed_memory():
            found.append(faults_of_ten_blocks())
        # Larger than what the heap may have kept, which would be used first.
        found.append(faults_of_ten_blocks(BLOCK + malloc.TRIM_ABOVE))

    malloc.single_arena()
    thread = threading.Thread(target=work)  # pictures are not made in the main thread either
    thread.start()
    thread.join()
    sys.stdout.write(" ".join(map(str, found)))


@linux
def test_what_is_freed_is_used_again_within_the_block_only() -> None:
    code = "from tests.engine.test_malloc import measure; measure()"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    usual, kept, after = map(int, said.stdout.split())
    assert kept < PAGES / 4, "not even one block anew"
    if usual > 9 * PAGES:  # without huge pages
        assert after > 9 * PAGES, "as it was"


@linux
def test_much_goes_back_after_the_block() -> None:
    import torch

    system_info.trim()
    before = system_info.resident_memory()
    with malloc.retain_freed_memory():
        torch.ones(4 * malloc.TRIM_ABOVE, dtype=torch.uint8)
        assert system_info.resident_memory() - before > 3 * malloc.TRIM_ABOVE
    assert system_info.resident_memory() - before < malloc.TRIM_ABOVE
