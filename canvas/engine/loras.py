"""LoRA files: what is in them, whether they fit, and how a pipeline wears several at once."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from canvas.errors import InvalidInput, NotFound

PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
TAG = re.compile(
    r"<lora:(?P<name>[^:<>]+(?::[^:<>]+\.safetensors)?)(?::(?P<weight>[+-]?\d*\.?\d+))?>"
)
DOWN = re.compile(r"\.(lora_down|lora_A|lora\.down|lora_linear_layer\.down)\.(?:\w+\.)?weight$")
PREFIXES = ("lora_unet_", "unet.", "base_model.model.unet.")
# Names in the layout of the original SDXL code; diffusers translates them when it loads.
ORIGINAL_LAYOUT = re.compile(r"(input_blocks|output_blocks|middle_block)[._]")
# The width of the words that cross-attention reads tells the family.
FAMILIES = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "SDXL"}
MANY_TAGS = 8  # offered at most of the words that a LoRA was trained with


@dataclass(frozen=True)
class Lora:
    """A LoRA file, read by its header alone: no weight is loaded."""

    name: str
    path: Path
    base_model: str  # the family it was made for, "" where nothing tells
    trigger_words: tuple[str, ...] = ()
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict, repr=False, compare=False)


def find_loras(folder: Path) -> dict[str, Lora]:
    """The readable LoRA files of a folder by name; damaged ones are left out of the list."""
    found: dict[str, Lora] = {}
    for path in sorted(folder.glob("**/*.safetensors")):
        try:
            found.setdefault(path.stem, read_lora(path))
        except InvalidInput:
            continue  # said when it is asked for by its name
    return found


def get_lora(name: str, folder: Path) -> Lora:
    """The LoRA of that name; raises NotFound listing what there is, InvalidInput for a bad file."""
    for path in sorted(folder.glob("**/*")):
        if name in (path.name, path.stem) and path.suffix in (".safetensors", *PICKLES):
            return read_lora(path)
    known = ", ".join(find_loras(folder)) or "none yet"
    raise NotFound(
        f"There is no LoRA {name!r}. Put {name}.safetensors into the folder {folder.name}; "
        f"there are: {known}."
    )


def read_lora(path: Path) -> Lora:
    """What a file says of itself; raises InvalidInput for pickles and what is no LoRA."""
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors":
        raise InvalidInput(
            "loras", path.name, "a .safetensors file: others may hold programs that would be run"
        )
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise InvalidInput(
            "loras", path.name, "a whole .safetensors file; this one is damaged or something else"
        ) from error
    if not any(DOWN.search(name) for name in shapes):
        raise InvalidInput("loras", path.name, "a LoRA; this file holds other weights")
    return Lora(path.stem, path, _family(shapes, metadata), _trigger_words(metadata), shapes)


def split_tags(prompt: str) -> tuple[str, tuple[tuple[str, float], ...]]:
    """The prompt without `<lora:name:0.8>`, and the names with their weights (1 if unsaid)."""
    found = tuple(
        (match["name"].strip(), float(match["weight"] or 1)) for match in TAG.finditer(prompt)
    )
    if not found:
        return prompt, ()
    words = re.sub(r"\s{2,}", " ", TAG.sub("", prompt))
    return re.sub(r"(,\s*)+(?=,|$)", "", words).strip(" ,"), found


@contextmanager
def worn(pipeline: Any, loras: Sequence[tuple[Lora, float]]) -> Iterator[None]:
    """Put the LoRAs on a pipeline for the time of the block, in an order that is always the same.

    What the pipeline wears already stays. Raises InvalidInput for one that does not fit,
    naming tensors and the family it was made for.
    """
    wanted = sorted((item for item in loras if item[1]), key=lambda item: item[0].name)
    if not wanted:
        yield
        return
    for lora, _ in wanted:
        check_fit(lora, pipeline)
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


def check_fit(lora: Lora, pipeline: Any) -> None:
    """Raise InvalidInput when tensors have no layer in the pipeline, or another shape."""
    unet = getattr(pipeline, "unet", None)
    if unet is None:
        raise InvalidInput("loras", lora.name, "a model of Stable Diffusion or SDXL to wear it")
    misfits = _misfits(lora, unet)
    if misfits:
        shown = ", ".join(misfits[:3]) + (f" and {len(misfits) - 3} more" if misfits[3:] else "")
        made = f"it was made for {lora.base_model}, " if lora.base_model else ""
        words = FAMILIES.get(unet.config.cross_attention_dim, "another base model")
        raise InvalidInput(
            "loras", lora.name, f"a LoRA for {words}; {made}and these tensors do not fit: {shown}"
        )


def _misfits(lora: Lora, unet: Any) -> list[str]:
    layers = {
        name.replace(".", "_"): module.weight.shape
        for name, module in unet.named_modules()
        if getattr(module, "weight", None) is not None
    }
    words = unet.config.cross_attention_dim
    misfits = []
    for name, shape in _of_unet(lora.shapes).items():
        layer = layers.get(_layer_name(name))
        if ORIGINAL_LAYOUT.search(name):
            fits = not _reads_words(name) or shape[1] == words
        else:
            fits = layer is not None and layer[1] == shape[1]
        if not fits:
            misfits.append(f"{name} {list(shape)}")
    return misfits


def _of_unet(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {
        name: shape
        for name, shape in shapes.items()
        if name.startswith(PREFIXES) and DOWN.search(name) and len(shape) > 1
    }


def _layer_name(tensor: str) -> str:
    for prefix in PREFIXES:
        tensor = tensor.removeprefix(prefix)
    name = DOWN.sub("", tensor).replace(".processor.", ".").replace(".", "_")
    # The oldest files name attention by role, with a suffix that diffusers translates.
    return re.sub(r"(to_[qkv])_lora$", r"\1", re.sub(r"to_out_lora$", "to_out_0", name))


def _reads_words(name: str) -> bool:
    return "attn2" in name and ("to_k" in name or "to_v" in name)


def _family(shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> str:
    widths = {shape[1] for name, shape in _of_unet(shapes).items() if _reads_words(name)}
    for width, family in FAMILIES.items():
        if widths == {width}:
            return family
    said = metadata.get("modelspec.architecture") or metadata.get("ss_base_model_version") or ""
    return said[:60]


def _trigger_words(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The words that its author names, else those it was most trained with."""
    if said := metadata.get("modelspec.trigger_phrase", "").strip():
        return tuple(word.strip() for word in said.split(",") if word.strip())[:MANY_TAGS]
    try:
        folders = json.loads(metadata.get("ss_tag_frequency", "{}"))
        counts: dict[str, int] = {}
        for tags in folders.values():
            for tag, count in tags.items():
                counts[tag.strip()] = counts.get(tag.strip(), 0) + int(count)
    except (ValueError, AttributeError, TypeError):
        return ()
    often = [tag for tag, count in counts.items() if tag and count >= max(counts.values()) / 2]
    return tuple(sorted(often, key=lambda tag: (-counts[tag], tag))[:MANY_TAGS])


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
