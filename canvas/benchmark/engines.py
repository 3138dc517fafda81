"""Compares the engines of a CPU: plain diffusers, torch, OpenVINO in 16 and 32 bits, and int8."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial, wraps
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from canvas.benchmark import similarity
from canvas.benchmark.memory import start_process, watch_process
from canvas.benchmark.model_under_test import PROMPT, BenchmarkModel, median_seconds
from canvas.benchmark.synthetic_models import build_synthetic, build_tiny_vae, build_unet, synthetic_spec
from canvas.catalog import MODELS
from canvas.engine import system_info
from canvas.engine.device import Device, detect_device
from canvas.engine.loader import optimize_for_device, silence_libraries
from canvas.engine.openvino import conversion, int8, runtime
from canvas.engine.openvino.engine import OpenVinoEngine, engine_name
from canvas.engine.optimizations import malloc
from canvas.engine.optimizations.deepcache import CACHE_BRANCH_DEPTH, UNetForward
from canvas.engine.pipeline_cache import PipelineCache
from canvas.engine.prompts import enhance_negative_prompt, enhance_prompt
from canvas.engine.step_callback import build_scheduler
from canvas.models.download import LocalModel
from canvas.request import GenerationRequest

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL.Image import Image

    from canvas.catalog import ModelSpec
    from canvas.studio import Studio

README_BEGIN, README_END = "<!-- `bench engines --write-readme` -->", "<!-- end -->"
# The beginnings of the names of measurements.
GUIDED_PASS, SIMILARITY = "guided pass: ", "similarity of the prediction: "
SIDE = 512
EARLIER_STEP = 40  # timesteps before the pass, for cached features
# The channels of SDXS-512 and of other one-step students of Stable Diffusion
SMALL_UNET = {"layers_per_block": 1, "block_out_channels": (320, 640, 1280)}
SMALL_UNET |= {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}


@dataclass(frozen=True)
class Measurement:
    """A measured value, and a bound that it should keep if there is one."""

    name: str
    value: float
    unit: str  # "s", "×", "GB" or "dB"
    at_least: float | None = None
    at_most: float | None = None

    @property
    def is_met(self) -> bool | None:
        """Whether the value keeps its bound; None without a bound."""
        if self.at_least is not None:
            return self.value >= self.at_least
        return None if self.at_most is None else self.value <= self.at_most

    def to_dict(self) -> dict[str, Any]:
        """The measurement for JSON."""
        return {**asdict(self), "is_met": self.is_met}


def measure_engines(parts: tuple[str, ...], cache_dir: Path, rounds: int) -> Iterator[Measurement]:
    """Measure the parts of PARTS, each in a new process; medians of alternating rounds."""
    with tempfile.TemporaryDirectory() as folder:
        for part in parts:
            child, receiver = start_process(_send, part, Path(folder), cache_dir, rounds)
            try:
                while (measurement := receiver.recv()) is not None:
                    yield measurement
            except EOFError:  # the process was killed
                yield Measurement(f"{part}: ended early", float("nan"), "s", at_most=0)
            child.join()


def format_engines(measurements: Sequence[Measurement], machine: str) -> str:
    """A sentence with the seconds of a guided pass by each engine, and its similarity; "" if not measured."""
    similarities = {
        each.name.removeprefix(SIMILARITY): f"{each.value:.0f} dB"
        for each in measurements
        if each.name.startswith(SIMILARITY)
    }
    passes = []
    for each in measurements:
        if each.name.startswith(GUIDED_PASS):
            name = each.name.removeprefix(GUIDED_PASS)
            similarity = f" ({similarities[name]})" if name in similarities else ""
            passes.append(f"{name} {each.value:.2f} s{similarity}")
    if not passes:
        return ""
    return (
        "One step of Stable Diffusion 1.5's UNet with guidance at 512 × 512, random weights, on "
        f"{machine}, and the similarity of the prediction to plain diffusers: {'; '.join(passes)}."
    )


def cpu_name() -> str:
    """The processor with its number of cores."""
    return f"{system_info.processor_name()} ({system_info.core_count()} cores)"


def _send(sender: Any, part: str, folder: Path, cache_dir: Path, rounds: int) -> None:
    silence_libraries()
    device = detect_device(cache_dir, "cpu")
    for measurement in PARTS[part](folder, device, rounds):
        sender.send(measurement)
    sender.send(None)


def measure_passes(folder: Path, device: Device, rounds: int) -> Iterator[Measurement]:
    """Guided passes of Stable Diffusion 1.5's UNet, with random weights.

    In 16 bits only where the processor is faster with them.
    """
    import torch

    torch.manual_seed(0)
    unet = build_unet(torch.bfloat16)
    conversion.convert_unet(unet, folder / "unet")
    side = SIDE // 8
    inputs = conversion.example_inputs(unet.config, (side, side))
    guided = torch.cat([inputs[0]] * 2), inputs[1], torch.cat([inputs[2], inputs[2] / 2])
    _quantize(folder / "unet", unet.config, side, device)
    plain = deepcopy(unet).float()  # before the layout is changed
    modules = {"OpenVINO, float32": _converted(folder / "unet", replace(device, dtype="float32"))}
    quality = "float32"
    if device.dtype != "float32":
        quality = "16 bits"
        optimize_for_device(SimpleNamespace(unet=unet), device)
        modules |= {"PyTorch, 16 bits": unet, "OpenVINO, 16 bits": _converted(folder / "unet", device)}
    modules["OpenVINO, int8"] = _converted(folder / "unet", device)
    modules["OpenVINO, int8"].use_preset("turbo")

    def run(module: Any) -> torch.Tensor:
        dtype = next(module.parameters(), guided[0]).dtype
        cast = tuple(each.to(dtype) for each in guided)
        return module(*cast, return_dict=False)[0].float()

    ways: dict[str, Callable[[], Any]] = {
        "plain diffusers, float32": partial(run, plain),
        **{name: partial(run, module) for name, module in modules.items()},
        f"OpenVINO directly, {quality}": _direct(folder / "unet", guided, device),
    }
    with torch.no_grad():
        expected = run(plain)
        outputs = {name: run(module) for name, module in modules.items()}
        for name in (f"PyTorch, {quality}", f"OpenVINO, {quality}"):
            outputs[f"{name}, cached features"] = _cached_pass(modules.get(name, plain), guided)
    seconds = _in_turns(ways, rounds)
    yield from (Measurement(f"{GUIDED_PASS}{name}", value, "s") for name, value in seconds.items())
    base = seconds["plain diffusers, float32"]
    if quality != "float32":
        yield Measurement("Quality / plain", base / seconds[f"OpenVINO, {quality}"], "×", at_least=3.4)
    direct = seconds[f"OpenVINO directly, {quality}"]
    yield Measurement("Quality / OpenVINO directly", direct / seconds[f"OpenVINO, {quality}"], "×", at_least=0.98)
    yield Measurement("float32 / plain", base / seconds["OpenVINO, float32"], "×", at_least=1.9)
    yield Measurement("int8 / plain", base / seconds["OpenVINO, int8"], "×", at_least=5.0)
    for name, output in outputs.items():
        yield Measurement(f"{SIMILARITY}{name}", _psnr(output, expected), "dB")


def measure_one_step(folder: Path, device: Device, rounds: int) -> Iterator[Measurement]:
    """From a request to the file: one unguided pass and a tiny decoder."""
    for name, bound_16, bound_8 in (("sd15", 1.6, 1.2), ("small", 0.8, None)):
        pipeline = build_synthetic(device.torch_dtype, device.name, SMALL_UNET if name == "small" else {})
        pipeline.register_modules(vae=build_tiny_vae(device.torch_dtype, device.name))
        pipeline.save_pretrained(folder / name)
        with _studio(folder / f"{name}-data", device, folder / name) as studio:
            yield from _one_step_rows(studio, f"one step, {name}", "quality", bound_16, rounds)
            if bound_8:
                [config_file] = (folder / f"{name}-data").glob(f"cache/openvino/*/{conversion.UNET_CONFIG}")
                config = json.loads(config_file.read_text(encoding="utf-8"))
                _quantize(config_file.parent, config, SIDE // 8, device)
                yield from _one_step_rows(studio, f"one step, {name}, int8", "turbo", bound_8, rounds)
    yield from _second_start(folder, device)


def measure_starter(_: Path, device: Device, rounds: int) -> Iterator[Measurement]:
    """Seconds an image of the built-in model by PyTorch and by OpenVINO, and their similarity."""
    spec = MODELS["starter"]
    local = LocalModel(Path(spec.name), spec.name)
    with tempfile.TemporaryDirectory() as cache:
        engine = OpenVinoEngine(device, Path(cache))
        models = [
            BenchmarkModel(spec, device, optimized=PipelineCache(device, openvino=one).get(spec, local))
            for one in (None, engine)
        ]
        plain = _plain_image(spec, GenerationRequest(PROMPT, seed=1).with_defaults(spec))
        for preset in ("quality", "balanced", "turbo"):
            request = GenerationRequest(PROMPT, seed=1, preset=preset).with_defaults(spec)
            on_torch, on_openvino = (partial(each.generate_optimized, request) for each in models)
            seconds = _in_turns({"PyTorch": on_torch, "OpenVINO": on_openvino}, max(rounds, 5))
            label, is_quality = f"starter, {preset}", preset == "quality"
            for name, value in seconds.items():
                yield Measurement(f"{label}: {name}", value, "s")
            ratio = seconds["OpenVINO"] / seconds["PyTorch"]
            yield Measurement(f"{label}: OpenVINO / PyTorch", ratio, "×", at_most=0.6 if is_quality else None)
            images = {"PyTorch": on_torch(), "OpenVINO": on_openvino()}
            label = f"{label}: similarity of"
            for name, image in images.items():
                yield Measurement(f"{label} {name} to plain diffusers", similarity.psnr(plain, image), "dB")
            value = similarity.psnr(*images.values())
            yield Measurement(f"{label} OpenVINO to PyTorch", value, "dB", at_least=40.0 if is_quality else None)


def _plain_image(spec: ModelSpec, request: GenerationRequest) -> Image:
    """The image of a request by diffusers in float32, without this program."""
    import torch
    from diffusers import StableDiffusionPipeline

    assert request.scheduler and request.num_inference_steps  # noqa: S101 - the request is resolved
    pipeline: Any = StableDiffusionPipeline.from_pretrained(spec.name, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = build_scheduler(pipeline.scheduler.config, request.scheduler, request.num_inference_steps)
    image: Image = pipeline(
        enhance_prompt(request, spec),
        negative_prompt=enhance_negative_prompt(request),
        width=request.width,
        height=request.height,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        generator=torch.Generator().manual_seed(request.seed),
    ).images[0]
    return image


def measure_memory(folder: Path, device: Device, _: int) -> Iterator[Measurement]:
    """Peak memory of one step of Stable Diffusion 1.5 by plain diffusers and by OpenVINO."""
    peaks = []
    for variant in ("convert", "plain", "openvino"):
        child, receiver = start_process(_send_peak, folder, device, variant)
        peaks.append((watch_process(child, receiver) or 0) / 1e9)
    plain, openvino = peaks[1:]
    yield Measurement("peak memory: plain diffusers, float32", plain, "GB")
    yield Measurement("peak memory: OpenVINO", openvino, "GB")
    yield Measurement("peak memory / plain", openvino / plain, "×", at_most=0.6)


PARTS: dict[str, Callable[[Path, Device, int], Iterator[Measurement]]] = {
    "passes": measure_passes,
    "one-step": measure_one_step,
    "starter": measure_starter,
    "memory": measure_memory,
}


def _cached_pass(unet: Any, guided: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The prediction from the features of an earlier step, as in Balanced."""
    dtype = next(unet.parameters(), guided[0]).dtype
    sample, timestep, embeds = (each.to(dtype) for each in guided)
    passes = unet if hasattr(unet, "shallow_forward") else UNetForward(unet, CACHE_BRANCH_DEPTH)
    features = passes.full_forward(sample, timestep + EARLIER_STEP, embeds)[1]
    prediction: torch.Tensor = passes.shallow_forward(sample, timestep, embeds, features)[0]
    return prediction.float()


