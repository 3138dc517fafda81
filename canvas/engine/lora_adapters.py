"""Applies LoRAs to a loaded pipeline."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from canvas.engine import encode_first
from canvas.engine.lora_conversion import read_tensors, to_lora
from canvas.errors import InvalidInput, LazyMessage
from canvas.models.families import BY_CLASS
from canvas.models.lora_formats import (
    DOWN_WEIGHT,
    LABELS,
    UNET_FAMILIES,
    UNET_PREFIXES,
    is_cross_attention,
    unet_tensors,
)
from canvas.models.loras import Lora
from canvas.prompt_syntax import LoraWeight

log = logging.getLogger(__name__)

# Families whose LoRAs have the same layers
SAME_LAYERS = {"flux", "chroma"}
# Names in the layout of the original SDXL code; diffusers converts them when it loads the file.
ORIGINAL_LAYOUT = re.compile(r"(input_blocks|output_blocks|middle_block)[._]")


@contextmanager
def applied_loras(pipeline: Any, loras: Sequence[tuple[Lora, LoraWeight | float]]) -> Iterator[None]:
    """Apply the LoRAs with their weights inside the block, sorted by name; weights of the same LoRA add up.

    Adapters that are already active stay. Raises InvalidInput for a LoRA that does not fit,
    naming its tensors and base model.
    """
    selected = _merged(loras)
    if not selected:
        yield
        return
    if deferred := encode_first.attached(pipeline):
        deferred.load_denoiser(pipeline)
    for lora, _ in selected:
        check_compatible(lora, pipeline)
    before = list(pipeline.get_active_adapters())
    names: list[str] = []
    try:
        for lora, _ in selected:
            names.append(_adapter_name(lora))
            _load(pipeline, lora, names[-1])
        weights = [_component_weights(pipeline, weight) for _, weight in selected]
        pipeline.set_adapters([*before, *names], [1.0] * len(before) + weights)
        yield
    finally:
        if before:
            pipeline.delete_adapters(names)
            pipeline.set_adapters(before)
        else:
            pipeline.unload_lora_weights()


def _merged(loras: Sequence[tuple[Lora, LoraWeight | float]]) -> list[tuple[Lora, LoraWeight]]:
    merged: dict[Path, tuple[Lora, LoraWeight]] = {}
    for lora, given in loras:
        weight = given if isinstance(given, LoraWeight) else LoraWeight(given, given)
        _, earlier = merged.get(lora.path, (lora, LoraWeight(0, 0)))
        merged[lora.path] = (lora, earlier + weight)
    return sorted(((lora, weight) for lora, weight in merged.values() if weight), key=lambda item: item[0].name)


def _component_weights(pipeline: Any, weight: LoraWeight) -> float | dict[str, float]:
    """The weights as `set_adapters` takes them: by component if they differ."""
    if weight.model == weight.text_encoder:
        return weight.model
    names = [name for name in pipeline._lora_loadable_modules if getattr(pipeline, name, None) is not None]
    return {name: weight.text_encoder if name.startswith("text_encoder") else weight.model for name in names}


def check_compatible(lora: Lora, pipeline: Any) -> None:
    """Raise InvalidInput if the pipeline is of another family, or has no layers of the shapes in the LoRA."""
    family = pipeline_family(pipeline)
    if not hasattr(pipeline, "load_lora_weights") or not (family or hasattr(pipeline, "unet")):
        text = "This model takes no LoRAs. Choose another model, or remove {name}."
        raise InvalidInput("loras", lora.name, message=LazyMessage(text, name=lora.name))
    if lora.family and family and lora.family != family and not {lora.family, family} <= SAME_LAYERS:
        raise _mismatch(lora, LazyMessage("it is of another family"), family)
    unet = getattr(pipeline, "unet", None)
    if unet is not None and (tensors := _incompatible_tensors(lora, unet)):
        raise _mismatch(lora, _shorten(tensors), family)


def pipeline_family(pipeline: Any) -> str:
    """The family of LoRAs for a pipeline, a key of `lora_formats.LABELS`; "" if unknown."""
    known = BY_CLASS.get(type(pipeline).__name__)
    key = known.key if known and known.lora else ""
    if key in ("stable_diffusion", "lcm"):
        return UNET_FAMILIES.get(pipeline.unet.config.cross_attention_dim, "")
    return key


def _shorten(tensors: Sequence[str]) -> str:
    return ", ".join(tensors[:3]) + (f" and {len(tensors) - 3} more" if tensors[3:] else "")


def _mismatch(lora: Lora, reason: str, family: str = "") -> InvalidInput:
    message = LazyMessage(
        "The LoRA {lora}, made for {base_model}, does not fit this model ({reason}). Choose a LoRA for {family}.",
        lora=lora.name,
        base_model=lora.base_model or LazyMessage("an unknown base model"),
        reason=reason,
        family=LABELS.get(family) or LazyMessage("this model"),
    )
    return InvalidInput("loras", lora.name, message=message)


def _incompatible_tensors(lora: Lora, unet: Any) -> list[str]:
    layers = {
        name.replace(".", "_"): module.weight.shape
        for name, module in unet.named_modules()
        if getattr(module, "weight", None) is not None
    }
    incompatible = []
    for name, shape in unet_tensors(lora.shapes).items():
        layer = layers.get(_layer_name(name))
        if ORIGINAL_LAYOUT.search(name):
            fits = not is_cross_attention(name) or shape[1] == unet.config.cross_attention_dim
        else:
            fits = layer is not None and layer[1] == shape[1]
        if not fits:
            incompatible.append(f"{name} {list(shape)}")
    return incompatible


def _layer_name(tensor: str) -> str:
    for prefix in UNET_PREFIXES:
        tensor = tensor.removeprefix(prefix)
    name = DOWN_WEIGHT.sub("", tensor).replace(".processor.", ".").replace(".", "_")
    # The oldest files name attention layers by role, with a suffix that diffusers translates.
    return re.sub(r"(to_[qkv])_lora$", r"\1", re.sub(r"to_out_lora$", "to_out_0", name))


def _adapter_name(lora: Lora) -> str:
    # Without dots, which torch forbids in module names; another name for a changed file.
    stat = lora.path.stat()
    return "lora_" + hashlib.sha256(f"{lora.path} {stat.st_mtime_ns} {stat.st_size}".encode()).hexdigest()[:16]


def _load(pipeline: Any, lora: Lora, name: str) -> None:
    tensors = read_tensors(lora.path, lora.name)
    model = getattr(pipeline, "unet", None) or pipeline.transformer
    layers = {each.replace(".", "_"): module for each, module in model.named_modules()}
    # FLUX.2 and Z-Image load LoKr themselves.
    is_native = model is not getattr(pipeline, "unet", None) and any(".lokr_" in each for each in tensors)
    converted = tensors if is_native else to_lora(tensors, lora.name, layers)
    try:
        if model is not getattr(pipeline, "unet", None):
            _check_layers(lora, pipeline, dict(converted), model)
        if converted is tensors:  # from the file, whose metadata may hold the alphas
            pipeline.load_lora_weights(
                str(lora.path.parent), weight_name=lora.path.name, adapter_name=name, local_files_only=True
            )
        else:
            pipeline.load_lora_weights(converted, adapter_name=name)
    except (RuntimeError, ValueError, KeyError, AttributeError, TypeError, IndexError) as error:
        log.warning("%s cannot be loaded: %s", lora.path, error)
        raise _mismatch(lora, LazyMessage("its layers are others"), pipeline_family(pipeline)) from error


def _check_layers(lora: Lora, pipeline: Any, tensors: dict[str, Any], model: Any) -> None:
    """Raise InvalidInput unless a transformer has the layers that the LoRA changes, in their sizes."""
    found = pipeline.lora_state_dict(tensors)
    found = found[0] if isinstance(found, tuple) else found
    layers = dict(model.named_modules())
    matches, others = 0, []
    for name, tensor in found.items():
        layer, is_down, _ = name.removeprefix("transformer.").partition(".lora_A.")
        if not name.startswith("transformer.") or not is_down:
            continue
        columns = getattr(layers.get(layer), "in_features", None)  # the weights may be quantized, and packed
        matches += columns == tensor.shape[-1]
        if columns != tensor.shape[-1]:
            others.append(f"{layer} {list(tensor.shape)}")
    has_lokr = any(".lokr_" in name for name in found)
    if others or not (matches or has_lokr or any(name.startswith("text_encoder") for name in found)):
        raise _mismatch(lora, _shorten(others) or LazyMessage("its layers are others"), pipeline_family(pipeline))
