"""Turns LoHa, LoKr and old LoRA files into LoRAs that diffusers loads."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canvas.errors import InvalidInput, LazyMessage
from canvas.models.lora_formats import LYCORIS, OLD_UNET

if TYPE_CHECKING:
    import torch

    Tensors = dict[str, torch.Tensor]

# What else LyCORIS writes, which no low-rank pair can express.
UNSUPPORTED = re.compile(r"\.(hada_t[12]|lokr_t2|diff|diff_b|dora_scale|w_norm|b_norm|oft_\w+)$")


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
