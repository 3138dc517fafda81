"""Freed memory is reused during inference and returned to the system afterwards."""

from __future__ import annotations

import resource
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any

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


@pytest.mark.parametrize(("grown", "trimmed"), [(malloc.TRIM_ABOVE, False), (malloc.TRIM_ABOVE + 1, True)])
@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_memory_is_tuned_in_the_block_where_there_is_glibc(
    monkeypatch: pytest.MonkeyPatch, platform: str, grown: int, trimmed: bool
) -> None:
    calls: list[Any] = []
    resident = iter([1000, 1000 + grown])
    monkeypatch.setattr(system_info, "resident_memory", lambda: next(resident))
    monkeypatch.setattr(system_info, "trim", lambda: calls.append("trim"))
    libc = SimpleNamespace(mallopt=lambda *values: calls.append(values))
    monkeypatch.setattr(malloc, "sys", SimpleNamespace(platform=platform))
    monkeypatch.setattr(malloc, "ctypes", SimpleNamespace(CDLL=lambda _: libc))
    with malloc.retain_freed_memory():
        calls.append("work")
    glibc = platform == "linux"
    before = list(malloc.RETAIN_OPTS.items()) if glibc else []
    after = list(malloc.DEFAULT_OPTS.items()) if glibc else []
    assert calls == [*before, "work", *after, *(["trim"] if trimmed else [])]


def test_a_system_without_mallopt_is_not_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(malloc, "sys", SimpleNamespace(platform="linux"))
    monkeypatch.setattr(malloc, "ctypes", SimpleNamespace(CDLL=lambda _: object()))  # musl
    malloc.single_arena()
