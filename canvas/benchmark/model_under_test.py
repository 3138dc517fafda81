"""A model as plain diffusers runs it and as this program does: the parts of a picture, timed."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from canvas.benchmark.synthetic_models import build_synthetic, build_tiny_decoder, synthetic_spec
from canvas.engine import system_info
from canvas.engine.device import Device
from canvas.engine.generate import decode_latents, generate
from canvas.engine.loader import optimize_for_device, silence_libraries
from canvas.engine.optimizations import malloc
from canvas.engine.optimizations.deepcache import CACHED, COND_ONLY, FULL, apply_deepcache
from canvas.engine.pipeline_cache import PipelineCache
from canvas.engine.prompt_embeds import clear_cache
from canvas.errors import ModelNotFound
from canvas.models.download import find_local
from canvas.request import GenerationRequest

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from canvas.catalog import ModelSpec

PROMPT = "a fox in the snow"
PLAIN_GUIDANCE = 7.5
# Of matrices whose product is long enough to time.
CEILING_SIDES = MappingProxyType({"cpu": 2048, "cuda": 8192, "mps": 4096})


@dataclass
class BenchmarkModel:
    """A model as plain diffusers loads it and as this program does; None is not loaded."""

    spec: ModelSpec
    device: Device
    plain: Any = None
    ours: Any = None
    tiny_decoder: Any = None

    def make_plain(self, side: int, steps: int, *, slicing: bool = False) -> Image:
        """What a tutorial shows, with the attention slicing of the original program or without."""
        import torch

        if slicing:
            self.plain.enable_attention_slicing()
        try:
            found: Image = self.plain(
                PROMPT,
                width=side,
                height=side,
                num_inference_steps=steps,
                guidance_scale=PLAIN_GUIDANCE,
                generator=torch.Generator().manual_seed(1),
            ).images[0]
        finally:
            if slicing:
                self.plain.disable_attention_slicing()
        return found

    def make_ours(self, request: GenerationRequest) -> Image:
        """The picture of a resolved request, the way of this program."""
        (made,) = generate(
            self.ours,
            request,
            spec=self.spec,
            device=self.device,
            on_step=lambda _: None,
            cancelled=threading.Event(),
        )
        assert made.image is not None  # noqa: S101 - run gives pictures
        return made.image


def load_subject(
    spec: ModelSpec | None, device: Device, *, plain: bool = True, ours: bool = True
) -> BenchmarkModel:
    """The model of the catalogue, or with None the synthetic one; raises ModelGone."""
    from diffusers import DiffusionPipeline

    silence_libraries()
    if spec is None:
        subject = BenchmarkModel(synthetic_spec(), device)
        if ours:
            subject.ours = build_synthetic(device.torch_dtype, device.name)
            optimize_for_device(subject.ours, device)
            subject.tiny_decoder = build_tiny_decoder(device.torch_dtype, device.name)
        if plain:
            subject.plain = build_synthetic(plain_dtype(device), device.name)
        return subject
    local = find_local(spec)
    if local is None:
        raise ModelNotFound(f"The model {spec.key} is not on disk: download it, then measure it.")
    subject = BenchmarkModel(spec, device)
    if ours:
        subject.ours = PipelineCache(device).get(spec, local)
    if plain:
        subject.plain = DiffusionPipeline.from_pretrained(
            str(local.path), dtype=plain_dtype(device)
        )
        subject.plain.set_progress_bar_config(disable=True)
        subject.plain.to(device.name)
    return subject


def plain_dtype(device: Device) -> torch.dtype:
    """What tutorials show: diffusers' own default, and half of it on a GPU."""
    import torch

    return torch.float16 if device.name == "cuda" else torch.float32


def machine_name(device: Device) -> str:
    """What computes there: the GPU, or the processor."""
    import torch

    on_gpu = device.name == "cuda"
    return torch.cuda.get_device_name() if on_gpu else system_info.processor_name()


def overhead_ratio(subject: BenchmarkModel, side: int, steps: int | None, turns: int) -> float:
    """The share of a Quality picture that passes outside text encoder, UNet and decoder.

    The median of several pictures after one that warms up, each with its words read anew.
    `steps` None takes the model's own number.
    """
    request = GenerationRequest(
        PROMPT, seed=1, width=side, height=side, num_inference_steps=steps
    ).with_defaults(subject.spec)
    shares = []
    with _clocked(subject.ours) as spent:
        for _ in range(turns + 1):
            clear_cache(subject.ours)
            spent.clear()
            whole = time_call(lambda: subject.make_ours(request))
            shares.append(1 - sum(spent) / whole)
    return statistics.median(shares[1:])


