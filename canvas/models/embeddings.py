"""Textual inversions: files in the folder `embeddings`, used by their names in a prompt."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from canvas.errors import LazyMessage, NotFound

SUFFIXES = (".safetensors", ".pt", ".bin")
# `<embed:name>` of SwarmUI and `embedding:name` of ComfyUI; A1111's names are plain words.
SYNTAX = re.compile(
    r"<\s*embed(?:ding)?\s*:\s*(?P<tag>[^<>:]+?)\s*>|\bembedding:(?P<word>[^\s,:()\[\]<>]+)", re.IGNORECASE
)


@dataclass(frozen=True)
class Embedding:
    """A file that a prompt names; `explicit` if by a syntax that can mean nothing else."""

    name: str
    path: Path
    explicit: bool = False


def list_embeddings(folder: Path) -> dict[str, Path]:
    """The files by name, including those in sub folders."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return {path.stem: path for path in reversed(paths)}


def requested_embeddings(texts: tuple[str, ...], folder: Path) -> tuple[Embedding, ...]:
    """The files that the texts name; raises NotFound for a name in the explicit syntax without a file."""
    files = list_embeddings(folder)
    found: dict[Path, Embedding] = {}
    for text in texts:
        for match in SYNTAX.finditer(text):
            name = match["tag"] or match["word"]
            path = next((path for known, path in files.items() if _normalize(known) == _normalize(name)), None)
            if path is None:
                raise _not_found(name, folder, files)
            found[path] = Embedding(path.stem, path, explicit=True)
        for name, path in files.items():
            if path not in found and _word(name).search(_compose(text)):
                found[path] = Embedding(name, path)
    return tuple(found.values())


def _not_found(name: str, folder: Path, files: dict[str, Path]) -> NotFound:
    text = "Textual inversion {name} not found. Add {name}.safetensors to the folder {folder} (it has: {known})."
    known = ", ".join(sorted(files)) or LazyMessage("none")
    return NotFound(LazyMessage(text, name=name, folder=folder.name, known=known))


def replace_names(text: str, tokens: dict[str, str]) -> str:
    """The text with each name of an embedding, in any syntax, replaced by its tokens."""
    by_name = {_normalize(name): replacement for name, replacement in tokens.items()}

    def replacement(match: re.Match[str]) -> str:
        return by_name.get(_normalize(match["tag"] or match["word"]), match[0])

    text = SYNTAX.sub(replacement, _compose(text))
    for name, tokens_of_name in tokens.items():
        text = _word(name).sub(lambda _, found=tokens_of_name: found, text)  # type: ignore[misc]
    return text


def _word(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w-]){re.escape(_compose(name))}(?:\.(?:pt|safetensors|bin))?(?![\w-])", re.IGNORECASE)


def _compose(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _normalize(name: str) -> str:
    return re.sub(r"\.(pt|safetensors|bin)$", "", _compose(name).strip().casefold())