def _converted(folder: Path, device: Device) -> Any:
    from canvas.engine.openvino.modules import OpenVinoUNet

    return OpenVinoUNet(folder, runtime.compile_config(device))


def _quantize(folder: Path, config: Any, side: int, device: Device) -> None:
    """Quantize a UNet with random weights, for which no inputs are real, and let Turbo use it."""
    import torch

    recorder = int8.InputRecorder()
    for number in range(int8.NUM_INPUTS):
        sample, _, *others = conversion.example_inputs(config, (side, side))
        noise = torch.randn(sample.shape, generator=torch.Generator().manual_seed(number))
        timestep = torch.tensor([number * 999.0 / int8.NUM_INPUTS])
        recorder.add([each.numpy() for each in (noise, timestep, *others)])
    recorder.save(folder / int8.INPUTS)
    process = int8.Int8Process(folder, device)
    if process.wait(1200) != 0:
        raise RuntimeError(f"the quantization failed with exit code {process.wait(0)}")
    report = json.loads((folder / int8.REPORT).read_text(encoding="utf-8"))
    (folder / int8.REPORT).write_text(json.dumps({**report, "error": 0.0, "seconds": 0.0}), encoding="utf-8")


def _direct(folder: Path, guided: tuple[torch.Tensor, ...], device: Device) -> Callable[[], Any]:
    """OpenVINO without this program: the graph compiled for the guided pass as one batch."""
    model = runtime.core().read_model(str(folder / conversion.UNET))
    model.reshape({index: list(each.shape) for index, each in enumerate(guided)})
    config = {"INFERENCE_PRECISION_HINT": runtime.compile_config(device)["INFERENCE_PRECISION_HINT"]}
    request = (
        runtime.core().compile_model(model, "CPU", {**config, "PERFORMANCE_HINT": "LATENCY"}).create_infer_request()
    )
    arrays: list[np.ndarray] = [each.numpy() for each in guided]
    return lambda: request.infer(arrays, share_inputs=True)


