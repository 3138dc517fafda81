"""Selection of the device and dtype, with real measurements."""

import json
import os
from pathlib import Path

import pytest
import torch

from canvas.engine import device, system_info
from canvas.engine.device import detect_device
from canvas.errors import InvalidInput

needs_cpu_only = pytest.mark.skipif(
    torch.cuda.is_available() or torch.backends.mps.is_available(), reason="this machine has a GPU"
)


def test_measurement_is_cached_per_machine(tmp_path: Path) -> None:
    first = device._cpu_dtype(tmp_path)
    cached = json.loads((tmp_path / "speeds.json").read_text())
    (key,) = cached
    assert system_info.processor_name() in key
    assert torch.__version__ in key
    assert f"{torch.get_num_threads()} cores" in key
    assert device._cpu_dtype(tmp_path) == first
    assert json.loads((tmp_path / "speeds.json").read_text()) == cached


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bfloat16", "dtype", "reason"),
    [
        (0.004, "bfloat16", "2.5 times as fast"),
        (0.0095, "float32", "only 1.05 times as fast"),
        (0.03, "float32", "3.0 times as long as float32"),
    ],
)
def test_cached_speeds_decide(tmp_path: Path, bfloat16: float, dtype: str, reason: str) -> None:
    device._cpu_dtype(tmp_path)
    path = tmp_path / "speeds.json"
    (key,) = json.loads(path.read_text())
    path.write_text(json.dumps({key: {"float32": 0.01, "bfloat16": bfloat16, "layer": 2e-5}}))
    detected, why = device._cpu_dtype(tmp_path)
    assert detected == dtype
    assert reason in why


@needs_cpu_only
def test_cpu_is_detected_with_a_reason(tmp_path: Path) -> None:
    detected = detect_device(tmp_path)
    assert detected.name == "cpu"
    assert detected.dtype in ("float32", "bfloat16")
    assert detected.torch_dtype is getattr(torch, detected.dtype)
    assert "no GPU was found" in detected.reason
    assert "(measured)" in detected.reason
    assert torch.get_num_threads() == system_info.core_count()


def test_requested_dtype_is_used(tmp_path: Path) -> None:
    detected = detect_device(tmp_path, name="cpu", dtype="float32")
    assert (detected.name, detected.dtype) == ("cpu", "float32")
    assert "float32 as requested" in detected.reason
    assert detected.gflops, "the estimates need the speed in any case"
    assert 0 < detected.kernel_launch_seconds < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("content", ["", "{", "[]", '{"x": 3}', "\x00"])
def test_damaged_cache_is_measured_again(tmp_path: Path, content: str) -> None:
    (tmp_path / "speeds.json").write_text(content)
    dtype, _ = device._cpu_dtype(tmp_path)
    assert dtype in ("float32", "bfloat16")


def test_unwritable_cache_dir_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    dtype, _ = device._cpu_dtype(tmp_path / "file" / "below")
    assert dtype in ("float32", "bfloat16")


@pytest.mark.parametrize(("name", "dtype"), [("gpu", None), (None, "int8")])
def test_unknown_values_are_rejected(tmp_path: Path, name: str | None, dtype: str | None) -> None:
    with pytest.raises(InvalidInput, match="must be one of"):
        detect_device(tmp_path, name, dtype)


@needs_cpu_only
def test_missing_gpu_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="finds no such GPU"):
        detect_device(tmp_path, name="cuda")


def test_thread_count_equals_core_count() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1 if before > 1 else 2)
    try:
        assert device.set_num_threads() == system_info.core_count() == torch.get_num_threads()
        assert torch.get_num_threads() <= (os.cpu_count() or 1)
    finally:
        torch.set_num_threads(before)
