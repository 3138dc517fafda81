"""Components in int8 (torchao) or GGUF; the int8 copy is kept on disk for the next start."""

from __future__ import annotations

import importlib.util
import inspect
import logging
import shutil
import tempfile
import threading
from importlib.metadata import version
from pathlib import Path
from typing import Any

from canvas.engine.device import Device
from canvas.errors import LazyMessage, ModelUnavailable
from canvas.models import pipeline_files
from canvas.models.capabilities import read_config
from canvas.models.download import LocalModel

logger = logging.getLogger(__name__)

QUANTIZED_DIR = "quantized"
MIN_FREE_BYTES = 2_000_000_000  # that a copy must leave on the disk
COMPLETE = "complete"  # the last file that is written
# from_pretrained builds models on the meta device by patching torch.nn.Module in the whole
# process. Two at a time leave it patched, and every later model would have no weights.
FROM_PRETRAINED_LOCK = threading.Lock()


def is_available() -> bool:
    """Whether torchao is installed."""
    return importlib.util.find_spec("torchao") is not None


def copy_folder(local: LocalModel, component: str, scheme: str, device: Device) -> Path | None:
    """Where the quantized copy of a component is kept: in the model's folder of the Hub cache.

    So it is counted and deleted with the model. None for a model outside of the cache.
    """
    if local.cache_folder is None or not local.path.is_dir():
        return None
    versions = f"torchao-{version('torchao')}-torch-{version('torch').partition('+')[0]}"
    name = f"{local.path.name}-{scheme}-{device.dtype}-{versions}"
    return local.cache_folder / QUANTIZED_DIR / name / component


def load_quantized(local: LocalModel, component: str, scheme: str, device: Device) -> Any:
    """A component in int8: from its copy, or quantized now and saved. Raises what loading raises."""
    copy = copy_folder(local, component, scheme, device)
    if copy is not None and (copy / COMPLETE).exists():
        return _load(local, component, copy, device, None)
    source = local.component(component) or local.path / component
    module = _load(local, component, source, device, scheme)
    if copy is not None:
        _save_copy(module, copy)
    return module


def load_plain(local: LocalModel, component: str, device: Device) -> Any:
    """A component of the model's folder in the dtype of the device."""
    return _load(local, component, local.path / component, device, None, variant=local.variant)


def _load(
    local: LocalModel, component: str, source: Path, device: Device, scheme: str | None, *, variant: str | None = None
) -> Any:
    library, class_name = pipeline_files.read_index(local.path)[component]
    options: dict[str, Any] = {"dtype": device.torch_dtype, "local_files_only": True}
    if variant:
        options["variant"] = variant
    if library == "transformers":
        import transformers

        if scheme:
            options["quantization_config"] = transformers.TorchAoConfig(_torchao_config(scheme))
        if layers := used_encoder_layers(local):
            config = transformers.AutoConfig.from_pretrained(str(source), local_files_only=True)
            config.num_hidden_layers = layers
            if getattr(config, "layer_types", None):
                config.layer_types = config.layer_types[:layers]
            options["config"] = config
        module = getattr(transformers, class_name).from_pretrained(str(source), **options)
    else:
        import diffusers

        model_class = getattr(diffusers, class_name)
        if scheme:
            options["quantization_config"] = diffusers.TorchAoConfig(_torchao_config(scheme))
        if source.is_file():
            module = model_class.from_single_file(str(source), config=str(local.path / component), **options)
        else:
            use_safetensors = None if scheme else True
            module = model_class.from_pretrained(str(source), use_safetensors=use_safetensors, **options)
    return module.eval().requires_grad_(False)


def _torchao_config(scheme: str) -> Any:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig

    return Int8DynamicActivationInt8WeightConfig() if scheme == "int8-dynamic" else Int8WeightOnlyConfig()


def used_encoder_layers(local: LocalModel) -> int | None:
    """How many layers of the text encoder the pipeline reads; None: all.

    FLUX.2-klein reads hidden states up to 27 of 36. transformers normalizes the last one, so one
    layer more is kept than the highest index.
    """
    import diffusers

    name = str(pipeline_files.read_index(local.path).get("_class_name", ""))
    if not name.startswith("Flux2Klein") or not hasattr(diffusers, name):
        return None
    parameters = inspect.signature(getattr(diffusers, name).encode_prompt).parameters
    layers = parameters["text_encoder_out_layers"].default
    config = read_config(local.path / "text_encoder")
    needed = max(layers) + 1
    return needed if needed < int(config.get("num_hidden_layers", 0)) else None


def _save_copy(module: Any, copy: Path) -> None:
    """Save the quantized component; copies of other versions of the libraries are deleted."""
    root = copy.parent.parent
    try:
        root.mkdir(parents=True, exist_ok=True)
        scheme = copy.parent.name.partition("-torchao")[0]
        for old in root.glob(f"{scheme}-torchao*"):
            if old.name != copy.parent.name:
                shutil.rmtree(old)
        needed = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
        if shutil.disk_usage(root).free < needed + MIN_FREE_BYTES:
            logger.warning("Not keeping an int8 copy in %s: disk nearly full", root)
            return
        copy.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root) as folder:
            part = Path(folder) / "part"
            module.save_pretrained(part, safe_serialization=True)
            (part / COMPLETE).touch()
            shutil.rmtree(copy, ignore_errors=True)
            part.rename(copy)
    except OSError as error:  # for example a read-only cache
        logger.warning("Could not keep an int8 copy: %s", error)


def load_component(local: LocalModel, component: str, device: Device) -> Any:
    """A component from another folder or file than the model's: safetensors or GGUF."""
    source = local.component(component)
    assert source is not None  # noqa: S101 - only called for such components
    import diffusers

    model_class = getattr(diffusers, pipeline_files.read_index(local.path)[component][1])
    options: dict[str, Any] = {"dtype": device.torch_dtype, "local_files_only": True}
    if source.is_dir():
        return model_class.from_pretrained(str(source), **options)
    if source.suffix == ".gguf":
        if importlib.util.find_spec("gguf") is None:
            message = LazyMessage("GGUF files need the package gguf. Install it with: pip install torchao gguf")
            raise ModelUnavailable(message)
        # The default of compute_dtype is float32.
        options["quantization_config"] = diffusers.GGUFQuantizationConfig(compute_dtype=device.torch_dtype)
    # Without `config`, diffusers takes every FLUX.2 file for FLUX.2-dev, a gated repository.
    return model_class.from_single_file(str(source), config=str(local.path / component), **options)
