"""Which files of a repository or folder make a pipeline, chosen by name and size alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from canvas.errors import ModelCorrupted

INDEX = "model_index.json"
CHECKER = "safety_checker"
# What from_pretrained looks for; `openvino_model.bin` and the like are for other programs.
WEIGHTS = re.compile(
    r"(?P<stem>diffusion_pytorch_model|model|pytorch_model)"
    r"(?:\.(?P<variant>[A-Za-z]\w*))?"
    r"(?:-(?P<shard>\d{5})-of-(?P<shards>\d{5}))?"
    r"\.(?P<format>safetensors|bin)(?P<index>\.index(?:\.(?P<index_variant>\w+))?\.json)?"
)
# Parts without weights, and the file that each cannot be made without.
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
    """One way in which weights are published: file format and, in diffusers' word, variant."""

    format: str
    variant: str | None


# `.bin` only where some part lacks safetensors; halves unasked only where nothing else is there.
PREFERENCE_FP16 = (
    WeightVariant("safetensors", "fp16"),
    WeightVariant("safetensors", None),
    WeightVariant("bin", "fp16"),
    WeightVariant("bin", None),
)
PREFERENCE_FP32 = (
    WeightVariant("safetensors", None),
    WeightVariant("bin", None),
    WeightVariant("safetensors", "fp16"),
    WeightVariant("bin", "fp16"),
)


@dataclass(frozen=True)
class FileSelection:
    """The files to have, and the edition that their weights are of."""

    files: tuple[str, ...]
    edition: WeightVariant


def select_files(
    files: Iterable[str], index: Mapping[str, Any], *, half_precision: bool
) -> FileSelection:
    """The files that the parts named in `model_index.json` need, one edition of the weights.

    Raises ModelBroken naming the parts that are incomplete. The safety checker is left out.
    """
    names = set(files)
    parts = {part: _files_of(part, names) for part in _components(index)}
    small = [
        f"{part}/{name}"
        for part, own in parts.items()
        for name in own
        if not WEIGHTS.fullmatch(name)
    ]
    heavy = {part: own for part, own in parts.items() if _settings_of(part) is None}
    missing = sorted(part for part, own in parts.items() if not _has_settings(part, own))
    if missing or not parts:
        raise ModelCorrupted(_incomplete(missing))
    for edition in PREFERENCE_FP16 if half_precision else PREFERENCE_FP32:
        chosen = {part: _weights(own, edition) for part, own in heavy.items()}
        if all(chosen.values()):
            weights = [f"{part}/{name}" for part, own in chosen.items() for name in own]
            return FileSelection((INDEX, *sorted(small + weights)), edition)
    lacking = (part for part, own in heavy.items() if not _has_weights(own))
    raise ModelCorrupted(_incomplete(sorted(lacking) or sorted(heavy)))


def read_index(folder: Path) -> dict[str, Any]:
    """The parts of the pipeline in that folder; raises ModelBroken."""
    try:
        text = (folder / INDEX).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ModelCorrupted(f"{folder} has no readable {INDEX}: no diffusers pipeline.") from error
    return parse_index(text, str(folder))


def parse_index(text: str | None, where: str) -> dict[str, Any]:
    """The parts by name; `text` is None where there is no such file. Raises ModelBroken."""
    try:
        index = json.loads(text or "")
    except ValueError as error:
        raise ModelCorrupted(f"{where} has no readable {INDEX}: no diffusers pipeline.") from error
    if not isinstance(index, dict):
        raise ModelCorrupted(f"The {INDEX} of {where} is not a table of parts.")
    return index


def sizes_in(folder: Path) -> dict[str, int]:
    """Path below `folder` to bytes, for the files of its first two levels; no broken links."""
    found = [*folder.glob("*"), *folder.glob("*/*")]
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size for path in found if path.is_file()
    }


def selection_in(folder: Path, *, half_precision: bool = False) -> FileSelection:
    """What a local folder holds of a pipeline; raises ModelBroken when it is not enough."""
    sizes = sizes_in(folder)
    index = read_index(folder)
    return select_files(
        (name for name, size in sizes.items() if size), index, half_precision=half_precision
    )


def is_complete(folder: Path, listing: Mapping[str, int] | None = None) -> bool:
    """Whether the folder makes a pipeline, in any edition; with a listing, to the byte."""
    try:
        if listing is None:
            selection_in(folder)
            return True
        index = read_index(folder)
        choices = [select_files(listing, index, half_precision=half) for half in (False, True)]
    except ModelCorrupted:
        return False
    here = sizes_in(folder)
    return any(all(here.get(name) == listing[name] for name in choice.files) for choice in choices)


def read_safetensors_header(path: Path) -> dict[str, Any]:
    """Tensor names mapped to `dtype`, `shape` and `data_offsets`, and the `__metadata__`.

    Reads only the header, so the tensors may be missing. Raises ValueError where there is no
    such header, OSError where the file cannot be read.
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
            f"A single-file model must be a .safetensors file (got {path}). Convert it, or use a "
            "diffusers folder."
        )
    try:
        header = read_safetensors_header(path)
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name[:2] != "__"]
        with path.open("rb") as file:
            expected = 8 + int.from_bytes(file.read(8), "little") + max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise ModelCorrupted(f"{path} is not a safetensors file. Download it again.") from error
    if (size := path.stat().st_size) != expected:
        raise ModelCorrupted(
            f"{path} is damaged: {size:,} bytes instead of {expected:,}. Download it again."
        )


def _components(index: Mapping[str, Any]) -> list[str]:
    return [
        part
        for part, origin in index.items()
        if isinstance(origin, list) and len(origin) == 2 and origin[1]
        # Part names become folder names: nothing that leads elsewhere.
        if part.isidentifier() and part != CHECKER
    ]


def _files_of(part: str, names: set[str]) -> set[str]:
    below = f"{part}/"
    own = {name.removeprefix(below) for name in names if name.startswith(below)}
    return {
        name
        for name in own
        if "/" not in name and (WEIGHTS.fullmatch(name) or Path(name).suffix in SMALL_FILES)
    }


def _settings_of(part: str) -> str | None:
    return next((file for kind, file in CONFIG_FILES.items() if part.startswith(kind)), None)


def _has_settings(part: str, own: set[str]) -> bool:
    if not part.startswith("tokenizer"):
        return (_settings_of(part) or "config.json") in own
    words = {"vocab.json", "merges.txt"} <= own or "tokenizer.json" in own
    return "tokenizer_config.json" in own and (words or "spiece.model" in own)


def _has_weights(own: set[str]) -> bool:
    return any(WEIGHTS.fullmatch(name) for name in own)


def _weights(own: set[str], edition: WeightVariant) -> list[str]:
    """The files of that edition in one part: one file, or else all its shards with their index."""
    matches = [match for name in sorted(own) if (match := WEIGHTS.fullmatch(name))]
    of_edition = [
        match
        for match in matches
        if match["format"] == edition.format
        and (match["variant"] or match["index_variant"]) == edition.variant
    ]
    for match in of_edition:
        if not match["shard"] and not match["index"]:
            return [match.string]
    shards = [match for match in of_edition if match["shard"]]
    if not shards or len(shards) != int(shards[0]["shards"]) or len(shards) == len(of_edition):
        return []
    return [match.string for match in of_edition]


def _incomplete(parts: list[str]) -> str:
    what = ", ".join(parts) or "all parts"
    return f"The files of this model are incomplete: {what}. Fetch it again, or pick another."
