"""Files to a pipeline on a device: folders, single files, and what is wrong with them."""

from __future__ import annotations

import json
import logging
import math
import pickle
import shutil
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canvas.catalog import ModelSpec
from canvas.engine import system_info
from canvas.engine.device import Device
from canvas.engine.lora_adapters import check_compatible
from canvas.engine.optimizations.cpu_attention import enable_chunked_attention
from canvas.errors import HubOffline, InvalidInput, ModelCorrupted, ModelUnavailable, OutOfMemory
from canvas.models import pipeline_files
from canvas.models.addons import ADDONS, TAESD
from canvas.models.addons import find as find_addon
from canvas.models.hub_client import Hub
from canvas.models.loras import read_lora
from canvas.presets import DISTILLED_LORA

if TYPE_CHECKING:
    from canvas.catalog import ModelSpec
    from canvas.engine.device import Device
    from canvas.models.download import LocalModel


def estimate_bytes(files: list[Path], itemsize: int) -> int:
    """Bytes that the weights in those files take in memory with `itemsize` bytes a number.

    Safetensors tell their exact count; of other files the size on disk is taken. What
    cannot be read counts nothing: loading it will say what is wrong.
    """
    return sum(_estimate_file(file, itemsize) for file in files)


def bytes_in_memory(pipeline: Any) -> int:
    """Bytes of all parameters and buffers of a pipeline, shared ones counted once."""
    import torch

    tensors = {
        tensor.data_ptr(): tensor.nbytes
        for part in pipeline.components.values()
        if isinstance(part, torch.nn.Module)
        for tensor in (*part.parameters(), *part.buffers())
    }
    return sum(tensors.values())


