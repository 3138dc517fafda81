"""Selects the files of a repository or folder that make a pipeline, by name and size."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from canvas.errors import ModelCorrupted

MODEL_INDEX = "model_index.json"
SAFETY_CHECKER = "safety_checker"
# The names that from_pretrained loads, unlike `openvino_model.bin` and others. diffusers' own rule
# (variant_compatible_siblings) cannot be used here, as its module imports torch.
WEIGHTS = re.compile(
    r"(?P<stem>diffusion_pytorch_model|model|pytorch_model)"
    r"(?:\.(?P<variant>[A-Za-z]\w*))?"
    r"(?:-(?P<shard>\d{5})-of-(?P<shards>\d{5}))?"
    r"\.(?P<format>safetensors|bin)(?P<index>\.index(?:\.(?P<index_variant>\w+))?\.json)?"
)
# Components without weights, and the configuration file that each requires.
CONFIG_FILES = {
    "scheduler": "scheduler_config.json",
    "tokenizer": "tokenizer_config.json",
    "feature_extractor": "preprocessor_config.json",
    "image_processor": "preprocessor_config.json",
}
SMALL_FILES = {".json", ".txt", ".model", ".jinja"}
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library


@dataclass(frozen=True)
class WeightVariant:
    """A file format of weights, and diffusers' `variant`."""

    format: str
    variant: str | None


# `.bin` only if a component lacks safetensors; 16 bits for fp32 only if there is nothing else.
PREFERENCE_FP16 = tuple(
    WeightVariant(suffix, variant) for suffix in ("safetensors", "bin") for variant in ("fp16", None, "bf16")
)
PREFERENCE_FP32 = tuple(
    WeightVariant(suffix, variant) for variant in (None, "fp16", "bf16") for suffix in ("safetensors", "bin")
)


@dataclass(frozen=True)
class FileSelection:
    """The files of a pipeline, and the variant of their weights.

    `exceptions`: components that exist in other variants only.
    """

    files: tuple[str, ...]
    weights: WeightVariant
    exceptions: Mapping[str, WeightVariant] = field(default_factory=dict)


def select_files(
    files: Iterable[str], index: Mapping[str, Any], *, half_precision: bool, without: Collection[str] = ()
) -> FileSelection:
    """The files that the components in `model_index.json` need, with one variant of the weights.

    Of the components `without` weights, which have other sources, only the configuration. The
    safety checker is left out. Raises ModelCorrupted naming the incomplete components.
    """
    names = set(files)
    components = {component: _files_of(component, names) for component in component_names(index)}
    configs = [
        f"{component}/{name}" for component, own in components.items() for name in own if not WEIGHTS.fullmatch(name)
    ]
    incomplete = sorted(name for name, own in components.items() if not _has_config(name, own))
    if incomplete or not components:
        raise ModelCorrupted(_incomplete(incomplete))
    weighted = {name: own for name, own in components.items() if _config_file(name) is None and name not in without}
    for variant in PREFERENCE_FP16 if half_precision else PREFERENCE_FP32:
        selected = {name: _weights(own, variant) for name, own in weighted.items()}
        if all(selected.values()):
            weights = [f"{component}/{name}" for component, own in selected.items() for name in own]
            return FileSelection((MODEL_INDEX, *sorted(configs + weights)), variant)
    if mixed := _select_mixed(weighted, configs, half_precision=half_precision):
        return mixed
    empty = [name for name, own in weighted.items() if not any(map(WEIGHTS.fullmatch, own))]
    raise ModelCorrupted(_incomplete(sorted(empty) or sorted(weighted)))


def _select_mixed(
    weighted: Mapping[str, set[str]], configs: list[str], *, half_precision: bool
) -> FileSelection | None:
    """Each component in its best variant; None if one has no complete weights."""
    preference = sorted(
        PREFERENCE_FP16 if half_precision else PREFERENCE_FP32, key=lambda variant: variant.format == "bin"
    )
    chosen: dict[str, WeightVariant] = {}
    files = list(configs)
    for component, own in weighted.items():
        variant = next((each for each in preference if _weights(own, each)), None)
        if variant is None:
            return None
        chosen[component] = variant
        files += [f"{component}/{name}" for name in _weights(own, variant)]
    main, _ = Counter(chosen.values()).most_common(1)[0]
    exceptions = {component: variant for component, variant in chosen.items() if variant != main}
    return FileSelection((MODEL_INDEX, *sorted(files)), main, exceptions)


def read_index(folder: Path) -> dict[str, Any]:
    """The components of the pipeline in a folder; raises ModelCorrupted."""
    try:
        text = (folder / MODEL_INDEX).read_text(encoding="utf-8")
    except (OSError, ValueError):
        text = None
    return parse_index(text, str(folder))


def has_index(folder: Path) -> bool:
    """Whether the folder is a diffusers pipeline."""
    return (folder / MODEL_INDEX).is_file()


def parse_index(text: str | None, source: str) -> dict[str, Any]:
    """The components by name; `text` is None if there is no such file. Raises ModelCorrupted."""
    try:
        index = json.loads(text or "")
    except ValueError:
        index = None
    if not isinstance(index, dict):
        raise ModelCorrupted(f"{source} is no diffusers pipeline: no readable {MODEL_INDEX}.")
    return index


