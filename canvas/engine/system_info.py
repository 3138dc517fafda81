"""Usable CPU cores and memory, within the limits of the container."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CGROUP_ROOT = Path("sys/fs/cgroup")


def core_count(root: Path = Path("/")) -> int:
    """Physical cores that this process may use, within the CPU affinity and the cgroup's quota.

    On hybrid processors only performance cores count, because the threads of an operation
    wait for the slowest one.
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
    """Bytes of memory of the machine, or of the container if it has a limit."""
    import psutil

    return min([psutil.virtual_memory().total, *[limit for limit, _ in _memory_cgroups(root)]])


def free_memory(root: Path = Path("/")) -> int:
    """Bytes available without swapping; the file cache counts as free."""
    import psutil

    headrooms = [max(0, limit - used) for limit, used in _memory_cgroups(root)]
    return min([psutil.virtual_memory().available, *headrooms, *_rlimit_available()])


def resident_memory() -> int:
    """The resident set size of this process in bytes."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def release_memory() -> None:
    """Collect garbage and return freed memory to the system."""
    gc.collect()
    trim()


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Pause it while libraries are imported and a model is loaded, which create many objects, all of which stay."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def trim() -> None:
    """Return memory that glibc retains to the system."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def torch_build() -> tuple[str, bool]:
    """The device that torch was built for ("CPU", "CUDA 13.0", "ROCm 7.1"), and whether it is usable."""
    import torch

    if torch.version.cuda or torch.version.hip:
        name = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
        return name, torch.cuda.is_available()
    return "CPU", True


def processor_name(root: Path = Path("/")) -> str:
    """The model name of the processor."""
    for line in _read(root / "proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _allowed_cores() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _core_list(path: Path) -> set[int]:
    """Parse a CPU list of the kernel, such as `0-3,8`."""
    cores: set[int] = set()
    for part in _read(path).strip().split(","):
        first, _, last = part.partition("-")
        if first.isdecimal():
            cores.update(range(int(first), int(last or first) + 1))
    return cores


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """The cgroups (v1 and v2) of this process for a controller, the innermost first."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            top = root / CGROUP_ROOT
        elif controller in controllers.split(","):
            top = root / CGROUP_ROOT / controller
        else:
            continue
        group = top / path.lstrip("/")
        yield from [group, *(parent for parent in group.parents if parent.is_relative_to(top))]


def _cpu_quotas(root: Path) -> Iterator[float]:
    for group in _cgroups(root, "cpu"):
        quota, period = [*_read(group / "cpu.max").split(), "", ""][:2]
        if not quota:
            quota, period = (_read(group / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
        if quota.isdecimal() and period.isdecimal() and int(period):
            yield int(quota) / int(period)


def _memory_cgroups(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and usage in bytes of every cgroup with a limit; the file cache is not counted."""
    for group in _cgroups(root, "memory"):
        for limit_file, use_file, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, used = _read(group / limit_file).strip(), _read(group / use_file).strip()
            # In v1 "no limit" is a number near 2^63.
            if limit.isdecimal() and int(limit) < 2**60:
                files = dict(line.split(" ", 1) for line in _read(group / "memory.stat").splitlines())
                yield int(limit), int(used or 0) - int(files.get(cache, 0))


def _rlimit_available() -> Iterator[int]:
    """Bytes of address space left under `ulimit -v`, if it is set."""
    import psutil

    if sys.platform == "linux":
        limit, _ = psutil.Process().rlimit(psutil.RLIMIT_AS)
        if limit != psutil.RLIM_INFINITY:
            yield max(0, limit - psutil.Process().memory_info().vms)


def _read(path: Path) -> str:
    """The file's text, empty if the system has no such file."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of Python, torch or a driver means that memory ran out."""
    if isinstance(error, MemoryError):
        return True
    message = str(error).lower()
    phrases = (
        *("out of memory", "not enough memory", "can't allocate memory", "bad_alloc"),
        *("could not create a primitive", "could not create a memory"),  # oneDNN
        "cublas_status_alloc_failed",
    )
    return isinstance(error, RuntimeError) and any(phrase in message for phrase in phrases)
