"""Loads model files as diffusers pipelines: folders, single files and add-ons, placed as the memory plan says."""

from __future__ import annotations

import importlib
import inspect
import logging
import math
import pickle
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from canvas.catalog import ModelSpec
from canvas.engine import encode_first, quantization, system_info
from canvas.engine.bin_weights import replace_bin_weights
from canvas.engine.device import Device, has_bfloat16
from canvas.engine.lora_adapters import check_compatible
from canvas.engine.optimizations.cpu_attention import enable_chunked_attention
from canvas.engine.quantization import FROM_PRETRAINED_LOCK
from canvas.errors import InvalidInput, LazyMessage, ModelCorrupted, ModelUnavailable, OutOfMemory
from canvas.models import addons, pipeline_files, single_file
from canvas.models.capabilities import read_folder
from canvas.models.download import LocalModel
from canvas.models.hub_client import Hub
from canvas.models.loras import read_lora
from canvas.presets import DISTILLED_LORA

if TYPE_CHECKING:
    from canvas.engine.memory_plan import MemoryPlan

logger = logging.getLogger(__name__)
NO_SAFETY_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
NOTE_ATTRIBUTE = "_memory_note"
EMBEDDINGS_DIR = "prompt_embeds"
DENOISER, ENCODER = "transformer", "text_encoder"


def load_pipeline(
    spec: ModelSpec,
    local: LocalModel,
    device: Device,
    components: Mapping[str, Any] = MappingProxyType({}),
    plan: MemoryPlan | None = None,
) -> Any:
    """Load the model's text-to-image pipeline in the dtype of the device and move it there.

    The `components` are used instead of those in the files; `plan` says how all is loaded.

    Raises ModelCorrupted, OutOfMemory or HubOffline.
    """
    from safetensors import SafetensorError

    try:
        with FROM_PRETRAINED_LOCK:
            if plan is not None:
                components = {**planned_components(local, device, plan), **components}
            if local.path.is_file():
                pipeline = _from_single_file(spec, local.path, device, components)
            else:
                replace_bin_weights(local)
                pipeline = _from_folder(spec, local.path, device, components)
        pipeline = place(pipeline, local, device, plan) if plan else pipeline.to(device.name)
    except (
        *(OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError),
        *(ImportError, EOFError, MemoryError, pickle.UnpicklingError, SafetensorError),
    ) as error:
        if system_info.is_out_of_memory(error):
            message = LazyMessage(
                "The model {model} does not fit into the memory of the device {device}. Close "
                "other programs or choose a smaller model.",
                model=spec.key,
                device=device.name,
            )
            raise OutOfMemory(message) from error
        raise _load_error(spec, error) from error
    _freeze(pipeline)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _freeze(pipeline: Any) -> None:
    """Let no parameter require a gradient.

    torch multiplies in another order for those that do, and peft freezes them when it loads a
    LoRA: the images before and after would differ.
    """
    import torch

    for module in pipeline.components.values():
        if isinstance(module, torch.nn.Module):
            module.requires_grad_(False)


def _from_folder(spec: ModelSpec, folder: Path, device: Device, components: Mapping[str, Any]) -> Any:
    import diffusers

    index = pipeline_files.read_index(folder)
    selection = _selection(folder, device, without=components)
    weights = selection.weights
    options: dict[str, Any] = {
        "dtype": device.torch_dtype,
        "local_files_only": True,
        "variant": weights.variant,
        "use_safetensors": weights.format == "safetensors",
    }
    options |= {name: value for name, value in NO_SAFETY_CHECKER.items() if name in index}
    for name, variant in selection.exceptions.items():
        options[name] = _load_component(folder / name, index[name], variant, device)
    options |= components
    capabilities = read_folder(folder, spec.name)
    return getattr(diffusers, capabilities.family.text_to_image).from_pretrained(str(folder), **options)


def _load_component(folder: Path, origin: Sequence[str], variant: pipeline_files.WeightVariant, device: Device) -> Any:
    """A component in another variant than the rest: from_pretrained takes only one for all."""
    library = importlib.import_module(origin[0])
    return getattr(library, origin[1]).from_pretrained(
        str(folder),
        dtype=device.torch_dtype,
        variant=variant.variant,
        use_safetensors=variant.format == "safetensors",
        local_files_only=True,
    )


def device_for(spec: ModelSpec, local: LocalModel, device: Device) -> Device:
    """The device with a dtype in which the model gives images.

    Z-Image, for example, gives black ones in float16. Raises ModelUnsupported.
    """
    dtype = single_file.read_local(local.path, spec.name).choose_dtype(device.dtype, has_bfloat16=has_bfloat16(device))
    return device if dtype == device.dtype else replace(device, dtype=dtype)