def file_sizes(folder: Path) -> dict[str, int]:
    """Relative path to bytes for the files of the first two levels, without broken links."""
    found = [*folder.glob("*"), *folder.glob("*/*")]
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in found if path.is_file()}


def select_local_files(folder: Path, *, half_precision: bool = False, without: Collection[str] = ()) -> FileSelection:
    """`select_files` for a local folder; raises ModelCorrupted."""
    names = [name for name, size in file_sizes(folder).items() if size]
    return select_files(names, read_index(folder), half_precision=half_precision, without=without)


def is_complete(folder: Path, tree: Mapping[str, int] | None = None, without: Collection[str] = ()) -> bool:
    """Whether the folder has a pipeline in any variant, with the file sizes of `tree` if given."""
    try:
        if tree is None:
            select_local_files(folder, without=without)
            return True
        index = read_index(folder)
        selections = [select_files(tree, index, half_precision=half, without=without) for half in (False, True)]
    except ModelCorrupted:
        return False
    sizes = file_sizes(folder)
    return any(
        all(sizes.get(name) == tree[name] or _is_replaced(folder, name) for name in each.files) for each in selections
    )


def bin_weights(folder: Path) -> list[str]:
    """The `.bin` files that the pipeline in a folder needs, with the indexes of their shards."""
    try:
        files = select_local_files(folder).files
    except ModelCorrupted:
        return []
    return [name for name in files if (match := WEIGHTS.fullmatch(Path(name).name)) and match["format"] == "bin"]


def safetensors_name(name: str) -> str:
    """The name or path of a `.bin` file as a safetensors file."""
    return re.sub(r"(^|/)pytorch_model", r"\1model", name).replace(".bin", ".safetensors")


def _is_replaced(folder: Path, name: str) -> bool:
    """Whether a `.bin` file was replaced by a complete safetensors file."""
    path = folder / safetensors_name(name)
    if path == folder / name or not path.is_file():
        return False
    try:
        if path.suffix == ".safetensors":
            check_single_file(path)
    except ModelCorrupted:
        return False
    return True


def read_safetensors_header(path: Path) -> dict[str, Any]:
    """Tensor names mapped to `dtype`, `shape` and `data_offsets`, and the `__metadata__`.

    Reads only the header, so the tensors may be missing. Raises ValueError if there is no such
    header, OSError if the file cannot be read.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER_BYTES:
            raise ValueError(f"the header would take {length:,} bytes")
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("the header is not a JSON object")
    return header


def check_single_file(path: Path) -> None:
    """Raise ModelCorrupted unless it is a complete `.safetensors` file; reads only its header."""
    if path.suffix != ".safetensors":
        raise ModelCorrupted(
            f"A single-file model must be a .safetensors file (got {path}). Convert it, or use a diffusers folder."
        )
    try:
        header = read_safetensors_header(path)
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name[:2] != "__"]
        with path.open("rb") as file:
            expected = 8 + int.from_bytes(file.read(8), "little") + max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise ModelCorrupted(f"{path} is not a safetensors file. Download it again.") from error
    if (size := path.stat().st_size) != expected:
        raise ModelCorrupted(f"{path} is damaged: {size:,} bytes instead of {expected:,}. Download it again.")


def component_names(index: Mapping[str, Any]) -> list[str]:
    """The components that the pipeline has, other than the safety checker."""
    return [
        name
        for name, origin in index.items()
        if isinstance(origin, list | tuple) and len(origin) == 2 and origin[1]
        # Names of components become folder names: no path separators.
        if name.isidentifier() and name != SAFETY_CHECKER
    ]


def _files_of(component: str, names: set[str]) -> set[str]:
    prefix = f"{component}/"
    own = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    return {name for name in own if "/" not in name and (WEIGHTS.fullmatch(name) or Path(name).suffix in SMALL_FILES)}


def _config_file(component: str) -> str | None:
    return next((file for kind, file in CONFIG_FILES.items() if component.startswith(kind)), None)


def _has_config(component: str, own: set[str]) -> bool:
    if not component.startswith("tokenizer"):
        return (_config_file(component) or "config.json") in own
    has_vocabulary = {"vocab.json", "merges.txt"} <= own or "tokenizer.json" in own
    return "tokenizer_config.json" in own and (has_vocabulary or "spiece.model" in own)


def _weights(own: set[str], variant: WeightVariant) -> list[str]:
    """The weights of a component in that variant: one file, or all shards with their index."""
    matches = [
        match
        for name in sorted(own)
        if (match := WEIGHTS.fullmatch(name))
        and match["format"] == variant.format
        and (match["variant"] or match["index_variant"]) == variant.variant
    ]
    for match in matches:
        if not match["shard"] and not match["index"]:
            return [match.string]
    shards = [match for match in matches if match["shard"]]
    if not shards or len(shards) != int(shards[0]["shards"]) or len(shards) == len(matches):
        return []
    return [match.string for match in matches]


def _incomplete(components: list[str]) -> str:
    names = ", ".join(components) or "all components"
    return f"The files of this model are incomplete: {names}. Download it again, or choose another."
