"""The cache of loaded pipelines, kept within a memory budget."""

from __future__ import annotations

import logging
import pickle
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canvas.engine import machine, sources, weights
from canvas.engine.attention import use_tiles
from canvas.engine.device import Device
from canvas.errors import CanvasError, HubOffline, InvalidInput, ModelBroken, OutOfMemory

if TYPE_CHECKING:
    from canvas.catalog import ModelSpec
    from canvas.engine.downloads import LocalModel

logger = logging.getLogger(__name__)

VARIANTS = {
    "image_to_image": "AutoPipelineForImage2Image",
    "inpaint": "AutoPipelineForInpainting",
}
PIPELINE_CLASSES = {
    "stable_diffusion": "StableDiffusionPipeline",
    "stable_diffusion_xl": "StableDiffusionXLPipeline",
    "auto": "AutoPipelineForText2Image",
}
WITHOUT_CHECKER = {
    "safety_checker": None,
    "feature_extractor": None,
    "requires_safety_checker": False,
}
# The rest is for activations, other programs and the file cache.
SHARE_OF_CPU_MEMORY = 0.6
SHARE_OF_GPU_MEMORY = 0.8


@dataclass
class Loaded:
    """A pipeline in memory and those that share its weights, by task."""

    local: LocalModel
    size: int  # bytes
    by_task: dict[str, Any] = field(default_factory=dict)


class PipelineCache:
    """Loaded pipelines by source; the least recently used goes before the next one comes.

    `memory_budget` in bytes counts weights; None takes a share of what the machine has.
    One thread loads at a time; looking (`is_loaded`, `loaded`) never waits.
    """

    def __init__(self, device: Device, memory_budget: int | None = None) -> None:
        self.device = device
        self.memory_budget = memory_budget or default_budget(device)
        self._lock = threading.RLock()
        self._by_source: OrderedDict[str, Loaded] = OrderedDict()

    def get(self, spec: ModelSpec, local: LocalModel, task: str = "text_to_image") -> Any:
        """The diffusers pipeline, loaded if needed; raises ModelBroken or OutOfMemory.

        A failed load leaves the cache usable. The tasks of one model share its weights.
        """
        if task != "text_to_image" and task not in VARIANTS:
            raise InvalidInput("task", task, f"text_to_image, {', '.join(VARIANTS)}")
        with self._lock:
            entry = self._by_source.get(spec.name)
            if entry is not None and entry.local != local:
                self.free(spec)  # another revision of the same model
                entry = None
            entry = entry or self._load(spec, local)
            self._by_source.move_to_end(spec.name)
            if task not in entry.by_task:
                entry.by_task[task] = _variant(entry.by_task["text_to_image"], task, spec)
            return entry.by_task[task]

    def is_loaded(self, spec: ModelSpec) -> bool:
        """Whether the model can be used without loading."""
        return spec.name in self._by_source

    def loaded(self) -> dict[str, int]:
        """Bytes of weights in memory by the model's source, the least recently used first."""
        return {name: entry.size for name, entry in self._by_source.copy().items()}

    def free(self, spec: ModelSpec) -> bool:
        """Let the model go; False if it was not loaded."""
        with self._lock:
            found = self._by_source.pop(spec.name, None) is not None
            self._release()
            return found

    def clear(self) -> None:
        """Let all models go."""
        with self._lock:
            self._by_source.clear()
            self._release()

    def _load(self, spec: ModelSpec, local: LocalModel) -> Loaded:
        files = [local.path] if local.path.is_file() else _files(local.path, self.device)
        size = weights.estimate_bytes(files, self.device.torch_dtype.itemsize)
        self._make_room(spec, size)
        try:
            pipeline = load_pipeline(spec, local, self.device)
        except CanvasError:
            self._release()
            raise
        entry = Loaded(local, weights.bytes_in_memory(pipeline), {"text_to_image": pipeline})
        self._by_source[spec.name] = entry
        return entry

    def _make_room(self, spec: ModelSpec, size: int) -> None:
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
                f"{free / 1e9:.1f} GB are free{also}. Close other programs or pick a smaller model."
            )

    def _release(self) -> None:
        machine.release_memory()
        if self.device.name == "cuda":
            import torch

            torch.cuda.empty_cache()


def default_budget(device: Device) -> int:
    """Bytes for weights: a share of the memory that the device really has."""
    if device.name == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[1] * SHARE_OF_GPU_MEMORY)
    return int(machine.total_memory() * SHARE_OF_CPU_MEMORY)