def _selection(folder: Path, device: Device, without: Collection[str] = ()) -> pipeline_files.FileSelection:
    half_precision = device.dtype != "float32"
    return pipeline_files.select_local_files(folder, half_precision=half_precision, without=without)


def _from_single_file(spec: ModelSpec, path: Path, device: Device, components: Mapping[str, Any]) -> Any:
    """Load a single file in the layout of the original authors; asks no server.

    The configuration is in the folder of the same name beside it, if there is one; otherwise it
    is read from the keys.
    """
    import diffusers

    pipeline_files.check_single_file(path)
    beside = path.with_suffix("")
    with tempfile.TemporaryDirectory() as temporary:
        config = beside
        if not beside.is_dir():
            config = Path(temporary)
            single_file.write_config_folder(single_file.read_configs(path), config)
        capabilities = read_folder(config, spec.name)
        index = pipeline_files.read_index(config)
        options: dict[str, Any] = {name: value for name, value in NO_SAFETY_CHECKER.items() if name in index}
        options |= {"dtype": device.torch_dtype, "config": str(config), "local_files_only": True, **components}
        pipeline_class = getattr(diffusers, capabilities.family.text_to_image)
        return pipeline_class.from_single_file(str(path), **options)


def _load_error(spec: ModelSpec, error: Exception) -> ModelCorrupted:
    """The error for the user; the library's own words go to the log."""
    logger.warning("%s cannot be loaded: %s: %s", spec.key, type(error).__name__, error)
    if spec.is_local:
        text = (
            "The files of the model {model} cannot be loaded. Replace {name} with an intact copy, or choose another "
            "model."
        )
        return ModelCorrupted(LazyMessage(text, model=spec.key, name=spec.public_name))
    text = (
        "The files of the model {model} cannot be loaded. Remove the model and download it again, or choose another "
        "model."
    )
    return ModelCorrupted(LazyMessage(text, model=spec.key))


def optimize_for_device(pipeline: Any, device: Device) -> None:
    """Select the memory layout and the attention processor that are fastest on the device."""
    import torch

    if device.dtype == "float32":
        return
    for name in ("unet", "vae"):
        module = getattr(pipeline, name, None)
        # Video VAEs, such as Qwen-Image's, have convolutions in three dimensions.
        if module is not None and all(parameter.ndim != 5 for parameter in module.parameters()):
            module.to(memory_format=torch.channels_last)
    enable_chunked_attention(pipeline)


