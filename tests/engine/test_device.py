"""The choice of device and dtype, measured for real and forced."""

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


def test_measurement_is_remembered_for_the_machine(tmp_path: Path) -> None:
    first = device._cpu_dtype(tmp_path)
    known = json.loads((tmp_path / "speeds.json").read_text())
    (key,) = known
    assert system_info.processor_name() in key
    assert torch.__version__ in key
    assert f"{torch.get_num_threads()} cores" in key
    assert device._cpu_dtype(tmp_path) == first
    assert json.loads((tmp_path / "speeds.json").read_text()) == known


@pytest.mark.parametrize(
    ("bfloat16", "dtype", "words"),
    [
        (0.004, "bfloat16", "2.5 times as fast"),
        (0.0095, "float32", "only 1.05 times as fast"),
        (0.03, "float32", "3.0 times as long"),
    ],
)
def test_remembered_speeds_decide(tmp_path: Path, bfloat16: float, dtype: str, words: str) -> None:
    device._cpu_dtype(tmp_path)
    path = tmp_path / "speeds.json"
    (key,) = json.loads(path.read_text())
    path.write_text(json.dumps({key: {"float32": 0.01, "bfloat16": bfloat16, "layer": 2e-5}}))
    chosen, reason = device._cpu_dtype(tmp_path)
    assert chosen == dtype
    assert words in reason


@needs_cpu_only
def test_detects_the_cpu_and_says_why(tmp_path: Path) -> None:
    found = detect_device(tmp_path)
    assert found.name == "cpu"
    assert found.dtype in ("float32", "bfloat16")
    assert found.torch_dtype is getattr(torch, found.dtype)
    assert "no GPU was found" in found.reason
    assert "measured here" in found.reason
    assert torch.get_num_threads() == system_info.core_count()


def test_forced_dtype_says_so(tmp_path: Path) -> None:
    found = detect_device(tmp_path, name="cpu", dtype="float32")
    assert (found.name, found.dtype) == ("cpu", "float32")
    assert "float32 as asked for" in found.reason
    assert found.gigaflops, "the estimates need the speed, whoever chose the dtype"
    assert 0 < found.layer_seconds < 0.01


@pytest.mark.parametrize("content", ["", "{", "[]", '{"x": 3}', "\x00"])
def test_damaged_memory_is_measured_anew(tmp_path: Path, content: str) -> None:
    (tmp_path / "speeds.json").write_text(content)
    chosen, _ = device._cpu_dtype(tmp_path)
    assert chosen in ("float32", "bfloat16")


def test_unwritable_cache_dir_still_works(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    chosen, _ = device._cpu_dtype(tmp_path / "file" / "below")
    assert chosen in ("float32", "bfloat16")


@pytest.mark.parametrize(("name", "dtype"), [("gpu", None), (None, "int8")])
def test_unknown_wishes_are_refused(tmp_path: Path, name: str | None, dtype: str | None) -> None:
    with pytest.raises(InvalidInput, match="allowed is one of"):
        detect_device(tmp_path, name, dtype)


@needs_cpu_only
def test_missing_gpu_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="finds no such GPU"):
        detect_device(tmp_path, name="cuda")


def test_thread_count_is_set_to_the_cores() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1 if before > 1 else 2)
    try:
        assert device.set_num_threads() == system_info.core_count() == torch.get_num_threads()
        assert torch.get_num_threads() <= (os.cpu_count() or 1)
    finally:
        torch.set_num_threads(before)