def free_device_memory(device: Device) -> int:
    """Bytes that can be had on the device now."""
    if device.name == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[0])
    return machine.free_memory()


def load_pipeline(spec: ModelSpec, local: LocalModel, device: Device) -> Any:
    """Open the files as a pipeline on the device; weights are mapped and cast once."""
    from safetensors import SafetensorError

    _quieten()
    try:
        if local.path.is_file():
            pipeline = _from_single_file(spec, local.path, device)
        else:
            pipeline = _from_folder(spec, local.path, device)
        pipeline = pipeline.to(device.name)
    except (
        *(OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError),
        *(ImportError, EOFError, MemoryError, pickle.UnpicklingError, SafetensorError),
    ) as error:
        if machine.is_out_of_memory(error):
            raise OutOfMemory(
                f"The model {spec.key} does not fit into the memory of {device.name}. "
                "Close other programs or pick a smaller model."
            ) from error
        raise _broken(spec, local.path, str(error)) from error
    pipeline.set_progress_bar_config(disable=True)
    _tune(pipeline, device)
    return pipeline


def _tune(pipeline: Any, device: Device) -> None:
    """Lay out weights and choose kernels as this device is fastest with them."""
    import torch

    if device.dtype == "float32":
        return  # nothing to gain there
    for name in ("unet", "vae"):
        if part := getattr(pipeline, name, None):
            part.to(memory_format=torch.channels_last)
    use_tiles(pipeline)


def _selection(folder: Path, device: Device) -> sources.Selection:
    return sources.selection_in(folder, half_precision=device.dtype != "float32")


def _files(folder: Path, device: Device) -> list[Path]:
    return [folder / name for name in _selection(folder, device).files]


def _from_folder(spec: ModelSpec, folder: Path, device: Device) -> Any:
    import diffusers

    index = sources.read_index(folder)
    edition = _selection(folder, device).edition
    options: dict[str, Any] = {
        "dtype": device.torch_dtype,
        "local_files_only": True,
        "variant": edition.variant,
        "use_safetensors": edition.format == "safetensors",
    }
    options |= {name: value for name, value in WITHOUT_CHECKER.items() if name in index}
    return getattr(diffusers, PIPELINE_CLASSES[spec.type]).from_pretrained(str(folder), **options)


def _from_single_file(spec: ModelSpec, path: Path, device: Device) -> Any:
    """Open one file in the layout of the original authors.

    The configuration comes from the folder of the same name beside it, if there is one,
    else diffusers fetches a few small files for the architecture that it recognises.
    """
    import diffusers

    sources.check_single_file(path)
    if spec.type == "auto":
        raise _broken(spec, path, "a single file needs its type: stable_diffusion or ..._xl")
    options: dict[str, Any] = {"dtype": device.torch_dtype}
    config = path.with_suffix("")
    if config.is_dir():
        options |= {"config": str(config), "local_files_only": True}
    if spec.type == "stable_diffusion":
        options |= WITHOUT_CHECKER
    pipeline_class = getattr(diffusers, PIPELINE_CLASSES[spec.type])
    try:
        return pipeline_class.from_single_file(str(path), **options)
    except OSError as error:
        if config.is_dir() or not path.exists():
            raise
        raise HubOffline(
            f"{path.name} holds weights only and the configuration for it could not be fetched. "
            f"Connect to the internet once, or put a folder {config.name} with the pipeline's "
            "configuration files beside it."
        ) from error


def _variant(pipeline: Any, task: str, spec: ModelSpec) -> Any:
    import diffusers

    try:
        variant = getattr(diffusers, VARIANTS[task]).from_pipe(pipeline)
    except ValueError as error:
        raise InvalidInput("task", task, f"text_to_image with the model {spec.key}") from error
    variant.set_progress_bar_config(disable=True)
    return variant


def _broken(spec: ModelSpec, path: Path, problem: str) -> ModelBroken:
    first_line = (problem.strip().splitlines() or ["unreadable"])[0].replace(str(path), spec.name)
    return ModelBroken(
        f"The files of the model {spec.key} do not make a pipeline: {first_line[:200]}. "
        f"Remove them and download the model again, or pick another one."
    )


def _quieten() -> None:
    """Keep the libraries' bars and hints off the terminal; what matters is raised."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()
        library.set_verbosity_error()
