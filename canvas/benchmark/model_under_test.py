"""A model as plain diffusers runs it (baseline) and as this program does (optimized), timed."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from canvas.benchmark.synthetic_models import build_synthetic, build_tiny_vae, synthetic_spec
from canvas.engine import system_info
from canvas.engine.device import Device
from canvas.engine.generate import decode_latents, generate
from canvas.engine.loader import optimize_for_device, silence_libraries
from canvas.engine.openvino.engine import OpenVinoEngine
from canvas.engine.optimizations import malloc
from canvas.engine.optimizations.deepcache import CACHED, COND_ONLY, FULL, apply_deepcache
from canvas.engine.pipeline_cache import PipelineCache
from canvas.engine.prompt_embeds import clear_cache
from canvas.errors import ModelNotFound
from canvas.models.download import LocalModel, find_local
from canvas.request import GenerationRequest

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from canvas.catalog import ModelSpec

PROMPT = "a fox in the snow"
BASELINE_GUIDANCE_SCALE = 7.5
# Sides of square matrices whose product takes long enough to time.
MATMUL_SIDES = MappingProxyType({"cpu": 2048, "cuda": 8192, "mps": 4096})


@dataclass
class BenchmarkModel:
    """The baseline and the optimized pipelines of a model, by torch and OpenVINO; None if not loaded."""

    spec: ModelSpec
    device: Device
    baseline: Any = None
    optimized: Any = None
    tiny_vae: Any = None
    openvino: Any = None

    def generate_baseline(self, side: int, steps: int, *, slicing: bool = False) -> Image:
        """Generate an image as in diffusers' tutorials, with attention slicing if wanted."""
        import torch

        if slicing:
            self.baseline.enable_attention_slicing()
        try:
            image: Image = self.baseline(
                PROMPT,
                width=side,
                height=side,
                num_inference_steps=steps,
                guidance_scale=BASELINE_GUIDANCE_SCALE,
                generator=torch.Generator().manual_seed(1),
            ).images[0]
        finally:
            if slicing:
                self.baseline.disable_attention_slicing()
        return image

    def generate_optimized(self, request: GenerationRequest, *, openvino: bool = False) -> Image:
        """Generate the image of a resolved request."""
        (result,) = generate(
            self.openvino if openvino else self.optimized,
            request,
            spec=self.spec,
            device=self.device,
            on_step=lambda _: None,
            cancelled=threading.Event(),
        )
        assert result.image is not None  # noqa: S101 - it has just been generated
        return result.image


def load_benchmark_model(
    spec: ModelSpec | None, device: Device, *, baseline: bool = True, optimized: bool = True
) -> BenchmarkModel:
    """Load a model of the catalog, or the synthetic one if `spec` is None.

    Raises ModelNotFound if it is not downloaded.
    """
    from diffusers import DiffusionPipeline

    silence_libraries()
    if spec is None:
        model = BenchmarkModel(synthetic_spec(), device)
        if optimized:
            model.optimized = build_synthetic(device.torch_dtype, device.name)
            optimize_for_device(model.optimized, device)
            model.tiny_vae = build_tiny_vae(device.torch_dtype, device.name)
        if baseline:
            model.baseline = build_synthetic(baseline_dtype(device), device.name)
        return model
    local = find_local(spec)
    if local is None:
        raise ModelNotFound(f"The model {spec.key} is not downloaded. Run `python -m canvas download {spec.key}`.")
    model = BenchmarkModel(spec, device)
    if optimized:
        model.optimized = PipelineCache(device).get(spec, local)
    if baseline:
        model.baseline = DiffusionPipeline.from_pretrained(str(local.path), dtype=baseline_dtype(device))
        model.baseline.set_progress_bar_config(disable=True)
        model.baseline.to(device.name)
    return model


def load_openvino(model: BenchmarkModel, cache_dir: Path) -> None:
    """Load `model.openvino`; the graphs are kept beside the model, or in `cache_dir`."""
    engine = OpenVinoEngine(model.device, cache_dir, forced=True)
    if local := find_local(model.spec):
        model.openvino = PipelineCache(model.device, openvino=engine).get(model.spec, local)
        return
    model.openvino = build_synthetic(model.device.torch_dtype, model.device.name)
    local = LocalModel(cache_dir / "synthetic", "synthetic")
    local.path.mkdir(parents=True)
    engine.adopt(model.openvino, model.spec, local)


def baseline_dtype(device: Device) -> torch.dtype:
    """The dtype in diffusers' tutorials."""
    import torch

    return torch.float16 if device.name == "cuda" else torch.float32


def machine_name(device: Device) -> str:
    """The name of the GPU, or of the processor."""
    import torch

    return torch.cuda.get_device_name() if device.name == "cuda" else system_info.processor_name()


def overhead_ratio(model: BenchmarkModel, side: int, steps: int | None, rounds: int) -> float:
    """The share of a Quality image's time that is spent outside text encoder, UNet and VAE.

    The median of several images after a warm-up, each with an empty prompt cache. `steps`
    defaults to the model's.
    """
    request = GenerationRequest(PROMPT, seed=1, width=side, height=side, num_inference_steps=steps).with_defaults(
        model.spec
    )
    ratios = []
    with _time_modules(model.optimized) as seconds:
        for _ in range(rounds + 1):
            clear_cache(model.optimized)
            seconds.clear()
            total = time_call(lambda: model.generate_optimized(request))
            ratios.append(1 - sum(seconds) / total)
    return statistics.median(ratios[1:])


