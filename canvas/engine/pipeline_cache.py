"""The cache of loaded pipelines, kept within a memory budget."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from canvas.engine import loader, system_info
from canvas.engine.device import Device
from canvas.engine.loader import load_pipeline, optimize_for_device, weight_files
from canvas.errors import CanvasError, InvalidInput, LazyMessage, OutOfMemory
from canvas.models import addons
from canvas.presets import uses_distilled_lora

if TYPE_CHECKING:
    from canvas.catalog import ModelSpec
    from canvas.engine.device import Device
    from canvas.models.download import LocalModel
    from canvas.models.hub_client import Hub
    from canvas.request import GenerationRequest

# What decoding a picture takes at its peak, a pixel and byte of a number.
BYTES_PER_PIXEL = 1100


def check_memory(request: GenerationRequest, spec: ModelSpec, device: Device) -> None:
    """Raise OutOfMemory for a picture that the memory of this machine cannot hold.

    Of the CPU only: there the system ends a program that takes too much. A GPU refuses by
    itself, and part of what it calls used is free to us.
    """
    if device.name != "cpu" or _needed(request.width, request.height, device) <= (
        free := free_device_memory(device)
    ):
        return
    raise OutOfMemory(
        LazyMessage(
            "{size} needs {needed} of memory, {free} are free. {instead}",
            size=f"{request.width}x{request.height}",
            needed=f"{_needed(request.width, request.height, device) / 1e9:.2f} GB",
            free=f"{free / 1e9:.2f} GB",
            instead=suggest_size(request, spec, device),
        )
    )


def suggest_size(request: GenerationRequest, spec: ModelSpec, device: Device) -> LazyMessage:
    """The largest smaller size whose decoding fits into the memory that is free now."""
    assert request.width and request.height  # noqa: S101 - the request is resolved
    free = free_device_memory(device)
    longer = max(request.width, request.height)
    for side in range(longer - spec.size_step, spec.min_size - 1, -spec.size_step):
        width, height = (
            max(64, n * side // longer // 8 * 8) for n in (request.width, request.height)
        )
        if _needed(width, height, device) <= free:
            return LazyMessage("{size} would fit.", size=f"{width}x{height}")
    text = "Only {free} are free: close other programs or pick a smaller model."
    return LazyMessage(text, free=f"{free / 1e9:.2f} GB")


def _needed(width: int | None, height: int | None, device: Device) -> int:
    return (width or 0) * (height or 0) * BYTES_PER_PIXEL * int(device.torch_dtype.itemsize)


logger = logging.getLogger(__name__)

TASK_PIPELINES = {
    "image_to_image": "AutoPipelineForImage2Image",
    "inpaint": "AutoPipelineForInpainting",
}
# The rest is for activations, other programs and the file cache.
SHARE_OF_CPU_MEMORY = 0.6
SHARE_OF_GPU_MEMORY = 0.8


@dataclass
class CachedPipeline:
    """A pipeline in memory and those that share its weights, by task and whether quick."""

    local: LocalModel
    size: int  # bytes
    variants: dict[tuple[str, bool], Any] = field(default_factory=dict)


class PipelineCache:
    """Loaded pipelines by source; the least recently used goes before the next one comes.

    `memory_budget` in bytes counts weights; None takes a share of what the machine has.
    `hub` is where the extras of the modes lie. One thread loads at a time; looking
    (`is_loaded`, `loaded`) never waits.
    """

    def __init__(
        self, device: Device, memory_budget: int | None = None, *, hub: Hub | None = None
    ) -> None:
        self.device = device
        self.memory_budget = memory_budget or default_budget(device)
        self._hub = hub
        self._lock = threading.RLock()
        self._by_source: OrderedDict[str, CachedPipeline] = OrderedDict()

    def get(
        self,
        spec: ModelSpec,
        local: LocalModel,
        task: str = "text_to_image",
        preset: str = "quality",
    ) -> Any:
        """The diffusers pipeline, loaded if needed; raises ModelBroken or OutOfMemory.

        A failed load leaves the cache usable. The tasks of one model share its weights;
        those for few steps are a model of their own. Raises ModelUnavailable where the
        extras of the mode are not on this disk.
        """
        if task != "text_to_image" and task not in TASK_PIPELINES:
            raise InvalidInput("task", task, f"text_to_image, {', '.join(TASK_PIPELINES)}")
        source, quick = cache_key(spec, preset), addons.TAESD in addons.required(preset, spec)
        with self._lock:
            entry = self._by_source.get(source)
            if entry is not None and entry.local != local:
                self.unload(spec)  # another revision of the same model
                entry = None
            entry = entry or self._load(spec, local, preset)
            self._by_source.move_to_end(source)
            if quick and ("text_to_image", True) not in entry.variants:
                base = entry.variants["text_to_image", False]
                quicker = loader.with_taesd(base, hub=self._hub)
                entry.variants["text_to_image", True] = quicker
            if (task, quick) not in entry.variants:
                base = entry.variants["text_to_image", quick]
                entry.variants[task, quick] = _variant(base, task, spec)
            return entry.variants[task, quick]

    def is_loaded(self, spec: ModelSpec, preset: str = "quality") -> bool:
        """Whether the model can be used without loading."""
        return cache_key(spec, preset) in self._by_source

    def loaded(self) -> dict[str, int]:
        """Bytes of weights in memory by the model's source, the least recently used first."""
        return {name: entry.size for name, entry in self._by_source.copy().items()}

    def unload(self, spec: ModelSpec) -> bool:
        """Let the model go, in every mode; False if it was not loaded."""
        with self._lock:
            both = {spec.name, _distilled_key(spec)}
            sources = [source for source in self._by_source if source in both]
            for source in sources:
                del self._by_source[source]
            self._release()
            return bool(sources)

    def clear(self) -> None:
        """Let all models go."""
        with self._lock:
            self._by_source.clear()
            self._release()

    def _load(self, spec: ModelSpec, local: LocalModel, preset: str) -> CachedPipeline:
        files = weight_files(local, self.device)
        size = loader.estimate_bytes(files, self.device.torch_dtype.itemsize)
        self._evict_until_fits(spec, size)
        try:
            pipeline = load_pipeline(spec, local, self.device)
            if uses_distilled_lora(preset, spec):
                loader.fuse_distilled_lora(pipeline, hub=self._hub)
        except CanvasError:
            self._release()
            raise
        optimize_for_device(pipeline, self.device)
        size = loader.bytes_in_memory(pipeline)
        entry = CachedPipeline(local, size, {("text_to_image", False): pipeline})
        self._by_source[cache_key(spec, preset)] = entry
        return entry

    def _evict_until_fits(self, spec: ModelSpec, size: int) -> None:
        """Free the least recently used until `size` more bytes fit."""
        freed = False
        while self._by_source and (
            sum(self.loaded().values()) + size > self.memory_budget
            or size > free_device_memory(self.device)
        ):
            name, _ = self._by_source.popitem(last=False)
            logger.info("Letting go of %s to make room for %s", name, spec.name)
            self._release()
            freed = True
        free = free_device_memory(self.device)
        if size > free:
            also = ", though all other models were let go" if freed else ""
            raise OutOfMemory(
                f"The model {spec.key} needs {size / 1e9:.1f} GB of memory, "
                f"{free / 1e9:.1f} GB are free{also}. {self._what_would_fit(size, free)}"
            )

    def _what_would_fit(self, size: int, free: int) -> str:
        short = (size - free) / 1e9
        advice = f"Close programs that hold {short:.1f} GB, or pick a smaller model."
        if self.device.dtype == "float32" and size // 2 <= free:
            advice = f"With CANVAS_DTYPE=bfloat16 it would fit. {advice}"
        return advice

    def _release(self) -> None:
        system_info.release_memory()
        if self.device.name == "cuda":
            import torch

            torch.cuda.empty_cache()


def default_budget(device: Device) -> int:
    """Bytes for weights: a share of the memory that the device really has."""
    if device.name == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[1] * SHARE_OF_GPU_MEMORY)
    return int(system_info.total_memory() * SHARE_OF_CPU_MEMORY)


def free_device_memory(device: Device) -> int:
    """Bytes that can be had on the device now."""
    if device.name == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[0])
    return system_info.free_memory()


def cache_key(spec: ModelSpec, preset: str) -> str:
    """The name under which the cache keeps a model in that mode."""
    return _distilled_key(spec) if uses_distilled_lora(preset, spec) else spec.name


def _distilled_key(spec: ModelSpec) -> str:
    return f"{spec.name} for few steps"


def _variant(pipeline: Any, task: str, spec: ModelSpec) -> Any:
    import diffusers

    try:
        variant = getattr(diffusers, TASK_PIPELINES[task]).from_pipe(pipeline)
    except ValueError as error:
        raise InvalidInput("task", task, f"text_to_image with the model {spec.key}") from error
    variant.set_progress_bar_config(disable=True)
    return variant