def silence_libraries() -> None:
    """Turn off the libraries' progress bars and warnings; errors are raised."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for name in ("torchao", "torch.utils._pytree"):  # which warn while they are imported
        logging.getLogger(name).setLevel(logging.ERROR)
    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()
        library.set_verbosity_error()


def weight_files(local: LocalModel, device: Device) -> list[Path]:
    """The files that loading the model on the device will read; raises ModelCorrupted."""
    if local.path.is_file():
        return [local.path]
    return [local.path / name for name in _selection(local.path, device, dict(local.components)).files]


def estimate_bytes(files: list[Path], itemsize: int) -> int:
    """Memory that the weights in the files take, with `itemsize` bytes per number.

    Exact for safetensors, the file size for `.bin`. Unreadable files count 0: loading them
    raises the error.
    """
    return sum(_estimate_file(file, itemsize) for file in files)


def _estimate_file(path: Path, itemsize: int) -> int:
    if path.suffix == ".bin":
        return path.stat().st_size
    if path.suffix != ".safetensors":
        return 0
    try:
        header = pipeline_files.read_safetensors_header(path)
        return sum(math.prod(tensor["shape"]) * itemsize for name, tensor in header.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def bytes_in_memory(pipeline: Any) -> int:
    """Bytes of all parameters, buffers and OpenVINO graphs of a pipeline; shared ones count once."""
    import torch

    parts = (getattr(pipeline, "unet", None), getattr(getattr(pipeline, "vae", None), "decoder", None))
    graphs = sum(int(vars(part).get("num_bytes", 0)) for part in parts if part is not None)
    tensors = {
        tensor.data_ptr(): tensor.nbytes
        for module in pipeline.components.values()
        if isinstance(module, torch.nn.Module)
        for tensor in (*module.parameters(), *module.buffers())
    }
    return sum(tensors.values()) + graphs


def fuse_distilled_lora(pipeline: Any, name: str = DISTILLED_LORA, *, hub: Hub | None = None) -> None:
    """Fuse the few-step LoRA into the UNet, so that it takes no time per step."""
    path = _require_addon(name, hub) / addons.ADDONS[name].files[0]
    try:
        check_compatible(read_lora(path), pipeline)
    except InvalidInput as error:
        text = "The few-step weights do not fit this model ({reason}). Choose another preset."
        raise ModelUnavailable(LazyMessage(text, reason=error.args[0])) from error
    pipeline.load_lora_weights(str(path.parent), weight_name=path.name, local_files_only=True)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()


def with_tiny_decoder(pipeline: Any, name: str = addons.TAESD, *, hub: Hub | None = None) -> Any:
    """A pipeline with the same components, but a small VAE: TAESD or the one of SDXL."""
    from diffusers import AutoencoderTiny

    if isinstance(pipeline.vae, AutoencoderTiny):
        return pipeline
    folder = _require_addon(name, hub)
    with FROM_PRETRAINED_LOCK:
        vae = AutoencoderTiny.from_pretrained(str(folder), dtype=pipeline.vae.dtype, local_files_only=True)
    return with_class(pipeline, type(pipeline), vae=vae.to(pipeline.device))


def with_class(pipeline: Any, pipeline_class: Any, **components: Any) -> Any:
    """A pipeline of that class with the same components, except for those that are given.

    diffusers' own `from_pipe` rejects components of other classes than usual, such as AutoencoderTiny.
    """
    known = inspect.signature(pipeline_class).parameters
    values = {**pipeline.config, **pipeline.components, **components}
    variant = pipeline_class(**{name: value for name, value in values.items() if name in known})
    variant.set_progress_bar_config(disable=True)
    return variant


def _require_addon(name: str, hub: Hub | None) -> Path:
    folder = addons.find(name, hub=hub)
    if folder is None:
        addon = addons.ADDONS[name]
        message = LazyMessage(
            "The preset Turbo needs {repo_id} ({size} MB), which is not downloaded. Connect to the "
            "internet once, or choose Balanced.",
            repo_id=addon.repo_id,
            size=f"{addon.size / 1e6:.0f}",
        )
        raise ModelUnavailable(message)
    return folder


def planned_components(local: LocalModel, device: Device, plan: MemoryPlan) -> dict[str, Any]:
    """The components that `from_pretrained` does not load itself; None for those that come later."""
    components: dict[str, Any] = {
        name: quantization.load_component(local, name, device)
        for name, _ in local.components
        if plan.offload != "encode-first" or name != DENOISER
    }
    if plan.offload == "encode-first":
        return components | {DENOISER: None, ENCODER: None}
    for name in plan.quantized:
        components[name] = quantization.load_quantized(local, name, plan.quantization, device)
    return components


def place(pipeline: Any, local: LocalModel, device: Device, plan: MemoryPlan) -> Any:
    """Move a loaded pipeline to the device as planned."""
    if plan.offload == "model":
        pipeline.enable_model_cpu_offload(device=device.name)
    elif plan.offload == "group":
        import torch

        pipeline.enable_group_offload(
            onload_device=torch.device(device.name),
            offload_device=torch.device("cpu"),
            offload_type="leaf_level",
            use_stream=True,
        )
    else:
        pipeline = pipeline.to(device.name)
    if plan.offload == "encode-first":
        encode_first.attach(pipeline, _encode_first(local, device, plan))
    vae = getattr(pipeline, "vae", None)
    # Not AutoencoderTiny, whose tiles fit only a scale of 8 and four latent channels.
    if plan.tiling and vae is not None and type(vae).__name__ != "AutoencoderTiny" and hasattr(vae, "enable_tiling"):
        vae.enable_tiling()
    if vae is not None and plan.note:
        vars(vae)[NOTE_ATTRIBUTE] = plan.note
    return pipeline


def plan_note(pipeline: Any) -> str:
    """What the memory plan of the pipeline changes, for the record of an image."""
    vae = getattr(pipeline, "vae", None)
    return str(vars(vae).get(NOTE_ATTRIBUTE, "")) if vae is not None else ""


def _encode_first(local: LocalModel, device: Device, plan: MemoryPlan) -> encode_first.EncodeFirst:
    def load(component: str) -> Any:
        with FROM_PRETRAINED_LOCK:
            if component in plan.quantized:
                module = quantization.load_quantized(local, component, plan.quantization, device)
            elif local.component(component) is not None:
                module = quantization.load_component(local, component, device)
            else:
                module = quantization.load_plain(local, component, device)
        return module.to(device.name)

    scheme = plan.quantization if ENCODER in plan.quantized else "none"
    name = f"{local.path.name}-{scheme}-{device.dtype}"
    cache = local.cache_folder and local.cache_folder / EMBEDDINGS_DIR / name
    return encode_first.EncodeFirst(partial(load, ENCODER), partial(load, DENOISER), cache=cache)
