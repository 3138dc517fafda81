"""Quantizes a UNet to int8 with NNCF, in a process of its own: `python -m canvas.engine.openvino.int8 FOLDER`.

The statistics of the activations come from inputs of the UNet while it generated an image.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canvas.engine import system_info
from canvas.engine.openvino.conversion import UNET
from canvas.engine.openvino.runtime import compile_config, core, import_openvino

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from canvas.engine.device import Device

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[3]  # where the package `canvas` is
INT8_UNET, INPUTS, REPORT = "unet_int8.xml", "inputs.npz", "int8.json"
NUM_INPUTS = 10  # of which the last ones measure the similarity
NUM_HELD_OUT = 2
# Bytes of the 16-bit weights from which on it is worth the minutes.
MIN_BYTES = 200_000_000
MIN_SPEEDUP = 1.1
CALIBRATION_SIDE = 32  # latents
# Memory of the quantization, in sizes of the 16-bit weights: 7.7 as measured.
MEMORY_FACTOR = 8
# Relative errors of the prediction up to which Turbo and Balanced use int8.
MAX_ERRORS = {"turbo": 0.25, "balanced": 0.1}


class InputRecorder:
    """Keeps the inputs of a UNet's passes, of one size of images."""

    def __init__(self, max_passes: int = 100) -> None:
        self._max_passes = max_passes
        self._passes: list[tuple[np.ndarray, ...]] = []

    def add(self, arrays: Sequence[np.ndarray]) -> None:
        """Keep the first of each batch and, with guidance, the conditional one in turn."""
        if len(self._passes) >= self._max_passes:
            return
        count = len(arrays[0])
        index = len(self._passes) % count
        row = slice(index, index + 1)
        kept = tuple((each[row] if len(each) == count else each).copy() for each in arrays)
        if not self._passes or [each.shape for each in kept] == [each.shape for each in self._passes[0]]:
            self._passes.append(kept)

    def save(self, path: Path) -> bool:
        """Save inputs that are evenly spaced over the passes; False if there are too few."""
        import numpy as np

        if len(self._passes) < NUM_INPUTS:
            return False
        spaced = np.linspace(0, len(self._passes) - 1, NUM_INPUTS).round().astype(int)
        chosen = [self._passes[index] for index in spaced]
        # Those that measure are from the middle of the denoising
        middle = len(chosen) // 2
        chosen = [*chosen[:middle], *chosen[middle + NUM_HELD_OUT :], *chosen[middle : middle + NUM_HELD_OUT]]
        np.savez(path, **{f"{i:03}_{j}": array for i, arrays in enumerate(chosen) for j, array in enumerate(arrays)})
        return True


def is_installed() -> bool:
    """Whether nncf can be imported; does not import it."""
    return find_spec("nncf") is not None


