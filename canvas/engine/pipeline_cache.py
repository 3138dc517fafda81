"""The cache of loaded pipelines, limited by a memory budget; checks of the free memory."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from canvas.catalog import ModelSpec
from canvas.engine import loader, memory_plan, system_info
from canvas.engine.controlnet import load_controlnet
from canvas.engine.device import Device
from canvas.engine.memory_plan import BYTES_PER_PIXEL, MemoryPlan, memory_of
from canvas.engine.openvino.engine import OpenVinoEngine, add_note, engine_name
from canvas.errors import CanvasError, InvalidInput, LazyMessage, OutOfMemory
from canvas.models import addons, controlnets
from canvas.models.capabilities import capabilities_of, check_task
from canvas.models.download import LocalModel
from canvas.models.hub_client import Hub
from canvas.presets import distilled_lora, tiny_decoder, uses_distilled_lora

logger = logging.getLogger(__name__)

PIPELINE_TASKS = ("text_to_image", "image_to_image", "inpaint")
TORCH_ONLY_NOTE = "computed with torch instead of OpenVINO, because of the LoRA, embedding or guiding image"
# The rest is for activations, other programs and the file cache.
CPU_MEMORY_FRACTION = 0.6
GPU_MEMORY_FRACTION = 0.8


@dataclass
class CachedPipeline:
    """The pipelines that share one set of weights, by task and whether the VAE is TAESD."""

    local: LocalModel
    size: int  # bytes
    variants: dict[tuple[str, bool], Any] = field(default_factory=dict)

    @property
    def engine(self) -> str:
        return engine_name(self.variants["text_to_image", False])


class PipelineCache:
    """Loaded pipelines by source, evicted in the order of least recent use.

    `memory_budget` limits the bytes of weights (default: a fraction of the device's memory).
    `hub` holds the add-ons of the presets. `quantization` and `offload` override the memory plan.
    Without `openvino` all models run on torch. One thread loads at a time; `is_loaded` and `loaded`
    never wait.
    """

    def __init__(
        self,
        device: Device,
        memory_budget: int | None = None,
        *,
        hub: Hub | None = None,
        openvino: OpenVinoEngine | None = None,
        quantization: str | None = None,
        offload: str | None = None,
    ) -> None:
        self.device = device
        self.memory_budget = memory_budget or default_budget(device)
        self._hub = hub
        self._openvino = openvino
        self._quantization = quantization
        self._offload = offload
        self._lock = threading.RLock()
        self._by_source: OrderedDict[str, CachedPipeline] = OrderedDict()
        self._controlnets: OrderedDict[str, tuple[Any, int]] = OrderedDict()  # with their bytes

    def get(
        self,
        spec: ModelSpec,
        local: LocalModel,
        task: str = "text_to_image",
        preset: str = "quality",
        *,
        torch_only: bool = False,
    ) -> Any:
        """The diffusers pipeline for a task and preset, loaded if needed.

        The tasks of a model share its weights; with a distilled LoRA it counts as another
        model, as it does with `torch_only` if it runs on OpenVINO. Raises ModelCorrupted,
        OutOfMemory, or ModelUnavailable if an add-on of the preset is missing. The cache stays
        usable after a failure.
        """
        if task not in PIPELINE_TASKS:
            raise InvalidInput("task", task, f"one of {', '.join(PIPELINE_TASKS)}")
        source, use_taesd = cache_key(spec, preset), bool(tiny_decoder(preset, spec))
        with self._lock:
            entry = self._by_source.get(source)
            if entry is not None and entry.local != local:
                self.unload(spec)  # another revision of the model
                entry = None
            if torch_only and not self._runs_on_torch(entry, local, preset, spec):
                source = _torch_key(source)
                entry = self._by_source.get(source)
            entry = entry or self._load(spec, local, preset, source)
            self._by_source.move_to_end(source)
            if use_taesd and ("text_to_image", True) not in entry.variants:
                base = entry.variants["text_to_image", False]
                entry.variants["text_to_image", True] = self._with_tiny_decoder(base, spec, tiny_decoder(preset, spec))
            if (task, use_taesd) not in entry.variants:
                base = entry.variants["text_to_image", use_taesd]
                entry.variants[task, use_taesd] = _for_task(base, task, spec)
            return entry.variants[task, use_taesd]

    def make_room(self, size: int, pipeline: Any) -> None:
        """Unload other models until `size` more bytes fit beside that of the pipeline; raises OutOfMemory."""
        with self._lock:
            if size:
                self._evict_until_fits(LazyMessage("IP-Adapter"), size, keep=pipeline)

    def is_loaded(self, spec: ModelSpec, preset: str = "quality", *, torch_only: bool = False) -> bool:
        source = cache_key(spec, preset)
        entry = self._by_source.get(source)
        if torch_only and (entry is None or entry.engine != "torch"):
            return _torch_key(source) in self._by_source
        return entry is not None

    def loaded(self) -> dict[str, int]:
        """Bytes of weights in memory by source, the least recently used first."""
        nets = {name: size for name, (_, size) in self._controlnets.copy().items()}
        return nets | {name: entry.size for name, entry in self._by_source.copy().items()}

    def get_controlnet(self, folder: Path, pipeline: Any) -> Any:
        """The ControlNet in that folder, in the dtype of the pipeline's denoiser; loaded if needed.

        Raises InvalidInput, ModelCorrupted or OutOfMemory.
        """
        denoiser = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
        dtype = getattr(denoiser, "dtype", None) or self.device.torch_dtype
        name = f"controlnet {folder} {dtype}"
        with self._lock:
            if name not in self._controlnets:
                weights = controlnets.weights_of(folder)
                size = loader.estimate_bytes([weights] if weights else [], dtype.itemsize)
                self._evict_until_fits(LazyMessage("ControlNet"), size, keep=pipeline)
                self._controlnets[name] = load_controlnet(folder, dtype, self.device.name), size
            self._controlnets.move_to_end(name)
            return self._controlnets[name][0]

    def unload(self, spec: ModelSpec) -> bool:
        """Unload the model with all its presets; False if it was not loaded."""
        with self._lock:
            keys = {spec.pipeline_key, _distilled_key(spec)}
            keys = (keys | {_torch_key(key) for key in keys}) & set(self._by_source)
            for key in keys:
                del self._by_source[key]
            self._release()
            return bool(keys)

    def clear(self) -> None:
        with self._lock:
            self._by_source.clear()
            self._controlnets.clear()
            self._release()

    def _runs_on_torch(self, entry: CachedPipeline | None, local: LocalModel, preset: str, spec: ModelSpec) -> bool:
        if self._openvino is None:
            return True
        if entry is not None:
            return entry.engine == "torch"
        return self._openvino.prefers_torch(local, lora=distilled_lora(preset, spec))

    def _with_tiny_decoder(self, base: Any, spec: ModelSpec, name: str) -> Any:
        variant = loader.with_tiny_decoder(base, name, hub=self._hub)
        folder = addons.find(name, hub=self._hub)
        if self._openvino and folder is not None and variant is not base:
            self._openvino.adopt_decoder(variant, spec, LocalModel(folder, addons.ADDONS[name].repo_id))
        return variant

    @system_info.without_garbage_collection()
    def _load(self, spec: ModelSpec, local: LocalModel, preset: str, source: str) -> CachedPipeline:
        loader.silence_libraries()  # before any of their modules that warn is imported
        device = loader.device_for(spec, local, self.device)
        plan = self.plan(spec, local)
        self._evict_until_fits(spec.key, plan.weight_bytes)
        lora = distilled_lora(preset, spec)
        changed = plan.quantized or plan.offload != "none"  # torch cannot count packed or absent weights
        openvino = self._openvino if source == cache_key(spec, preset) and not changed else None
        unet = openvino and openvino.find_unet(local, lora=lora)
        try:
            pipeline = loader.load_pipeline(spec, local, device, {"unet": unet} if unet else {}, plan)
            if lora and not unet:
                loader.fuse_distilled_lora(pipeline, lora, hub=self._hub)
        except CanvasError:
            self._release()
            raise
        loader.optimize_for_device(pipeline, device)
        if openvino:
            openvino.adopt(pipeline, spec, local, lora=lora)
        elif self._openvino and not changed:
            add_note(pipeline, TORCH_ONLY_NOTE)
        size = plan.weight_bytes if changed else loader.bytes_in_memory(pipeline)
        entry = CachedPipeline(local, size, {("text_to_image", False): pipeline})
        self._by_source[source] = entry
        return entry

    def plan(self, spec: ModelSpec, local: LocalModel) -> MemoryPlan:
        """How the model would be loaded, if all others were unloaded for it; raises InvalidInput."""
        return memory_plan.plan_local(
            spec,
            local,
            loader.device_for(spec, local, self.device),
            quantization=self._quantization,
            offload=self._offload,
            reclaimable=sum(self.loaded().values()),
        )

    def _evict_until_fits(self, model: str, size: int, keep: Any = None) -> None:
        """Unload ControlNets, then the least recently used models, until `size` more bytes fit.

        The model of the pipeline `keep` stays. Raises OutOfMemory if they do not fit even then.
        """
        while sum(self.loaded().values()) + size > self.memory_budget or size > free_device_memory(self.device):
            cache: OrderedDict[str, Any] = self._controlnets or self._by_source
            name = next((key for key, entry in cache.items() if not _holds(entry, keep)), None)
            if name is None:
                break
            del cache[name]
            logger.info("Unloading %s to make room for %s", name, model)
            self._release()
        free = free_device_memory(self.device)
        if size <= free:
            return
        message = LazyMessage(
            "The model {model} needs {needed} of memory, but only {free} are free. Close other "
            "programs or choose a smaller model.",
            model=model,
            needed=f"{size / 1e9:.1f} GB",
            free=f"{free / 1e9:.1f} GB",
        )
        if self.device.dtype == "float32" and size // 2 <= free:
            message = LazyMessage("{message} With CANVAS_DTYPE=bfloat16 it would fit.", message=message)
        raise OutOfMemory(message)

    def _release(self) -> None:
        system_info.release_memory()
        if self.device.name == "cuda":
            import torch

            torch.cuda.empty_cache()


def _holds(entry: Any, pipeline: Any) -> bool:
    variants = entry.variants.values() if isinstance(entry, CachedPipeline) else ()
    return any(variant is pipeline for variant in variants)


def cache_key(spec: ModelSpec, preset: str) -> str:
    """The key of a model with that preset in `PipelineCache`."""
    return _distilled_key(spec) if uses_distilled_lora(preset, spec) else spec.pipeline_key


def _distilled_key(spec: ModelSpec) -> str:
    return f"{spec.pipeline_key} distilled"


def _torch_key(source: str) -> str:
    return f"{source} torch"


def _for_task(pipeline: Any, task: str, spec: ModelSpec) -> Any:
    import diffusers

    capabilities = capabilities_of(pipeline, spec.name)
    check_task(task, capabilities, spec)
    return loader.with_class(pipeline, getattr(diffusers, capabilities.pipelines[task]))


def default_budget(device: Device) -> int:
    """The default memory budget in bytes: a fraction of the device's memory."""
    fraction = GPU_MEMORY_FRACTION if device.name == "cuda" else CPU_MEMORY_FRACTION
    return int(memory_of(device)[1] * fraction)


def free_device_memory(device: Device) -> int:
    """Free bytes on the device."""
    return memory_of(device)[0]


def check_memory(size: tuple[int, int], spec: ModelSpec, device: Device) -> None:
    """Raise OutOfMemory if an image of that size needs more than the free memory of the CPU.

    There the system kills a process that takes too much. A GPU raises an error by itself, and
    part of the memory that it reports as used is available to torch.
    """
    if device.name != "cpu":
        return
    needed = _decoding_bytes(*size, device)
    free = free_device_memory(device)
    if needed > free:
        message = LazyMessage(
            "{size} needs {needed} of memory, but only {free} are free. {suggestion}",
            size="{}x{}".format(*size),
            needed=f"{needed / 1e9:.2f} GB",
            free=f"{free / 1e9:.2f} GB",
            suggestion=suggest_size(size, spec, device),
        )
        raise OutOfMemory(message)


def suggest_size(size: tuple[int, int], spec: ModelSpec, device: Device) -> LazyMessage:
    """A sentence with the largest smaller size that fits into the free memory."""
    free = free_device_memory(device)
    longer = max(size)
    for side in range(longer - spec.size_step, spec.min_size - 1, -spec.size_step):
        width, height = (max(64, n * side // longer // 8 * 8) for n in size)
        if _decoding_bytes(width, height, device) <= free:
            return LazyMessage("{size} would fit.", size=f"{width}x{height}")
    text = "Only {free} are free. Close other programs or choose a smaller model."
    return LazyMessage(text, free=f"{free / 1e9:.2f} GB")


def _decoding_bytes(width: int, height: int, device: Device) -> int:
    return width * height * BYTES_PER_PIXEL * int(device.torch_dtype.itemsize)