def _in_turns(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    with malloc.retain_freed_memory():  # as in generate()
        return median_seconds(ways, rounds)


def _psnr(output: torch.Tensor, expected: torch.Tensor) -> float:
    """In dB, relative to the range of the expected values."""
    error = float(((output - expected) ** 2).mean())
    spread = float(expected.max() - expected.min())
    return similarity.decibels(error / spread**2)


@contextmanager
def _studio(data_dir: Path, device: Device, model: Path) -> Iterator[Studio]:
    from canvas.settings import Settings
    from canvas.studio import Studio

    values: dict[str, Any] = {"device": "cpu", "dtype": device.dtype, "engine": "openvino", "port": 0}
    with Studio(Settings(data_dir=data_dir, cache_dir=data_dir / "cache", **values)) as studio:
        studio.models["one-step"] = replace(
            synthetic_spec(), key="one-step", name=str(model), num_inference_steps=1, accelerations=()
        )
        yield studio


def _one_step_rows(studio: Studio, name: str, preset: str, bound: float, rounds: int) -> Iterator[Measurement]:
    totals: list[float] = []
    outside: list[float] = []
    with _seconds_in_models() as inside:
        for number in range(rounds + 2):
            request = GenerationRequest(f"{PROMPT}, number {number}", model_key="one-step", seed=number, preset=preset)
            request = replace(request, num_inference_steps=1, guidance_scale=0.0, width=SIDE, height=SIDE)
            inside.clear()
            started = time.perf_counter()
            [image] = studio.generate(request)
            totals.append(time.perf_counter() - started)
            outside.append(totals[-1] - sum(inside))
    yield Measurement(f"{name}: request to file ({image.engine})", statistics.median(totals[2:]), "s", at_most=bound)
    yield Measurement(f"{name}: outside the models", statistics.median(outside[2:]), "s", at_most=0.1)


@contextmanager
def _seconds_in_models() -> Iterator[list[float]]:
    """The seconds of each call of OpenVINO's UNet and decoder, and of torch's text encoder."""
    from transformers import CLIPTextModel

    seconds: list[float] = []

    def timed(original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def call(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            result = original(*arguments, **options)
            seconds.append(time.perf_counter() - started)
            return result

        return call

    with (
        patch.object(runtime.Graph, "__call__", timed(runtime.Graph.__call__)),
        patch.object(CLIPTextModel, "forward", timed(CLIPTextModel.forward)),
    ):
        yield seconds


def _second_start(folder: Path, device: Device) -> Iterator[Measurement]:
    """Seconds until a converted Stable Diffusion 1.5 is loaded and compiled; torch is imported already."""
    spec = replace(synthetic_spec(), key="one-step", name=str(folder / "sd15"), accelerations=())
    local = LocalModel(folder / "sd15", spec.name)
    engine = OpenVinoEngine(device, folder / "sd15-data" / "cache", forced=True)
    started = time.perf_counter()
    pipeline = PipelineCache(device, openvino=engine).get(spec, local)
    inputs = conversion.example_inputs(pipeline.unet.config, (SIDE // 8, SIDE // 8))
    pipeline.unet.full.compiled(tuple(tuple(each.shape) for each in inputs))
    seconds = time.perf_counter() - started
    yield Measurement(f"second start ({engine_name(pipeline)})", seconds, "s", at_most=4.0)


def _send_peak(sender: Any, folder: Path, device: Device, variant: str) -> None:
    import torch

    silence_libraries()
    engine = OpenVinoEngine(device, folder / "memory", forced=True)
    spec = replace(synthetic_spec(), name=str(folder / "memory-model"), accelerations=())
    local = LocalModel(Path(spec.name), spec.name)
    if variant == "convert":
        build_synthetic(device.torch_dtype, device.name).save_pretrained(spec.name)
        PipelineCache(device, openvino=engine).get(spec, local)
    elif variant == "plain":
        from diffusers import DiffusionPipeline

        pipeline = DiffusionPipeline.from_pretrained(spec.name, dtype=torch.float32)
        pipeline(PROMPT, num_inference_steps=1, width=SIDE, height=SIDE)
    else:
        pipeline = PipelineCache(device, openvino=engine).get(spec, local)
        request = GenerationRequest(PROMPT, seed=1, width=SIDE, height=SIDE, num_inference_steps=1)
        BenchmarkModel(spec, device, optimized=pipeline).generate_optimized(request.with_defaults(spec))
    sender.send(1)
