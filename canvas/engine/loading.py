"""Files to a pipeline on a device: folders, single files, and what is wrong with them."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canvas.engine import conversion, machine, sources
from canvas.engine.attention import use_tiles
from canvas.engine.device import Device
from canvas.errors import HubOffline, ModelBroken, OutOfMemory

if TYPE_CHECKING:
    from canvas.catalog import ModelSpec
    from canvas.engine.downloads import LocalModel

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
# While from_pretrained builds a model without memory it patches torch.nn.Module for the whole
# process, and two at a time leave it patched: every later model would then be without weights.
ONE_AT_A_TIME = threading.Lock()


def load_pipeline(spec: ModelSpec, local: LocalModel, device: Device) -> Any:
    """Open the files as a pipeline on the device; weights are mapped and cast once."""
    from safetensors import SafetensorError

    quieten()
    try:
        with ONE_AT_A_TIME:
            if local.path.is_file():
                pipeline = _from_single_file(spec, local.path, device)
            else:
                copy = conversion.converted(local, device)
                pipeline = _from_folder(spec, copy or local.path, device)
                if copy is None:
                    conversion.keep_converted(pipeline, local, device)
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
    return pipeline


def tune(pipeline: Any, device: Device) -> None:
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


def weight_files(local: LocalModel, device: Device) -> list[Path]:
    """The files that loading the model on that device will read; raises ModelBroken."""
    if local.path.is_file():
        return [local.path]
    folder = conversion.converted(local, device) or local.path
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


def _broken(spec: ModelSpec, path: Path, problem: str) -> ModelBroken:
    first_line = (problem.strip().splitlines() or ["unreadable"])[0]
    first_line = first_line.replace(str(path), spec.public_name)
    return ModelBroken(
        f"The files of the model {spec.key} do not make a pipeline: {first_line[:200]}. "
        f"Remove them and download the model again, or pick another one."
    )


def quieten() -> None:
    """Keep the libraries' bars and hints off the terminal; what matters is raised."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()
        library.set_verbosity_error()