class Int8Process:
    """The process that quantizes a UNet; it runs with the lowest priority."""

    def __init__(self, folder: Path, device: Device) -> None:
        import psutil

        command = [sys.executable, "-m", __spec__.name, str(folder.resolve()), device.dtype]
        self._process = subprocess.Popen(  # noqa: S603 - our own program
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._handle = psutil.Process(self._process.pid)
        self._set_priority(psutil.IDLE_PRIORITY_CLASS if sys.platform == "win32" else 19)

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def suspend(self) -> None:
        """Leave the cores to an image until `resume`."""
        self._call(self._handle.suspend)

    def resume(self) -> None:
        self._call(self._handle.resume)

    def stop(self) -> None:
        self.resume()
        self._process.kill()
        self._process.wait()
        if self._process.stdin:
            self._process.stdin.close()

    def wait(self, timeout: float) -> int:
        """The exit code."""
        return self._process.wait(timeout)

    def _set_priority(self, value: int) -> None:
        self._call(lambda: self._handle.nice(value))

    def _call(self, function: Any) -> None:
        import psutil

        try:
            function()
        except psutil.Error as error:  # it has just ended
            logger.debug("The quantization process: %s", error)


def is_large(folder: Path) -> bool:
    """Whether int8 saves more than it costs for the UNet of a folder."""
    return _unet_bytes(folder) >= MIN_BYTES


def is_worthwhile(folder: Path) -> bool:
    """Whether the UNet is large, not quantized yet, and fits into the free memory for it."""
    if not is_installed() or not is_large(folder) or (folder / REPORT).exists():
        return False
    return _unet_bytes(folder) * MEMORY_FACTOR < system_info.free_memory()


def _unet_bytes(folder: Path) -> int:
    return (folder / UNET).with_suffix(".bin").stat().st_size


def read_report(folder: Path) -> dict[str, float]:
    """`error`, `seconds` of a pass and `seconds_16` without int8; empty if there is no int8."""
    try:
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        weights = (folder / INT8_UNET).with_suffix(".bin")
        complete = weights.stat().st_size == report["bytes"]
        return {name: float(report[name]) for name in ("error", "seconds", "seconds_16")} if complete else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def is_used(report: dict[str, float], preset: str) -> bool:
    """Whether the preset uses int8 with these measurements."""
    if not report or preset not in MAX_ERRORS or report["seconds_16"] < MIN_SPEEDUP * report["seconds"]:
        return False
    return report["error"] <= MAX_ERRORS[preset]


def quantize(folder: Path, dtype: str) -> dict[str, float]:
    """Quantize the UNet of a folder with its saved inputs; write graph and report into it."""
    openvino = import_openvino()
    import nncf
    import numpy as np

    from canvas.engine.device import Device

    nncf.set_log_level(logging.ERROR)
    with np.load(folder / INPUTS) as saved:
        keys = sorted(saved.files)
        count = len({key[:3] for key in keys})
        passes = [[saved[key] for key in keys if key.startswith(f"{i:03}_")] for i in range(count)]
    known, held_out = passes[:-NUM_HELD_OUT], passes[-NUM_HELD_OUT:]
    model = core().read_model(str(folder / UNET))
    shapes = {index: list(array.shape) for index, array in enumerate(known[0])}
    known = [[_crop(sample), *others] for sample, *others in known]
    # Smoothing would take a third copy of the weights, and minutes.
    unsmoothed = nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1)
    quantized = nncf.quantize(
        model,
        nncf.Dataset(known),
        subset_size=len(known),
        model_type=nncf.ModelType.TRANSFORMER,
        advanced_parameters=nncf.AdvancedQuantizationParameters(smooth_quant_alphas=unsmoothed),
    )
    part = folder / f"part_{os.getpid()}.xml"
    openvino.save_model(quantized, str(part), compress_to_fp16=True)
    del model, quantized
    config = compile_config(Device("cpu", dtype, ""))
    expected, seconds_16 = _run(folder / UNET, shapes, held_out, config)
    output, seconds = _run(part, shapes, held_out, config)
    report = {"error": _relative_error(output, expected), "seconds": seconds, "seconds_16": seconds_16}
    weights = part.with_suffix(".bin")
    size = weights.stat().st_size
    weights.replace((folder / INT8_UNET).with_suffix(".bin"))
    part.replace(folder / INT8_UNET)
    (folder / INPUTS).unlink()
    (folder / REPORT).write_text(json.dumps({**report, "bytes": size}), encoding="utf-8")
    return report


def _crop(sample: np.ndarray) -> np.ndarray:
    """The middle of the latents: NNCF keeps the activations of all layers in memory."""
    side = CALIBRATION_SIDE
    top, left = (max(0, length - side) // 2 for length in sample.shape[-2:])
    return sample[..., top : top + side, left : left + side]


def _run(path: Path, shapes: Any, passes: Any, config: dict[str, Any]) -> tuple[list[Any], float]:
    """The predictions, and the best seconds of a pass."""
    model = core().read_model(str(path))
    model.reshape(shapes)
    request = core().compile_model(model, "CPU", config).create_infer_request()
    outputs, seconds = [], []
    for arrays in [passes[0], *passes, *passes]:
        started = time.perf_counter()
        result = request.infer(arrays, share_inputs=True)
        seconds.append(time.perf_counter() - started)
        outputs.append(result[0].copy())
    return outputs[1 : len(passes) + 1], min(seconds[1:])


def _relative_error(output: list[Any], expected: list[Any]) -> float:
    import numpy as np

    difference = sum(float(np.square(a - b).sum()) for a, b in zip(output, expected, strict=True))
    return float((difference / sum(float(np.square(each).sum()) for each in expected)) ** 0.5)


def _exit_with_parent() -> None:
    sys.stdin.read()  # ends when the parent process does
    os._exit(1)


def main() -> None:
    """Quantize the UNet of the folder in the arguments."""
    from filelock import FileLock, Timeout

    from canvas.engine.device import set_num_threads

    threading.Thread(target=_exit_with_parent, daemon=True).start()
    folder = Path(sys.argv[1])
    try:
        with FileLock(folder / "int8.lock", timeout=0):  # another worker may be at it
            set_num_threads()
            quantize(folder, sys.argv[2])
    except Timeout:
        sys.exit("another process quantizes this model")


if __name__ == "__main__":
    main()
