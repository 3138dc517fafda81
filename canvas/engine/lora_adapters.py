"""LoRAs on a loaded pipeline."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from canvas.errors import InvalidInput
from canvas.models.loras import (
    DOWN,
    FAMILIES,
    ORIGINAL_LAYOUT,
    PREFIXES,
    Lora,
    is_cross_attention,
    unet_tensors,
)


@contextmanager
def applied_loras(pipeline: Any, loras: Sequence[tuple[Lora, float]]) -> Iterator[None]:
    """Put the LoRAs on a pipeline for the time of the block, in an order that is always the same.

    What the pipeline wears already stays. Raises InvalidInput for one that does not fit,
    naming tensors and the family it was made for.
    """
    wanted = sorted((item for item in loras if item[1]), key=lambda item: item[0].name)
    if not wanted:
        yield
        return
    for lora, _ in wanted:
        check_compatible(lora, pipeline)
    before = list(pipeline.get_active_adapters())
    names: list[str] = []
    try:
        for lora, _ in wanted:
            names.append(_adapter_name(lora))
            _load(pipeline, lora, names[-1])
        weights = [weight for _, weight in wanted]
        pipeline.set_adapters([*before, *names], [1.0] * len(before) + weights)
        yield
    finally:
        if before:
            pipeline.delete_adapters(names)
            pipeline.set_adapters(before)
        else:
            pipeline.unload_lora_weights()


def check_compatible(lora: Lora, pipeline: Any) -> None:
    """Raise InvalidInput when tensors have no layer in the pipeline, or another shape."""
    unet = getattr(pipeline, "unet", None)
    if unet is None:
        raise InvalidInput("loras", lora.name, "a model of Stable Diffusion or SDXL to wear it")
    misfits = _incompatible_tensors(lora, unet)
    if misfits:
        shown = ", ".join(misfits[:3]) + (f" and {len(misfits) - 3} more" if misfits[3:] else "")
        made = f"it was made for {lora.base_model}, " if lora.base_model else ""
        words = FAMILIES.get(unet.config.cross_attention_dim, "another base model")
        raise InvalidInput(
            "loras", lora.name, f"a LoRA for {words}; {made}and these tensors do not fit: {shown}"
        )


def _incompatible_tensors(lora: Lora, unet: Any) -> list[str]:
    layers = {
        name.replace(".", "_"): module.weight.shape
        for name, module in unet.named_modules()
        if getattr(module, "weight", None) is not None
    }
    words = unet.config.cross_attention_dim
    misfits = []
    for name, shape in unet_tensors(lora.shapes).items():
        layer = layers.get(_layer_name(name))
        if ORIGINAL_LAYOUT.search(name):
            fits = not is_cross_attention(name) or shape[1] == words
        else:
            fits = layer is not None and layer[1] == shape[1]
        if not fits:
            misfits.append(f"{name} {list(shape)}")
    return misfits


def _layer_name(tensor: str) -> str:
    for prefix in PREFIXES:
        tensor = tensor.removeprefix(prefix)
    name = DOWN.sub("", tensor).replace(".processor.", ".").replace(".", "_")
    # The oldest files name attention by role, with a suffix that diffusers translates.
    return re.sub(r"(to_[qkv])_lora$", r"\1", re.sub(r"to_out_lora$", "to_out_0", name))


def _adapter_name(lora: Lora) -> str:
    # torch takes no dots in the names of modules. Another file of that name is another LoRA.
    said = f"{lora.path} {lora.path.stat().st_mtime_ns} {lora.path.stat().st_size}"
    return "lora_" + hashlib.sha256(said.encode()).hexdigest()[:16]


def _load(pipeline: Any, lora: Lora, name: str) -> None:
    try:
        pipeline.load_lora_weights(
            str(lora.path.parent),
            weight_name=lora.path.name,
            adapter_name=name,
            local_files_only=True,
        )
    except (RuntimeError, ValueError, KeyError, AttributeError) as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        made = f"; it was made for {lora.base_model}" if lora.base_model else ""
        raise InvalidInput(
            "loras", lora.name, f"a LoRA that fits this model{made} ({reason})"
        ) from (error)
