"""What this machine really has: cores and memory, with the limits of its container."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("sys/fs/cgroup")


def core_count(root: Path = Path("/")) -> int:
    """Cores worth a thread each: physical, allowed to this process, within the cgroup's quota.

    On hybrid processors only the performance cores count, because the threads of one
    operation wait for the slowest.
    """
    allowed = _allowed_cores()
    fast = _core_list(root / "sys/devices/cpu_core/cpus") & allowed
    cores = fast or allowed
    siblings = {
        frozenset(_core_list(path) & cores) or frozenset({core})
        for core in cores
        for path in [root / f"sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list"]
    }
    quotas = [quota for quota in _cpu_quotas(root) if quota > 0]
    return max(1, min([len(siblings), *(int(quota + 0.5) for quota in quotas)]))


def total_memory(root: Path = Path("/")) -> int:
    """Bytes of memory that this process may use at most."""
    import psutil

    limits = [limit for limit, _ in _memory_cgroups(root)]
    return min([psutil.virtual_memory().total, *limits])


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that can be had now without swapping; file caches count as free."""
    import psutil

    rooms = [max(0, limit - used) for limit, used in _memory_cgroups(root)]
    return min([psutil.virtual_memory().available, *rooms, *_rlimit_available()])


def resident_memory() -> int:
    """Bytes that this process holds in memory."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def release_memory() -> None:
    """Give freed memory back to the system, which the C library would keep for itself."""
    gc.collect()
    trim()


def trim() -> None:
    """The same without looking for what Python could free."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def processor_name(root: Path = Path("/")) -> str:
    """The processor's model as it names itself."""
    for line in _text(root / "proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _allowed_cores() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _core_list(path: Path) -> set[int]:
    """Parse the kernel's notation for sets of cores, such as `0-3,8`."""
    cores: set[int] = set()
    for part in _text(path).strip().split(","):
        first, _, last = part.partition("-")
        if first.isdecimal():
            cores.update(range(int(first), int(last or first) + 1))
    return cores


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders that limit this process for a controller, the innermost first (v1 and v2)."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            top = root / CGROUPS
        elif controller in controllers.split(","):
            top = root / CGROUPS / controller
        else:
            continue
        group = top / path.lstrip("/")
        yield from [group, *(parent for parent in group.parents if parent.is_relative_to(top))]


def _cpu_quotas(root: Path) -> Iterator[float]:
    for group in _groups(root, "cpu"):
        quota, period = [*_text(group / "cpu.max").split(), "", ""][:2]
        if not quota:
            quota, period = (
                _text(group / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")
            )
        if quota.isdecimal() and period.isdecimal() and int(period):
            yield int(quota) / int(period)


def _memory_cgroups(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and use in bytes of every group that has a limit."""
    for group in _groups(root, "memory"):
        for limit_file, use_file, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, used = _text(group / limit_file).strip(), _text(group / use_file).strip()
            # v1 says "no limit" with a number near 2^63
            if limit.isdecimal() and int(limit) < 2**60:
                files = dict(
                    line.split(" ", 1) for line in _text(group / "memory.stat").splitlines()
                )
                yield int(limit), int(used or 0) - int(files.get(cache, 0))


def _rlimit_available() -> Iterator[int]:
    """Bytes of addresses that this process may still take, where `ulimit -v` sets a limit."""
    import psutil

    if sys.platform == "linux":
        limit, _ = psutil.Process().rlimit(psutil.RLIMIT_AS)
        if limit != psutil.RLIM_INFINITY:
            yield max(0, limit - psutil.Process().memory_info().vms)


def _text(path: Path) -> str:
    """The file's text, or nothing where this system has no such file."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, torch or a driver means that memory was short."""
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    words = (
        *("out of memory", "not enough memory", "can't allocate memory", "bad_alloc"),
        *("could not create a primitive", "could not create a memory"),  # oneDNN's
        "cublas_status_alloc_failed",
    )
    return isinstance(error, RuntimeError) and any(word in text for word in words)
