"""Applies LoRAs to a loaded pipeline."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from canvas.errors import InvalidInput, LazyMessage
from canvas.models.loras import BASE_MODELS, DOWN_WEIGHT, UNET_PREFIXES, Lora, is_cross_attention, unet_tensors

# Names in the layout of the original SDXL code; diffusers converts them when it loads the file.
ORIGINAL_LAYOUT = re.compile(r"(input_blocks|output_blocks|middle_block)[._]")


@contextmanager
def applied_loras(pipeline: Any, loras: Sequence[tuple[Lora, float]]) -> Iterator[None]:
    """Apply the LoRAs with their weights inside the block, sorted by name.

    Adapters that are already active stay. Raises InvalidInput for a LoRA that does not fit,
    naming its tensors and base model.
    """
    selected = sorted((item for item in loras if item[1]), key=lambda item: item[0].name)
    if not selected:
        yield
        return
    for lora, _ in selected:
        check_compatible(lora, pipeline)
    before = list(pipeline.get_active_adapters())
    names: list[str] = []
    try:
        for lora, _ in selected:
            names.append(_adapter_name(lora))
            _load(pipeline, lora, names[-1])
        pipeline.set_adapters([*before, *names], [1.0] * len(before) + [weight for _, weight in selected])
        yield
    finally:
        if before:
            pipeline.delete_adapters(names)
            pipeline.set_adapters(before)
        else:
            pipeline.unload_lora_weights()


def check_compatible(lora: Lora, pipeline: Any) -> None:
    """Raise InvalidInput if the pipeline has no layers of the shapes in the LoRA."""
    unet = getattr(pipeline, "unet", None)
    if unet is None:
        message = LazyMessage("LoRAs need a model of the type Stable Diffusion or SDXL.")
        raise InvalidInput("loras", lora.name, message=message)
    if tensors := _incompatible_tensors(lora, unet):
        shown = ", ".join(tensors[:3]) + (f" and {len(tensors) - 3} more" if tensors[3:] else "")
        raise _mismatch(lora, shown, BASE_MODELS.get(unet.config.cross_attention_dim))


def _mismatch(lora: Lora, reason: str, family: str | None = None) -> InvalidInput:
    message = LazyMessage(
        "The LoRA {lora}, made for {base_model}, does not fit this model ({reason}). Choose a LoRA for {family}.",
        lora=lora.name,
        base_model=lora.base_model or LazyMessage("an unknown base model"),
        reason=reason,
        family=family or LazyMessage("this model"),
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
    try:
        pipeline.load_lora_weights(
            str(lora.path.parent), weight_name=lora.path.name, adapter_name=name, local_files_only=True
        )
    except (RuntimeError, ValueError, KeyError, AttributeError) as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise _mismatch(lora, reason) from error
