"""Applies LoRAs to a loaded pipeline; turns LoHa, LoKr and old LoRA files into LoRAs that diffusers loads."""

from __future__ import annotations

import hashlib
import logging
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canvas.engine import encode_first
from canvas.errors import InvalidInput, LazyMessage
from canvas.models.families import BY_CLASS
from canvas.models.loras import (
    DOWN_WEIGHT,
    LABELS,
    LYCORIS,
    OLD_UNET,
    UNET_FAMILIES,
    UNET_PREFIXES,
    Lora,
    is_cross_attention,
    unet_tensors,
)
from canvas.prompt_syntax import LoraWeight

if TYPE_CHECKING:
    import torch

    Tensors = dict[str, torch.Tensor]

log = logging.getLogger(__name__)

# Families whose LoRAs have the same layers
SAME_LAYERS = {"flux", "chroma"}
# Names in the layout of the original SDXL code; diffusers converts them when it loads the file.
ORIGINAL_LAYOUT = re.compile(r"(input_blocks|output_blocks|middle_block)[._]")
# What else LyCORIS writes, which no low-rank pair can express.
UNSUPPORTED = re.compile(r"\.(hada_t[12]|lokr_t2|diff|diff_b|dora_scale|w_norm|b_norm|oft_\w+)$")


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
    """The family of LoRAs for a pipeline, a key of LABELS; "" if unknown."""
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
    unet = getattr(pipeline, "unet", None)
    model = unet or pipeline.transformer
    layers = {each.replace(".", "_"): module for each, module in model.named_modules()}
    # FLUX.2 and Z-Image load LoKr themselves.
    is_native = model is not unet and any(".lokr_" in each for each in tensors)
    converted = tensors if is_native else to_lora(tensors, lora.name, layers)
    try:
        if model is not unet:
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


def read_tensors(path: Path, name: str) -> Tensors:
    """The tensors of a file; raises InvalidInput for NaN and infinity, which make every image black."""
    from safetensors.torch import load_file

    tensors: Tensors = load_file(path)
    for tensor_name, tensor in tensors.items():
        if not tensor.isfinite().all():
            text = "The LoRA {name} is damaged: its weights {tensor} contain NaN or infinity."
            raise InvalidInput("loras", name, message=LazyMessage(text, name=name, tensor=tensor_name))
    return tensors


def to_lora(tensors: Tensors, name: str, layers: Mapping[str, Any]) -> Tensors:
    """The same change of the weights as pairs of low-rank matrices, in the layout of kohya.

    `layers` are the modules of the UNet or transformer by name with underscores, which tell
    convolutions. Raises InvalidInput for Tucker decompositions and whole weights.
    """
    if any(OLD_UNET.match(each) for each in tensors):
        return {f"unet.{each}" if OLD_UNET.match(each) else each: tensor for each, tensor in tensors.items()}
    if not any(LYCORIS.search(each) for each in tensors):
        return tensors
    modules: dict[str, Tensors] = defaultdict(dict)
    for each, tensor in tensors.items():
        if UNSUPPORTED.search(each):
            text = "The LoRA {name} contains {tensor}, a kind of weights that is not supported."
            raise InvalidInput("loras", name, message=LazyMessage(text, name=name, tensor=each))
        module, _, part = each.rpartition(".")
        modules[module][part] = tensor
    converted: Tensors = {}
    for module, parts in modules.items():
        if "lora_down" in parts or module.endswith(("lora_down", "lora_up")):
            converted |= {f"{module}.{part}": tensor for part, tensor in parts.items()}
            continue
        key = "lora_unet_" + module.removeprefix("lycoris_") if module.startswith("lycoris_") else module
        up, down = _loha(parts) if "hada_w1_a" in parts else _lokr(parts)
        converted |= _pair(key, up, down, layers.get(key.removeprefix("lora_unet_")))
    return converted


def _pair(key: str, up: torch.Tensor, down: torch.Tensor, layer: Any) -> Tensors:
    """A pair whose alpha is its rank; of a convolution with the kernel in the down-projection."""
    import torch

    weight = getattr(layer, "weight", None)
    if weight is not None and weight.ndim == 4:
        down = down.reshape(len(down), *weight.shape[1:])
        up = up[:, :, None, None]
    return {
        f"{key}.lora_up.weight": up.contiguous(),
        f"{key}.lora_down.weight": down.contiguous(),
        f"{key}.alpha": torch.tensor(float(len(down))),
    }


def _loha(parts: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
    """(A1 B1) ∘ (A2 B2) as the product of the row-wise and the column-wise Kronecker products."""
    import torch

    a1, b1, a2, b2 = (parts[f"hada_{each}"].float() for each in ("w1_a", "w1_b", "w2_a", "w2_b"))
    scale = float(parts.get("alpha", torch.tensor(float(len(b1))))) / len(b1)
    up = (a1[:, :, None] * a2[:, None, :]).flatten(1)
    down = (b1[:, None, :] * b2[None, :, :]).flatten(0, 1)
    return _compress(up * scale, down)


def _lokr(parts: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
    """(A1 B1) ⊗ (A2 B2) = (A1 ⊗ A2)(B1 ⊗ B2), where a whole factor W is W I."""
    import torch

    rank = next((len(parts[name]) for name in ("lokr_w2_b", "lokr_w1_b") if name in parts), 0)
    # LyCORIS applies alpha only where a factor is decomposed.
    scale = float(parts["alpha"]) / rank if rank and "alpha" in parts else 1.0
    (a1, b1), (a2, b2) = (_factor(parts, each) for each in ("lokr_w1", "lokr_w2"))
    return _compress(torch.kron(a1, a2) * scale, torch.kron(b1, b2))


def _factor(parts: Tensors, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    if name not in parts:
        return parts[f"{name}_a"].float(), parts[f"{name}_b"].float()
    whole = parts[name].float().flatten(1)
    return (whole, torch.eye(whole.shape[1])) if whole.shape[1] <= len(whole) else (torch.eye(len(whole)), whole)


def _compress(up: torch.Tensor, down: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same product with the smallest rank that its shape allows."""
    import torch

    rows, columns = len(up), down.shape[1]
    if up.shape[1] <= min(rows, columns):
        return up, down
    product = up @ down
    return (product, torch.eye(columns)) if columns <= rows else (torch.eye(rows), product)
