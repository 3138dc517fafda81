"""Plans how a model fits into the memory of this machine, before it is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from canvas.catalog import ModelSpec
from canvas.engine import loader, system_info
from canvas.engine.device import Device
from canvas.engine.quantization import is_available
from canvas.errors import InvalidInput, LazyMessage, ModelCorrupted
from canvas.models import pipeline_files
from canvas.models.download import LocalModel

# Activations, attention buffers and the libraries themselves.
ACTIVATION_BYTES = 1_500_000_000
# What stays on the GPU with group offload: two blocks of a transformer and the activations.
GROUP_OFFLOAD_BYTES = 1_000_000_000
# Bytes of an int8 copy per byte of the 16-bit weights: embeddings and norms stay as they are.
INT8_RATIO = 0.55
# A smaller model is not worth the rounding errors, and has no transformer as a rule.
MIN_QUANTIZED_BYTES = 1_000_000_000
# Peak memory of decoding, per pixel and per byte of the dtype.
BYTES_PER_PIXEL = 1100
ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
# Only these pipelines take `prompt_embeds` without touching their text encoder.
ENCODE_FIRST_PIPELINES = ("Flux2KleinPipeline", "ZImagePipeline")


@dataclass(frozen=True)
class ModelWeights:
    """Bytes of the weights by component in the dtype of the device; `pipeline_class` of the model.

    `quantizable`: components of transformer layers, the only ones that torchao makes smaller.
    """

    components: Mapping[str, int]
    pipeline_class: str = ""
    quantizable: frozenset[str] = frozenset()

    @property
    def encoders(self) -> int:
        return sum(size for name, size in self.components.items() if name in ENCODERS)

    @property
    def total(self) -> int:
        return sum(self.components.values())

    @property
    def largest(self) -> int:
        return max(self.components.values(), default=0)

    def quantized(self) -> ModelWeights:
        """The weights with int8 copies of the transformers."""
        sizes = {
            name: int(size * INT8_RATIO) if name in self.quantizable else size for name, size in self.components.items()
        }
        return replace(self, components=sizes)


@dataclass(frozen=True)
class MemoryPlan:
    """How a model is loaded.

    `quantization`: "none", "int8" (weights only) or "int8-dynamic" (activations, too).
    `offload`: "none"; "model" (components move to the GPU in turn) or "group" (their layers do);
    "encode-first" (the text encoder is freed before the denoiser is loaded).
    `quantized`: the components in int8. `weight_bytes`, `peak_bytes`: the estimated peaks of the
    weights alone and of everything on the device.
    `tiling`: the VAE decodes in tiles.
    """

    quantization: str = "none"
    offload: str = "none"
    peak_bytes: int = 0
    total_bytes: int = 0
    quantized: tuple[str, ...] = ()
    tiling: bool = False

    @property
    def weight_bytes(self) -> int:
        return max(0, self.peak_bytes - ACTIVATION_BYTES)

    @property
    def text(self) -> LazyMessage:
        """For people: "int8, 9.0 GB of 16.0 GB"."""
        values = {"peak": f"{self.peak_bytes / 1e9:.1f} GB", "total": f"{self.total_bytes / 1e9:.1f} GB"}
        if self.quantization == "int8":
            return LazyMessage("int8, {peak} of {total}", **values)
        if self.quantization == "int8-dynamic":
            return LazyMessage("int8 dynamic, {peak} of {total}", **values)
        return LazyMessage("{peak} of {total}", **values)

    @property
    def note(self) -> str:
        """What differs from plain diffusers, for the record of an image; "" if nothing does."""
        parts = []
        if self.quantization != "none":
            parts.append(f"{self.quantization} weights")
        if self.offload != "none":
            parts.append(f"offload: {self.offload}")
        if self.tiling:
            parts.append("decoded in tiles")
        return ", ".join(parts)


def plan_memory(  # noqa: PLR0913 - keyword only, but for the facts
    weights: ModelWeights,
    device: Device,
    free: int,
    total: int,
    *,
    quantization: str = "auto",
    offload: str = "auto",
    torchao: bool = True,
    decoding_bytes: int = 0,
) -> MemoryPlan:
    """The fastest plan that fits into `free` bytes, or the smallest if none does.

    `quantization` and `offload` other than "auto" are kept. `free` and `total` are those of the
    device. `decoding_bytes`: what the VAE takes to decode an image at once. Raises InvalidInput for
    what this model or machine cannot do.
    """
    _check(weights, device, quantization, offload, torchao=torchao)
    plans = [
        _make_plan(weights, scheme, place, total)
        for scheme, place in _candidates(weights, device, torchao=torchao)
        if quantization in ("auto", scheme) and offload in ("auto", place)
    ]
    if not plans:  # a combination that is not among the candidates
        scheme = "none" if quantization == "auto" else quantization
        place = "none" if offload == "auto" else offload
        plans = [_make_plan(weights, scheme, place, total)]
    smallest = min(plans, key=lambda plan: plan.peak_bytes)
    chosen = next((plan for plan in plans if plan.peak_bytes <= free), smallest)
    return replace(chosen, tiling=chosen.weight_bytes + decoding_bytes > free)


def _make_plan(weights: ModelWeights, scheme: str, place: str, total: int) -> MemoryPlan:
    quantized = () if scheme == "none" else tuple(sorted(weights.quantizable))
    peak = _peak(weights if scheme == "none" else weights.quantized(), place)
    return MemoryPlan(scheme, place, peak, total, quantized)


def _candidates(weights: ModelWeights, device: Device, *, torchao: bool) -> Iterator[tuple[str, str]]:
    """Quantization and offload, the best first: images like plain diffusers, then speed."""
    can_quantize = torchao and weights.quantizable and weights.total >= MIN_QUANTIZED_BYTES
    # Weight-only int8 computes in the dtype of the device; in float32 that is four times slower.
    int8 = "int8-dynamic" if device.name == "cpu" and device.dtype == "float32" else "int8"
    yield "none", "none"
    if device.name == "cuda":
        yield "none", "model"
        if can_quantize:
            yield int8, "none"
            yield int8, "model"
        yield "none", "group"
        return
    if can_quantize:
        yield int8, "none"
    if weights.pipeline_class in ENCODE_FIRST_PIPELINES:
        if can_quantize:
            yield int8, "encode-first"
        yield "none", "encode-first"


def _peak(weights: ModelWeights, offload: str) -> int:
    if offload == "encode-first":
        return max(weights.encoders, weights.total - weights.encoders) + ACTIVATION_BYTES
    if offload == "model":
        return weights.largest + ACTIVATION_BYTES
    if offload == "group":
        return GROUP_OFFLOAD_BYTES + ACTIVATION_BYTES
    return weights.total + ACTIVATION_BYTES


def _check(weights: ModelWeights, device: Device, quantization: str, offload: str, *, torchao: bool) -> None:
    if quantization not in ("auto", "none"):
        if not torchao:
            message = LazyMessage("int8 weights need the package torchao. Install it with: pip install torchao gguf")
            raise InvalidInput("quantization", quantization, message=message)
        if not weights.quantizable:
            message = LazyMessage("int8 weights need a model with a transformer; this one has a UNet.")
            raise InvalidInput("quantization", quantization, message=message)
    if offload in ("model", "group") and device.name != "cuda":
        message = LazyMessage("The offload {offload} needs an NVIDIA GPU.", offload=offload)
        raise InvalidInput("offload", offload, message=message)
    if offload == "encode-first" and weights.pipeline_class not in ENCODE_FIRST_PIPELINES:
        message = LazyMessage("The offload {offload} works with FLUX.2-klein and Z-Image only.", offload=offload)
        raise InvalidInput("offload", offload, message=message)


def local_weights(local: LocalModel, device: Device) -> ModelWeights:
    """The weights of a model on disk; raises ModelCorrupted."""
    if local.path.is_file():
        size = loader.estimate_bytes([local.path], device.torch_dtype.itemsize)
        return ModelWeights({local.path.name: size})
    sizes: Counter[str] = Counter()
    for path in loader.weight_files(local, device):
        if path.suffix in (".safetensors", ".bin"):
            sizes[path.parent.name] += loader.estimate_bytes([path], device.torch_dtype.itemsize)
    for name, source in local.components:
        sizes[name] = component_bytes(source, device.torch_dtype.itemsize)
    index = pipeline_files.read_index(local.path)
    gguf = {name for name, source in local.components if source.suffix == ".gguf"}
    return ModelWeights(sizes, str(index.get("_class_name", "")), _quantizable(index) - gguf)


def component_bytes(source: Path, itemsize: int) -> int:
    """Bytes in memory of a component in a folder or file; GGUF weights stay packed."""
    if source.suffix == ".gguf":
        return source.stat().st_size
    files = [source] if source.is_file() else sorted(source.glob("*.safetensors"))
    return loader.estimate_bytes(files, itemsize)


def _quantizable(index: Mapping[str, Any]) -> frozenset[str]:
    """The diffusion transformer, and text encoders that are language models (not CLIP's)."""
    return frozenset(
        name
        for name, origin in index.items()
        if isinstance(origin, list) and len(origin) == 2
        if name == "transformer" or (name in ENCODERS and not str(origin[1]).startswith("CLIP"))
    )


def plan_local(
    spec: ModelSpec,
    local: LocalModel,
    device: Device,
    *,
    quantization: str | None = None,
    offload: str | None = None,
    reclaimable: int = 0,
) -> MemoryPlan:
    """The plan for a model on disk; `models.toml` precedes the settings that are given.

    `reclaimable`: bytes of models in memory that would be unloaded.
    """
    device = loader.device_for(spec, local, device)
    try:
        weights = local_weights(local, device)
    except ModelCorrupted:
        return MemoryPlan()  # loading it raises the error
    free, total = memory_of(device)
    decoding_bytes = spec.resolution**2 * BYTES_PER_PIXEL * device.torch_dtype.itemsize
    return plan_memory(
        weights,
        device,
        free + reclaimable,
        total,
        quantization=spec.quantization if spec.quantization != "auto" else quantization or "auto",
        offload=spec.offload if spec.offload != "auto" else offload or "auto",
        torchao=is_available(),
        decoding_bytes=decoding_bytes if spec.resolution > 512 else 0,  # smaller images are one tile
    )


def memory_of(device: Device) -> tuple[int, int]:
    """Free and total bytes of the device."""
    if device.name == "cuda":
        import torch

        free, total = torch.cuda.mem_get_info()
        return int(free), int(total)
    return system_info.free_memory(), system_info.total_memory()
