"""Cores and memory, read from copies of the kernel's file trees."""

import gc
import os
from pathlib import Path

import pytest

from canvas.engine import system_info

CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
linux_only = pytest.mark.skipif(not CORES, reason="needs Linux")


def write_tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_all_allowed_cores_count_without_limits(tmp_path: Path) -> None:
    assert system_info.core_count(tmp_path) == len(system_info._allowed_cores())
    assert system_info.total_memory(tmp_path) >= system_info.free_memory(tmp_path) > 0


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"proc/self/cgroup": "0::/app/x\n", "sys/fs/cgroup/app/cpu.max": "100000 100000"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "20000 100000"}, 1),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/docker/abc\n0::/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            1,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
    ],
)
def test_cpu_quota_limits_the_threads(tmp_path: Path, files: dict[str, str], cores: int | None) -> None:
    assert system_info.core_count(write_tree(tmp_path, files)) == (cores or len(system_info._allowed_cores()))


@linux_only
def test_threads_of_one_core_count_once(tmp_path: Path) -> None:
    siblings = ",".join(map(str, CORES))
    cpus = "sys/devices/system/cpu"
    write_tree(tmp_path, {f"{cpus}/cpu{n}/topology/thread_siblings_list": siblings for n in CORES})
    assert system_info.core_count(tmp_path) == 1


@linux_only
def test_only_performance_cores_of_a_hybrid_count(tmp_path: Path) -> None:
    write_tree(tmp_path, {"sys/devices/cpu_core/cpus": f"{CORES[0]}\n"})
    assert system_info.core_count(tmp_path) == 1


def test_core_list_of_the_kernel_is_parsed(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("0-2,8\n")
    assert system_info._core_list(tmp_path / "list") == {0, 1, 2, 8}


@pytest.mark.parametrize(
    "files",
    [
        {
            "proc/self/cgroup": "0::/box\n",
            "sys/fs/cgroup/box/memory.max": "100000",
            "sys/fs/cgroup/box/memory.current": "70000",
            "sys/fs/cgroup/box/memory.stat": "anon 5\ninactive_file 20000\n",
        },
        {
            "proc/self/cgroup": "4:memory:/box\n0::/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "100000",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "70000",
            "sys/fs/cgroup/memory/memory.stat": "inactive_file 5\ntotal_inactive_file 20000\n",
            "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "9223372036854771712",
        },
    ],
    ids=["v2", "v1"],
)
def test_memory_limit_of_the_container(tmp_path: Path, files: dict[str, str]) -> None:
    write_tree(tmp_path, files)
    assert system_info.total_memory(tmp_path) == 100_000
    assert system_info.free_memory(tmp_path) == 50_000


def test_processor_name(tmp_path: Path) -> None:
    write_tree(tmp_path, {"proc/cpuinfo": "processor\t: 0\nmodel name\t: Some CPU @ 3 GHz\n"})
    assert system_info.processor_name(tmp_path) == "Some CPU @ 3 GHz"
    assert system_info.processor_name(tmp_path / "nothing")


def test_garbage_collection_is_off_until_the_end_of_the_block() -> None:
    with pytest.raises(ZeroDivisionError), system_info.without_garbage_collection():
        with system_info.without_garbage_collection():
            assert not gc.isenabled()
        assert not gc.isenabled()
        raise ZeroDivisionError
    assert gc.isenabled()


def test_out_of_memory_errors_are_recognized() -> None:
    import torch

    with pytest.raises(RuntimeError) as cpu_error:
        torch.empty(2**60)
    errors = [
        cpu_error.value,
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)"),
    ]
    assert [system_info.is_out_of_memory(error) for error in errors] == [True] * 5
    assert not system_info.is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not system_info.is_out_of_memory(ValueError("out of memory"))
