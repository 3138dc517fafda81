"""LoRAs of the Hub, by `owner/name` or `owner/name:file.safetensors`."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from canvas.errors import InvalidInput, NotFound
from canvas.models import download, hub_cache
from canvas.models.download import DownloadProgress, HubFiles
from canvas.models.hub_client import Hub

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
MAX_TRIGGER_WORDS = 8  # offered at most of the words that a LoRA was trained with


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


def parse_lora_tags(prompt: str) -> tuple[str, tuple[tuple[str, float], ...]]:
    """The prompt without `<lora:name:0.8>`, and the names with their weights (1 if unsaid)."""
    found = tuple(
        (match["name"].strip(), float(match["weight"] or 1)) for match in TAG.finditer(prompt)
    )
    if not found:
        return prompt, ()
    words = re.sub(r"\s{2,}", " ", TAG.sub("", prompt))
    return re.sub(r"(,\s*)+(?=,|$)", "", words).strip(" ,"), found


def unet_tensors(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The down-projections of the UNet, by name."""
    return {
        name: shape
        for name, shape in shapes.items()
        if name.startswith(PREFIXES) and DOWN.search(name) and len(shape) > 1
    }


def is_cross_attention(name: str) -> bool:
    """Whether a tensor projects text embeddings (its width tells the family)."""
    return "attn2" in name and ("to_k" in name or "to_v" in name)


def _family(shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> str:
    widths = {shape[1] for name, shape in unet_tensors(shapes).items() if is_cross_attention(name)}
    for width, family in FAMILIES.items():
        if widths == {width}:
            return family
    said = metadata.get("modelspec.architecture") or metadata.get("ss_base_model_version") or ""
    return said[:60]


def _trigger_words(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The words that its author names, else those it was most trained with."""
    if said := metadata.get("modelspec.trigger_phrase", "").strip():
        return tuple(word.strip() for word in said.split(",") if word.strip())[:MAX_TRIGGER_WORDS]
    try:
        folders = json.loads(metadata.get("ss_tag_frequency", "{}"))
        counts: dict[str, int] = {}
        for tags in folders.values():
            for tag, count in tags.items():
                counts[tag.strip()] = counts.get(tag.strip(), 0) + int(count)
    except (ValueError, AttributeError, TypeError):
        return ()
    often = [tag for tag, count in counts.items() if tag and count >= max(counts.values()) / 2]
    return tuple(sorted(often, key=lambda tag: (-counts[tag], tag))[:MAX_TRIGGER_WORDS])


NAME = re.compile(r"(?P<repo_id>[\w-][\w.-]*/[\w-][\w.-]*)(?::(?P<file>[^:<>\\]+\.safetensors))?")
DEFAULT_FILE_NAME = "pytorch_lora_weights.safetensors"  # what diffusers' trainers write


def is_hub_name(name: str) -> bool:
    """Whether a LoRA is named by its place on the Hub, and not by a file of the folder."""
    return NAME.fullmatch(name) is not None


def find(name: str, *, hub: Hub | None = None) -> Path | None:
    """The file on this disk; asks no network."""
    hub = hub or Hub()
    repo_id, file = _parts(name)
    for folder in hub_cache.snapshots(hub, repo_id):
        present = [path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors")]
        if file in present:
            return folder / file
        if file is None and present:
            return folder / _choose_file(name, present)
    return None


def resolve_files(
    name: str, *, hub: Hub | None = None, cancelled: threading.Event | None = None
) -> HubFiles:
    """What fetching it takes; raises InvalidInput where a file has to be named."""
    repo_id, file = _parts(name)

    def choose(names: Iterable[str]) -> list[str]:
        return [
            file or _choose_file(name, [each for each in names if each.endswith(".safetensors")])
        ]

    return download.resolve_files(hub or Hub(), repo_id, choose, cancelled)


def fetch(
    name: str,
    on_progress: Callable[[DownloadProgress], None],
    cancelled: threading.Event,
    *,
    hub: Hub | None = None,
) -> Path:
    """Download the one file; raises a kind of ModelUnavailable, or InvalidInput as `resolve_files`."""
    wanted = resolve_files(name, hub=hub, cancelled=cancelled)
    [file] = wanted.files
    return download.fetch(hub or Hub(), wanted, on_progress, cancelled) / file


def _parts(name: str) -> tuple[str, str | None]:
    match = NAME.fullmatch(name)
    if match is None:
        raise InvalidInput("loras", name, "owner/name or owner/name:file.safetensors")
    return match["repo_id"], match["file"]


def _choose_file(name: str, files: list[str]) -> str:
    if not files:
        raise InvalidInput(
            "loras", name, "a repository with a .safetensors file; others may hold programs"
        )
    if DEFAULT_FILE_NAME in files:
        return DEFAULT_FILE_NAME
    if len(files) > 1:
        shown = ", ".join(sorted(files)[:8])
        raise InvalidInput("loras", name, f"one of its files after a colon: {shown}")
    return files[0]
