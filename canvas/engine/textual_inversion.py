"""Textual inversions (Gal et al., 2022): files in the folder `embeddings`, whose names in a prompt become tokens."""

from __future__ import annotations

import copy
import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from canvas.engine.prompt_embeds import supports_weighting
from canvas.errors import InvalidInput, LazyMessage, NotFound

if TYPE_CHECKING:
    import torch

# By the width of the embeddings
FAMILIES = {(768,): "Stable Diffusion 1.x", (1024,): "Stable Diffusion 2.x", (768, 1280): "SDXL"}
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


@dataclass
class AppliedEmbeddings:
    """The tokens of the applied embeddings by name, and notes about those that do not fit the model."""

    tokens: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def rewrite(self, prompt: str) -> str:
        """The prompt with tokens in place of names."""
        return replace_names(prompt, self.tokens) if self.tokens else prompt


@contextmanager
def applied_embeddings(pipeline: Any, embeddings: Sequence[Embedding]) -> Iterator[AppliedEmbeddings]:
    """Add the embeddings to the tokenizers and text encoders inside the block.

    Raises InvalidInput for a damaged file, and for one that does not fit the model and is named
    in an explicit syntax; names that are plain words stay words.
    """
    applied = AppliedEmbeddings()
    vectors: dict[str, list[torch.Tensor]] = {}  # by token, one per text encoder
    for embedding in embeddings:
        try:
            found = _vectors(embedding, pipeline)
        except InvalidInput as error:
            if embedding.explicit:
                raise
            applied.notes += (f"{error} The name was read as words.",)
            continue
        names = [f"<ti-{_digest(embedding)}-{index}>" for index in range(len(found[0]))]
        applied.tokens[embedding.name] = " ".join(names)
        vectors |= {name: [part[index] for part in found] for index, name in enumerate(names)}
    with ExitStack() as stack:
        if vectors:
            for index, (tokenizer, encoder) in enumerate(_text_encoders(pipeline)):
                added = {name: parts[index] for name, parts in vectors.items()}
                stack.enter_context(_added_tokens(pipeline, tokenizer, encoder, added))
        yield applied


def _text_encoders(pipeline: Any) -> list[tuple[str, str]]:
    """The attributes of the tokenizers and text encoders."""
    pairs = [("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")]
    return [pair for pair in pairs if getattr(pipeline, pair[1], None) is not None]


@contextmanager
def _added_tokens(pipeline: Any, tokenizer: str, encoder: str, vectors: Mapping[str, torch.Tensor]) -> Iterator[None]:
    import torch

    original, model = getattr(pipeline, tokenizer), getattr(pipeline, encoder)
    embeddings = model.get_input_embeddings()
    extended = copy.deepcopy(original)
    extended.add_tokens(list(vectors))
    ids = extended.convert_tokens_to_ids(list(vectors))
    weight = embeddings.weight.data
    rows = weight.new_zeros(max(max(ids) + 1 - len(weight), 0), weight.shape[1])
    larger = torch.nn.Embedding.from_pretrained(torch.cat([weight, rows]))
    for index, vector in zip(ids, vectors.values(), strict=True):
        larger.weight.data[index] = vector.to(weight)
    # Models from before transformers 4.31 find the end token as the highest id.
    text_model = getattr(model, "text_model", model)
    end_token = getattr(text_model, "eos_token_id", None)
    setattr(pipeline, tokenizer, extended)
    model.set_input_embeddings(larger)
    if end_token is not None:
        text_model.eos_token_id = original.eos_token_id
    try:
        yield
    finally:
        setattr(pipeline, tokenizer, original)
        model.set_input_embeddings(embeddings)
        if end_token is not None:
            text_model.eos_token_id = end_token


def _vectors(embedding: Embedding, pipeline: Any) -> list[torch.Tensor]:
    """The vectors for each text encoder, (n, width) each."""
    if not supports_weighting(pipeline):
        text = "This model takes no textual inversions. Choose another model, or remove {name}."
        raise InvalidInput("prompt", embedding.name, message=LazyMessage(text, name=embedding.name))
    widths = tuple(getattr(pipeline, encoder).config.hidden_size for _, encoder in _text_encoders(pipeline))
    found = _read(embedding)
    if tuple(part.shape[1] for part in found) != widths:
        text = "The textual inversion {name}, made for {base_model}, does not fit this model, which is {family}."
        family = FAMILIES.get(tuple(part.shape[1] for part in found))
        message = LazyMessage(
            text,
            name=embedding.name,
            base_model=family or LazyMessage("an unknown base model"),
            family=FAMILIES.get(widths) or LazyMessage("another model"),
        )
        raise InvalidInput("prompt", embedding.name, message=message)
    return found


def _read(embedding: Embedding) -> list[torch.Tensor]:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if embedding.path.suffix.lower() == ".safetensors":
            content: Any = load_file(embedding.path)
        else:
            content = torch.load(embedding.path, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, OSError, ValueError, RuntimeError, EOFError, KeyError) as error:
        raise _unreadable(embedding) from error
    content = content if isinstance(content, dict) else {}
    content = content.get("string_to_param", content)
    names = [name for name in ("clip_l", "clip_g") if name in content] or list(content)[:1]
    tensors = [content[name] for name in names]
    if not tensors or not all(isinstance(part, torch.Tensor) and part.ndim in (1, 2) for part in tensors):
        raise _unreadable(embedding)
    found = [part.detach().float().reshape(-1, part.shape[-1]) for part in tensors]
    if not all(part.isfinite().all() for part in found) or len({len(part) for part in found}) > 1:
        raise _unreadable(embedding)
    return found


def _unreadable(embedding: Embedding) -> InvalidInput:
    text = "{name} is damaged or not a textual inversion."
    return InvalidInput("prompt", embedding.path.name, message=LazyMessage(text, name=embedding.path.name))


def _digest(embedding: Embedding) -> str:
    # Another name for a changed file, as prompt embeddings are cached by the text.
    stat = embedding.path.stat()
    return hashlib.sha256(f"{embedding.path} {stat.st_mtime_ns} {stat.st_size}".encode()).hexdigest()[:12]