@contextmanager
def _time_modules(pipeline: Any) -> Iterator[list[float]]:
    """The seconds of each call of text encoder, UNet and VAE inside the block."""
    seconds: list[float] = []

    def start(*_: Any) -> None:
        _synchronize()
        seconds.append(-time.perf_counter())

    def stop(*_: Any) -> None:
        _synchronize()
        seconds[-1] += time.perf_counter()

    def timed_decode(*args: Any, **options: Any) -> Any:
        start()
        result = decode(*args, **options)
        stop()
        return result

    modules = (pipeline.text_encoder, pipeline.unet)
    handles = [module.register_forward_pre_hook(start) for module in modules]
    handles += [module.register_forward_hook(stop, prepend=True) for module in modules]
    decode, pipeline.vae.decode = pipeline.vae.decode, timed_decode
    try:
        yield seconds
    finally:
        for handle in handles:
            handle.remove()
        del pipeline.vae.decode


class StageTimings:
    """Times the stages of generation separately, to extrapolate whole images."""

    def __init__(self, model: BenchmarkModel, side: int) -> None:
        self._model = model
        self._side = side

    def measure(self, rounds: int) -> dict[str, float]:
        """Median seconds of each stage over several rounds after a warm-up."""
        seconds: dict[str, list[float]] = {}
        for number in range(rounds + 1):
            for stage, duration in self._measure_round().items():
                if number:
                    seconds.setdefault(stage, []).append(duration)
        return {stage: statistics.median(values) for stage, values in seconds.items()}

    def baseline_unet_call(self) -> float:
        """Seconds of a UNet call with guidance in the baseline, after a warm-up."""
        self._unet(self._model.baseline)
        return self._unet(self._model.baseline)[FULL]

    def _measure_round(self) -> dict[str, float]:
        baseline, optimized = self._model.baseline, self._model.optimized
        seconds = {
            "baseline text": self._encode(baseline),
            "text": self._encode(optimized),
            "baseline unet": self._unet(baseline)[FULL],
        }
        baseline.enable_attention_slicing()
        seconds["sliced unet"] = self._unet(baseline)[FULL]
        baseline.disable_attention_slicing()
        seconds["baseline decode"] = self._decode(baseline)
        seconds["decode"] = self._decode(optimized)
        with malloc.retain_freed_memory():  # as in generate()
            if self._model.tiny_vae is not None:
                vae, optimized.vae = optimized.vae, self._model.tiny_vae
                seconds["tiny decode"] = self._decode(optimized)
                optimized.vae = vae
            seconds |= self._unet(optimized, (FULL, COND_ONLY, CACHED))
            if self._model.openvino is not None:
                calls = self._unet(self._model.openvino, (FULL, COND_ONLY, CACHED))
                seconds |= {f"openvino {kind}": value for kind, value in calls.items()}
                seconds["openvino decode"] = self._decode(self._model.openvino)
        return seconds

    def _encode(self, pipeline: Any) -> float:
        return time_call(lambda: pipeline.encode_prompt(PROMPT, pipeline.device, 1, False))

    def _unet(self, pipeline: Any, kinds: tuple[str, ...] = (FULL,)) -> dict[str, float]:
        import torch

        unet = pipeline.unet
        sample, prompt_embeds = _unet_inputs(pipeline, self._side)
        timestep = torch.tensor(500.0, device=unet.device)
        with apply_deepcache(pipeline, list(kinds)):
            return {kind: time_call(lambda: unet(sample, timestep, prompt_embeds, return_dict=False)) for kind in kinds}

    def _decode(self, pipeline: Any) -> float:
        import torch

        side = self._side // pipeline.vae_scale_factor
        channels = pipeline.vae.config.latent_channels
        latents = torch.randn(1, channels, side, side, device=pipeline.device)
        return time_call(lambda: decode_latents(latents, pipeline))


def _unet_inputs(pipeline: Any, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A random sample and prompt embeddings for both branches of classifier-free guidance."""
    import torch

    unet, side = pipeline.unet, side // pipeline.vae_scale_factor
    options = {"dtype": unet.dtype, "device": unet.device}
    sample = torch.randn(2, unet.config.in_channels, side, side, **options)
    return sample, torch.randn(2, 77, unet.config.cross_attention_dim, **options)


def time_call(function: Callable[[], Any]) -> float:
    """Seconds of a call, including its work on the GPU."""
    import torch

    started = time.perf_counter()
    with torch.no_grad():
        function()
    _synchronize()
    return time.perf_counter() - started


def median_seconds(functions: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each function in alternating rounds, after a warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds + 1):
        for name, function in functions.items():
            duration = time_call(function)
            if number:
                seconds[name].append(duration)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_matmul_tflops(device: Device) -> float:
    """The best TFLOP/s of a large matrix product in the dtype of the device."""
    import torch

    side = MATMUL_SIDES[device.name]
    matrix = torch.randn(side, side, dtype=device.torch_dtype, device=device.name)
    seconds = min(time_call(lambda: matrix @ matrix) for _ in range(8))
    return 2 * side**3 / seconds / 1e12


def unet_tflop(model: BenchmarkModel, side: int) -> float:
    """10^12 operations of a UNet call with guidance, as torch counts them."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    sample, prompt_embeds = _unet_inputs(model.optimized, side)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.optimized.unet(sample, 500, prompt_embeds, return_dict=False)
    return counter.get_total_flops() / 1e12
