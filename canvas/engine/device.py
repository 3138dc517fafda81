"""Where pictures are computed and in which number format, decided by measuring."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canvas.engine import system_info
from canvas.errors import InvalidInput

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

DEVICES = ("cpu", "cuda", "mps")
DTYPES = ("float32", "bfloat16", "float16")
# What one run of the measured mix computes: 2 x 32 x 32 x (9 x 320 x 320 + 2 x 320 x 1280).
PROBE_GFLOP = 3.565
# So many times that fill a GPU, where passes are recorded: what a layer of them costs beside its
# work was found by timing pictures on an H100.
MIXES_AT_ONCE, RECORDED_LAYER = 8, 4e-6
LAYER = "layer"
MEASURED = (*DTYPES[:2], LAYER)
# Below this gain the rounding of bfloat16 is not worth it.
MIN_BF16_SPEEDUP = 1.15


@dataclass(frozen=True)
class Device:
    """`name` as torch knows it, `dtype` of the weights, and in words why.

    `gigaflops` is the measured speed at a UNet's kind of work, 10^9 operations a second;
    None where nothing was measured. `layer_seconds` is what each layer costs beside that,
    however small its work.
    """

    name: str
    dtype: str
    reason: str
    gigaflops: float | None = None
    layer_seconds: float = 0.0

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch's object."""
        import torch

        found = getattr(torch, self.dtype)
        assert isinstance(found, torch.dtype)  # noqa: S101 - DTYPES holds nothing else
        return found


def detect_device(
    cache_dir: Path,
    name: str | None = None,
    dtype: str | None = None,
    *,
    sharing: int = 1,
    measured: bool = True,
) -> Device:
    """The device to use; sets torch's number of threads to the cores that there really are.

    `name` and `dtype` are the user's wish and win over every measurement. On a CPU the
    dtype is measured (under half a second) and remembered in `cache_dir`. `sharing` is
    how many processes divide the cores among them. A GPU's speed is measured at every start,
    unless not `measured`: it may be there only later.
    """
    _check("device", name, DEVICES)
    _check("dtype", dtype, DTYPES)
    set_num_threads(sharing)
    found, why_device = (name, "as asked for") if name else _best_device()
    if name:
        _check_available(name)
    if dtype:
        reason = f"{_device_label(found)} {why_device}; {dtype} as asked for"
        if found == "cpu":
            return Device(found, dtype, reason, *_speed(cache_dir, dtype))
        return _with_speed(Device(found, dtype, reason), measured=measured)
    if found == "cuda":
        reason = f"{_device_label(found)} {why_device}; it is fast in float16"
        return _with_speed(Device(found, "float16", reason), measured=measured)
    if found == "mps":
        return Device(found, *_mps_dtype(why_device))
    chosen, why_dtype = _cpu_dtype(cache_dir)
    reason = f"{_device_label('cpu')} {why_device}; {why_dtype}"
    return Device("cpu", chosen, reason, *_speed(cache_dir, chosen))


