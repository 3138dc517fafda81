"""Selects the device and the dtype of the weights; measures the speed of the device."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canvas.engine import system_info
from canvas.errors import InvalidInput, LazyMessage
from canvas.files import atomic_write

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

DEVICES = ("cpu", "cuda", "mps")
DTYPES = ("float32", "bfloat16", "float16")
# One run of the probe workload: 2 x 32 x 32 x (9 x 320 x 320 + 2 x 320 x 1280).
PROBE_GFLOP = 3.565
CUDA_PROBE_BATCH = 8  # fills a GPU
# Overhead per kernel with CUDA graphs, fitted to the generation times of an H100.
CUDA_KERNEL_SECONDS = 4e-6
KERNEL_LAUNCH = "layer"  # the key in the cached measurements
MEASUREMENTS = (*DTYPES[:2], KERNEL_LAUNCH)
# Below this gain the rounding errors of bfloat16 are not worth it.
MIN_BF16_SPEEDUP = 1.15


@dataclass(frozen=True)
class Device:
    """A torch device, the dtype of the weights and the reason for the choice, as a text that the page can translate.

    `gflops` is the measured speed on typical UNet layers in GFLOP/s, None if not measured.
    `kernel_launch_seconds` is the fixed overhead of each layer.
    """

    name: str
    dtype: str
    reason: str
    gflops: float | None = None
    kernel_launch_seconds: float = 0.0

    @property
    def torch_dtype(self) -> torch.dtype:
        import torch

        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype


def detect_device(
    cache_dir: Path, name: str | None = None, dtype: str | None = None, *, num_processes: int = 1, measure: bool = True
) -> Device:
    """Select the device and dtype, and set torch's number of threads to the usable cores.

    `name` and `dtype` override the automatic choice. On a CPU the speed in each dtype is
    measured once (under half a second) and cached in `cache_dir`; a GPU is measured at every
    start, unless `measure` is false. `num_processes` share the cores.
    """
    _check_choice("device", name, DEVICES)
    _check_choice("dtype", dtype, DTYPES)
    set_num_threads(num_processes)
    selected = name or _best_device()
    if name:
        _check_available(name)
    if dtype:
        why_dtype = LazyMessage("{name} as requested", name=dtype)
    elif selected == "cuda":
        dtype, why_dtype = "float16", LazyMessage("float16 is fast on it")
    elif selected == "mps":
        dtype, why_dtype = _mps_dtype()
    else:
        dtype, why_dtype = _cpu_dtype(cache_dir)
    reason = LazyMessage("{why_device}; {why_dtype}", why_device=_why_device(selected, name), why_dtype=why_dtype)
    device = Device(selected, dtype, reason)
    if selected == "cpu":
        return _with_cpu_speed(device, cache_dir)
    return _with_cuda_speed(device) if selected == "cuda" and measure else device


def set_num_threads(num_processes: int = 1) -> int:
    """Let torch use this process's share of the usable cores; return their number."""
    import torch

    cores = max(1, system_info.core_count() // num_processes)
    if torch.get_num_threads() != cores:
        torch.set_num_threads(cores)
    return cores


def measure_speeds() -> dict[str, float]:
    """Best seconds of the probe workload in float32 and bfloat16, and of a tiny layer.

    The workload is a 3x3 convolution of 320 channels at 32x32 and the two linear layers of a
    feed-forward block on as many tokens. The dtypes alternate for a third of a second.
    """
    import torch

    workloads = {name: _probe_workload(getattr(torch, name)) for name in ("float32", "bfloat16")}
    seconds: dict[str, float] = {}
    stop = time.perf_counter() + 0.3
    with torch.inference_mode():
        for run in workloads.values():
            run()  # warm-up
        while not seconds or time.perf_counter() < stop:
            for name, run in workloads.items():
                start = time.perf_counter()
                run()
                seconds[name] = min(seconds.get(name, 1e9), time.perf_counter() - start)
        seconds[KERNEL_LAUNCH] = _time_tiny_layer()
    return seconds


def _with_cuda_speed(device: Device) -> Device:
    import torch

    run = _probe_workload(device.torch_dtype, "cuda", CUDA_PROBE_BATCH)
    best, repeats = 1e9, 10
    with torch.inference_mode():
        for _ in range(5):  # the first one warms up
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(repeats):
                run()
            torch.cuda.synchronize()
            best = min(best, (time.perf_counter() - start) / repeats)
    return replace(device, gflops=CUDA_PROBE_BATCH * PROBE_GFLOP / best, kernel_launch_seconds=CUDA_KERNEL_SECONDS)


def _with_cpu_speed(device: Device, cache_dir: Path) -> Device:
    speeds = _cached_speeds(cache_dir)
    seconds = speeds.get(device.dtype)  # float16 is not measured
    gflops = PROBE_GFLOP / seconds if seconds else None
    return replace(device, gflops=gflops, kernel_launch_seconds=speeds[KERNEL_LAUNCH])


def _probe_workload(dtype: torch.dtype, device: str = "cpu", batch: int = 1) -> Callable[[], Any]:
    import torch
    from torch.nn import functional

    options: dict[str, Any] = {"dtype": dtype, "device": device}
    features = torch.ones(batch, 320, 32, 32, **options).to(memory_format=torch.channels_last)
    kernel = torch.ones(320, 320, 3, 3, **options).to(memory_format=torch.channels_last)
    tokens = torch.ones(batch, 1024, 320, **options)
    up, down = torch.ones(1280, 320, **options), torch.ones(320, 1280, **options)

    def run() -> Any:
        functional.conv2d(features, kernel, padding=1)
        return functional.linear(functional.linear(tokens, up), down)

    return run


def _time_tiny_layer() -> float:
    """Best seconds of a layer with next to no arithmetic: what remains is its overhead."""
    import torch

    layer, features = torch.nn.Conv2d(4, 4, 3, padding=1), torch.ones(1, 4, 4, 4)
    best = 1.0
    for _ in range(300):
        start = time.perf_counter()
        layer(features)
        best = min(best, time.perf_counter() - start)
    return best


def _cpu_dtype(cache_dir: Path) -> tuple[str, LazyMessage]:
    """The faster dtype, and why."""
    seconds = _cached_speeds(cache_dir)
    gain = seconds["float32"] / seconds["bfloat16"]
    if gain >= MIN_BF16_SPEEDUP:
        return "bfloat16", LazyMessage("bfloat16 is {gain} times as fast as float32 (measured)", gain=f"{gain:.1f}")
    if gain >= 1:
        text = "bfloat16 is only {gain} times as fast as float32 (measured)"
        return "float32", LazyMessage(text, gain=f"{gain:.2f}")
    return "float32", LazyMessage("bfloat16 takes {gain} times as long as float32 (measured)", gain=f"{1 / gain:.1f}")


def _cached_speeds(cache_dir: Path) -> dict[str, float]:
    """`measure_speeds`, cached by processor, number of cores and torch version."""
    import torch

    path = cache_dir / "speeds.json"
    key = f"{system_info.processor_name()} | {torch.get_num_threads()} cores | torch {torch.__version__}"
    cached = read_measurements(path)
    speeds = cached.get(key)
    if isinstance(speeds, dict) and all(_is_duration(speeds.get(name)) for name in MEASUREMENTS):
        return speeds
    cached[key] = measure_speeds()
    try:
        save_measurements(path, cached)
    except OSError as error:
        logger.warning("Could not save the measured speed to %s: %s", path, error)
    return cached[key]


def _is_duration(value: object) -> bool:
    return isinstance(value, float) and 0 < value < 1e6


def read_measurements(path: Path) -> dict[str, Any]:
    """The measurements in a file by key; empty if it is missing or damaged."""
    try:
        cached = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return cached if isinstance(cached, dict) else {}


def save_measurements(path: Path, measurements: dict[str, Any]) -> None:
    """Write the file that `read_measurements` reads; raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(json.dumps(measurements, indent=1).encode())


def _best_device() -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _why_device(selected: str, requested: str | None) -> LazyMessage:
    label = _device_label(selected)
    if requested:
        return LazyMessage("{name} as requested", name=label)
    if selected == "cpu":
        return LazyMessage("{name}, because no GPU was found", name=label)
    return LazyMessage("{name} was found", name=label)


def _check_available(name: str) -> None:
    import torch

    available = {"cpu": True, "cuda": torch.cuda.is_available()}
    if not available.get(name, torch.backends.mps.is_available()):
        raise InvalidInput("device", name, "cpu on this machine, because torch finds no such GPU")


def _mps_dtype() -> tuple[str, LazyMessage]:
    """float16, unless this version of macOS and torch cannot run a convolution in it."""
    import torch

    try:
        image = torch.full((1, 4, 8, 8), 0.5, dtype=torch.float16, device="mps")
        works = bool(torch.nn.functional.conv2d(image, image).isfinite().all())
    except (RuntimeError, TypeError):
        works = False
    if works:
        return "float16", LazyMessage("float16 is fast on it")
    return "float32", LazyMessage("float32 because float16 fails on it")


def has_bfloat16(device: Device) -> bool:
    """Whether the device computes in bfloat16; GPUs before 2020 emulate it slowly."""
    if device.name != "cuda":
        return True
    import torch

    return torch.cuda.is_bf16_supported(including_emulation=False)


def _device_label(name: str) -> str:
    import torch

    if name == "cuda":
        return torch.cuda.get_device_name()
    if name == "mps":
        return "Apple GPU"
    cores = torch.get_num_threads()
    values = {"name": system_info.processor_name(), "number": cores}
    if cores == 1:
        return LazyMessage("{name}, {number} core", **values)
    return LazyMessage("{name}, {number} cores", **values)


def _check_choice(field: str, value: str | None, choices: tuple[str, ...]) -> None:
    if value is not None and value not in choices:
        raise InvalidInput(field, value, f"one of {', '.join(choices)}")