@contextmanager
def _clocked(pipeline: Any) -> Iterator[list[float]]:
    """The seconds of each call of the pipeline's models, from the outermost call on."""
    spent: list[float] = []

    def start(*_: Any) -> None:
        _wait_for_gpu()
        spent.append(-time.perf_counter())

    def stop(*_: Any) -> None:
        _wait_for_gpu()
        spent[-1] += time.perf_counter()

    def decode(*arguments: Any, **options: Any) -> Any:
        start()
        found = usual(*arguments, **options)
        stop()
        return found

    models = (pipeline.text_encoder, pipeline.unet)
    hooks = [model.register_forward_pre_hook(start) for model in models]
    hooks += [model.register_forward_hook(stop, prepend=True) for model in models]
    usual, pipeline.vae.decode = pipeline.vae.decode, decode
    try:
        yield spent
    finally:
        for hook in hooks:
            hook.remove()
        del pipeline.vae.decode


class StageTimings:
    """What pictures of a subject are added up from, by name."""

    def __init__(self, subject: BenchmarkModel, side: int) -> None:
        self._subject = subject
        self._side = side

    def measure(self, turns: int) -> dict[str, float]:
        """Seconds of each part, the median of several turns after one that warms up."""
        seconds: dict[str, list[float]] = {}
        for turn in range(turns + 1):
            for name, taken in self._turn().items():
                if turn:
                    seconds.setdefault(name, []).append(taken)
        return {name: statistics.median(taken) for name, taken in seconds.items()}

    def one_plain_pass(self) -> float:
        """Seconds of a guided pass of plain diffusers, warmed up."""
        self._passes(self._subject.plain)
        return self._passes(self._subject.plain)[FULL]

    def _turn(self) -> dict[str, float]:
        plain, ours = self._subject.plain, self._subject.ours
        found = {"plain text": self._text(plain), "text": self._text(ours)}
        found["plain pass"] = self._passes(plain)[FULL]
        plain.enable_attention_slicing()
        found["sliced pass"] = self._passes(plain)[FULL]
        plain.disable_attention_slicing()
        found["plain decode"] = self._decode(plain)
        found["decode"] = self._decode(ours)
        with malloc.retain_freed_memory():  # as when a picture is made
            if self._subject.tiny_decoder is not None:
                usual, ours.vae = ours.vae, self._subject.tiny_decoder
                found["tiny decode"] = self._decode(ours)
                ours.vae = usual
            found |= self._passes(ours, (FULL, COND_ONLY, CACHED))
        return found

    def _text(self, pipeline: Any) -> float:
        return time_call(lambda: pipeline.encode_prompt(PROMPT, pipeline.device, 1, False))

    def _passes(self, pipeline: Any, kinds: tuple[str, ...] = (FULL,)) -> dict[str, float]:
        import torch

        unet = pipeline.unet
        side = self._side // pipeline.vae_scale_factor
        options = {"dtype": unet.dtype, "device": unet.device}
        sample = torch.randn(2, unet.config.in_channels, side, side, **options)
        words = torch.randn(2, 77, unet.config.cross_attention_dim, **options)
        timestep = torch.tensor(500.0, device=unet.device)
        with apply_deepcache(pipeline, list(kinds)):
            return {
                kind: time_call(lambda: unet(sample, timestep, words, return_dict=False))
                for kind in kinds
            }

    def _decode(self, pipeline: Any) -> float:
        import torch

        side = self._side // pipeline.vae_scale_factor
        channels = pipeline.vae.config.latent_channels
        latents = torch.randn(1, channels, side, side, device=pipeline.device)
        return time_call(lambda: decode_latents(latents, pipeline))


def time_call(work: Callable[[], Any]) -> float:
    """Seconds that the work takes, that of a GPU included."""
    import torch

    started = time.perf_counter()
    with torch.no_grad():
        work()
    _wait_for_gpu()
    return time.perf_counter() - started


def _wait_for_gpu() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_matmul_tflops(device: Device) -> float:
    """The best speed of a large matrix product in the device's dtype, 10^12 operations a second."""
    import torch

    side = CEILING_SIDES[device.name]
    matrix = torch.randn(side, side, dtype=device.torch_dtype, device=device.name)
    best = min(time_call(lambda: matrix @ matrix) for _ in range(8))
    return 2 * side**3 / best / 1e12


def unet_tflop(subject: BenchmarkModel, side: int) -> float:
    """10^12 operations of a guided pass, counted by torch."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    unet = subject.ours.unet
    latent_side = side // subject.ours.vae_scale_factor
    options = {"dtype": unet.dtype, "device": unet.device}
    sample = torch.randn(2, unet.config.in_channels, latent_side, latent_side, **options)
    words = torch.randn(2, 77, unet.config.cross_attention_dim, **options)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(sample, 500, words, return_dict=False)
    return counter.get_total_flops() / 1e12