def _estimate_file(path: Path, itemsize: int) -> int:
    if path.suffix == ".bin":
        return path.stat().st_size
    if path.suffix != ".safetensors":
        return 0
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, path.stat().st_size)))
        return sum(
            math.prod(tensor["shape"]) * itemsize
            for name, tensor in header.items()
            if name != "__metadata__"
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 0


logger = logging.getLogger(__name__)

CONVERTED_DIR = "converted"
MIN_FREE_BYTES = 2_000_000_000  # bytes that a copy may not take from the disk


def find_converted(local: LocalModel, device: Device) -> Path | None:
    """The copy of a model of the Hub in the dtype of the device, where it is whole."""
    folder = _converted_path(local, device)
    if folder is None or not pipeline_files.is_complete(folder):
        return None
    try:
        for weights in folder.glob("*/*.safetensors"):
            pipeline_files.check_single_file(weights)
    except ModelCorrupted as error:  # the machine lost power while it was written, say
        logger.warning("The copy is made anew: %s", error)
        shutil.rmtree(folder)
        return None
    return folder


def save_converted(pipeline: Any, local: LocalModel, device: Device) -> bool:
    """Write a pipeline that was read from `.bin` files as safetensors; whether it was done.

    The copy lies in the repository's own folder of the Hub's cache, so it is counted and
    deleted with it. Models in folders of the user's own are left as they are.
    """
    target = _converted_path(local, device)
    if target is None or pipeline_files.selection_in(local.path).edition.format != "bin":
        return False
    try:
        target.parent.mkdir(exist_ok=True)
        needed = sum(path.stat().st_size for path in local.path.glob("*/*.bin"))
        if shutil.disk_usage(target.parent).free < needed + MIN_FREE_BYTES:
            logger.warning("%s stays in .bin files: the disk is nearly full.", local.repo_id)
            return False
        _write(pipeline, target)
    except OSError as error:  # a cache that only others may write to, say; the model works
        logger.warning("%s stays in .bin files: %s", local.repo_id, error)
        return False
    return True


def _write(pipeline: Any, target: Path) -> None:
    """All of it at once: no half copy stands under its final name."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / "made"
        pipeline.save_pretrained(made, safe_serialization=True)
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)


def _converted_path(local: LocalModel, device: Device) -> Path | None:
    """`models--…/converted/REVISION-DTYPE`, beside `models--…/snapshots/REVISION`."""
    if local.path.parent.name != "snapshots" or not local.path.is_dir():
        return None
    return local.path.parent.parent / CONVERTED_DIR / f"{local.path.name}-{device.dtype}"


PIPELINE_CLASSES = {
    "stable_diffusion": "StableDiffusionPipeline",
    "stable_diffusion_xl": "StableDiffusionXLPipeline",
    "auto": "AutoPipelineForText2Image",
}
NO_SAFETY_CHECKER = {
    "safety_checker": None,
    "feature_extractor": None,
    "requires_safety_checker": False,
}
# While from_pretrained builds a model without memory it patches torch.nn.Module for the whole
# process, and two at a time leave it patched: every later model would then be without weights.
FROM_PRETRAINED_LOCK = threading.Lock()


def load_pipeline(spec: ModelSpec, local: LocalModel, device: Device) -> Any:
    """Open the files as a pipeline on the device; weights are mapped and cast once."""
    from safetensors import SafetensorError

    silence_libraries()
    try:
        with FROM_PRETRAINED_LOCK:
            if local.path.is_file():
                pipeline = _from_single_file(spec, local.path, device)
            else:
                copy = find_converted(local, device)
                pipeline = _from_folder(spec, copy or local.path, device)
                if copy is None:
                    save_converted(pipeline, local, device)
        pipeline = pipeline.to(device.name)
    except (
        *(OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError),
        *(ImportError, EOFError, MemoryError, pickle.UnpicklingError, SafetensorError),
    ) as error:
        if system_info.is_out_of_memory(error):
            raise OutOfMemory(
                f"The model {spec.key} does not fit into the memory of {device.name}. "
                "Close other programs or pick a smaller model."
            ) from error
        raise _load_error(spec, local.path, str(error)) from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def optimize_for_device(pipeline: Any, device: Device) -> None:
    """Lay out weights and choose kernels as this device is fastest with them."""
    import torch

    if device.dtype == "float32":
        return  # nothing to gain there
    for name in ("unet", "vae"):
        if part := getattr(pipeline, name, None):
            part.to(memory_format=torch.channels_last)
    enable_chunked_attention(pipeline)


def _selection(folder: Path, device: Device) -> pipeline_files.FileSelection:
    return pipeline_files.selection_in(folder, half_precision=device.dtype != "float32")


def weight_files(local: LocalModel, device: Device) -> list[Path]:
    """The files that loading the model on that device will read; raises ModelBroken."""
    if local.path.is_file():
        return [local.path]
    folder = find_converted(local, device) or local.path
    return [folder / name for name in _selection(folder, device).files]


def _from_folder(spec: ModelSpec, folder: Path, device: Device) -> Any:
    import diffusers

    index = pipeline_files.read_index(folder)
    edition = _selection(folder, device).edition
    options: dict[str, Any] = {
        "dtype": device.torch_dtype,
        "local_files_only": True,
        "variant": edition.variant,
        "use_safetensors": edition.format == "safetensors",
    }
    options |= {name: value for name, value in NO_SAFETY_CHECKER.items() if name in index}
    return getattr(diffusers, PIPELINE_CLASSES[spec.type]).from_pretrained(str(folder), **options)


def _from_single_file(spec: ModelSpec, path: Path, device: Device) -> Any:
    """Open one file in the layout of the original authors.

    The configuration comes from the folder of the same name beside it, if there is one,
    else diffusers fetches a few small files for the architecture that it recognises.
    """
    import diffusers

    pipeline_files.check_single_file(path)
    if spec.type == "auto":
        raise _load_error(spec, path, "a single file needs its type: stable_diffusion or ..._xl")
    options: dict[str, Any] = {"dtype": device.torch_dtype}
    config = path.with_suffix("")
    if config.is_dir():
        options |= {"config": str(config), "local_files_only": True}
    if spec.type == "stable_diffusion":
        options |= NO_SAFETY_CHECKER
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


def _load_error(spec: ModelSpec, path: Path, problem: str) -> ModelCorrupted:
    first_line = (problem.strip().splitlines() or ["unreadable"])[0]
    first_line = first_line.replace(str(path), spec.public_name)
    return ModelCorrupted(
        f"The files of the model {spec.key} do not make a pipeline: {first_line[:200]}. "
        f"Remove them and download the model again, or pick another one."
    )


def silence_libraries() -> None:
    """Keep the libraries' bars and hints off the terminal; what matters is raised."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()
        library.set_verbosity_error()


def fuse_distilled_lora(pipeline: Any, *, hub: Hub | None = None) -> None:
    """Add the few-step LoRA to the UNet for good: it then costs nothing a step."""
    path = _require_addon(DISTILLED_LORA, hub) / ADDONS[DISTILLED_LORA].files[0]
    try:
        check_compatible(read_lora(path), pipeline)
    except InvalidInput as error:
        raise ModelUnavailable(f"This model has no fast weights: {error}") from error
    pipeline.load_lora_weights(str(path.parent), weight_name=path.name, local_files_only=True)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()


def with_taesd(pipeline: Any, *, hub: Hub | None = None) -> Any:
    """A pipeline of the same parts with the tiny decoder in place of its own."""
    from diffusers import AutoencoderTiny

    if isinstance(pipeline.vae, AutoencoderTiny):
        return pipeline
    folder = _require_addon(TAESD, hub)
    with FROM_PRETRAINED_LOCK:
        decoder = AutoencoderTiny.from_pretrained(
            str(folder), dtype=pipeline.vae.dtype, local_files_only=True
        )
    parts = {**pipeline.components, "vae": decoder.to(pipeline.device)}
    quick = type(pipeline)(**parts, requires_safety_checker=False)
    quick.set_progress_bar_config(disable=True)
    return quick


def _require_addon(name: str, hub: Hub | None) -> Path:
    folder = find_addon(name, hub=hub)
    if folder is None:
        extra = ADDONS[name]
        raise ModelUnavailable(
            f"Turbo needs {extra.label} ({extra.size / 1e6:.0f} MB from {extra.repo_id}), which "
            "are not on this disk yet. Connect to the internet once, or pick Balanced."
        )
    return folder