def set_num_threads(sharing: int = 1) -> int:
    """Let torch use this process's part of the cores that there really are; returns how many."""
    import torch

    cores = max(1, system_info.core_count() // sharing)
    if torch.get_num_threads() != cores:
        torch.set_num_threads(cores)
    return cores


def measure_speeds() -> dict[str, float]:
    """Seconds of a small mix of a UNet's work in float32 and bfloat16, and of an idle layer.

    One 3x3 convolution of 320 channels on a 32x32 field and the two linear layers of a
    feed-forward block on as many tokens; the best of a few, in turns, in a third of a second.
    """
    import torch

    work = {name: _probe_workload(getattr(torch, name)) for name in ("float32", "bfloat16")}
    seconds: dict[str, float] = {}
    stop = time.perf_counter() + 0.3
    with torch.inference_mode():
        for run in work.values():
            run()  # the first run prepares kernels
        while not seconds or time.perf_counter() < stop:
            for name, run in work.items():
                start = time.perf_counter()
                run()
                seconds[name] = min(seconds.get(name, 1e9), time.perf_counter() - start)
        seconds[LAYER] = _time_tiny_layer()
    return seconds


def _with_speed(device: Device, *, measured: bool) -> Device:
    """With the speed of a GPU of NVIDIA, kept busy for some milliseconds."""
    import torch

    if device.name != "cuda" or not measured:
        return device
    mix = _probe_workload(device.torch_dtype, "cuda", MIXES_AT_ONCE)
    best, times = 1e9, 10
    with torch.inference_mode():
        for _ in range(5):  # the first prepares kernels
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(times):
                mix()
            torch.cuda.synchronize()
            best = min(best, (time.perf_counter() - start) / times)
    speed = MIXES_AT_ONCE * PROBE_GFLOP / best
    return replace(device, gigaflops=speed, layer_seconds=RECORDED_LAYER)


def _probe_workload(dtype: torch.dtype, device: str = "cpu", count: int = 1) -> Callable[[], Any]:
    import torch
    from torch.nn import functional

    options: dict[str, Any] = {"dtype": dtype, "device": device}
    field = torch.ones(count, 320, 32, 32, **options).to(memory_format=torch.channels_last)
    kernel = torch.ones(320, 320, 3, 3, **options).to(memory_format=torch.channels_last)
    tokens = torch.ones(count, 1024, 320, **options)
    widen, narrow = torch.ones(1280, 320, **options), torch.ones(320, 1280, **options)

    def run() -> Any:
        functional.conv2d(field, kernel, padding=1)
        return functional.linear(functional.linear(tokens, widen), narrow)

    return run


def _time_tiny_layer() -> float:
    """Seconds of a layer with next to nothing to compute: what is left is the way to it."""
    import torch

    layer, field = torch.nn.Conv2d(4, 4, 3, padding=1), torch.ones(1, 4, 4, 4)
    best = 1.0
    for _ in range(300):
        start = time.perf_counter()
        layer(field)
        best = min(best, time.perf_counter() - start)
    return best


def _cpu_dtype(cache_dir: Path) -> tuple[str, str]:
    seconds = _remembered_speeds(cache_dir)
    gain = seconds["float32"] / seconds["bfloat16"]
    if gain >= MIN_BF16_SPEEDUP:
        return "bfloat16", f"measured here, bfloat16 is {gain:.1f} times as fast as float32"
    if gain >= 1:
        return "float32", f"measured here, bfloat16 is only {gain:.2f} times as fast as float32"
    return "float32", f"measured here, bfloat16 takes {1 / gain:.1f} times as long as float32"


def _speed(cache_dir: Path, dtype: str) -> tuple[float | None, float]:
    """Gigaflops in that dtype, None where it was not measured, and seconds of an idle layer."""
    speeds = _remembered_speeds(cache_dir)
    seconds = speeds.get(dtype)
    return PROBE_GFLOP / seconds if seconds else None, speeds[LAYER]


def _remembered_speeds(cache_dir: Path) -> dict[str, float]:
    """The measurement of this processor, core count and torch version; made when not yet known."""
    import torch

    path = cache_dir / "speeds.json"
    threads = torch.get_num_threads()
    key = f"{system_info.processor_name()} | {threads} cores | torch {torch.__version__}"
    known = _read(path)
    speeds = known.get(key)
    if isinstance(speeds, dict) and all(_is_time(speeds.get(name)) for name in MEASURED):
        return speeds
    known[key] = measure_speeds()
    try:
        _write(path, known)
    except OSError as error:
        logger.warning("The speed measurement could not be kept in %s: %s", path, error)
    return known[key]


def _is_time(value: object) -> bool:
    return isinstance(value, float) and 0 < value < 1e6


def _read(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # not there yet, or damaged: measured anew
    return known if isinstance(known, dict) else {}


def _write(path: Path, known: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(known, file, indent=1)
    Path(name).replace(path)


def _best_device() -> tuple[str, str]:
    import torch

    if torch.cuda.is_available():
        return "cuda", "is there"
    if torch.backends.mps.is_available():
        return "mps", "is there"
    return "cpu", "because no GPU was found"


def _check_available(name: str) -> None:
    import torch

    there = {"cpu": True, "cuda": torch.cuda.is_available()}
    if not there.get(name, torch.backends.mps.is_available()):
        raise InvalidInput("device", name, "cpu on this machine: torch finds no such GPU")


def _mps_dtype(why_device: str) -> tuple[str, str]:
    """float16, unless this macOS and torch cannot convolve in it."""
    import torch

    try:
        field = torch.full((1, 4, 8, 8), 0.5, dtype=torch.float16, device="mps")
        works = bool(torch.nn.functional.conv2d(field, field).isfinite().all())
    except (RuntimeError, TypeError):
        works = False
    dtype, why = ("float16", "is fast") if works else ("float32", "because float16 fails there")
    return dtype, f"{_device_label('mps')} {why_device}; {dtype} {why}"


def _device_label(name: str) -> str:
    import torch

    if name == "cuda":
        return torch.cuda.get_device_name()
    if name == "mps":
        return "Apple GPU"
    cores = torch.get_num_threads()
    return f"{system_info.processor_name()}, {cores} {'core' if cores == 1 else 'cores'},"


def _check(field: str, value: str | None, choices: tuple[str, ...]) -> None:
    if value is not None and value not in choices:
        raise InvalidInput(field, value, f"one of {', '.join(choices)}")
