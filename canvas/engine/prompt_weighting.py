"""Weights inside prompts, `(word:1.3)`, `[word]`, `BREAK`, and prompts longer than 77 tokens."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from canvas.errors import InvalidInput

if TYPE_CHECKING:
    import torch

Fragments = list[tuple[str, float]]

STRONGER = 1.1  # what a pair of round brackets multiplies by, and square ones divide by
MAX_WEIGHT = 10.0
# The notation of the most used web UI: its wiki, "Features: Attention/emphasis".
PIECE = re.compile(
    r"\\(?P<escaped>[()\[\]\\])|(?P<weight>:\s*[+-]?\d*\.?\d+\s*\))|(?P<bracket>[()\[\]])"
    r"|(?P<text>[^\\()\[\]:]+|.)",
    re.DOTALL,
)
BREAK = re.compile(r"\s*\bBREAK\b\s*")


def parse(prompt: str) -> Fragments:
    """The prompt as texts with their weights; brackets that are not closed reach to the end."""
    pieces: list[list[Any]] = []
    opened: list[tuple[str, int]] = []

    def close(bracket: str, factor: float, closing: str) -> None:
        if not any(kind == bracket for kind, _ in opened):
            pieces.append([closing, 1.0])
            return
        last = max(index for index, (kind, _) in enumerate(opened) if kind == bracket)
        _, start = opened.pop(last)
        _multiply(pieces[start:], factor)

    for match in PIECE.finditer(prompt):
        bracket = match["bracket"]
        if bracket in ("(", "["):
            opened.append((bracket, len(pieces)))
        elif bracket:
            round_one = bracket == ")"
            close("(" if round_one else "[", STRONGER if round_one else 1 / STRONGER, bracket)
        elif match["weight"]:
            close("(", _weight(match["weight"]), match["weight"])
        else:
            pieces.append([match["escaped"] or match["text"], 1.0])
    for kind, start in reversed(opened):
        _multiply(pieces[start:], STRONGER if kind == "(" else 1 / STRONGER)
    return _join(pieces)


def split_chunks(prompt: str) -> list[Fragments]:
    """The fragments of each part between BREAKs; blank ones are left out."""
    parts = [parse(part) for part in BREAK.split(prompt)]
    filled = [[(text, weight) for text, weight in part if text.strip()] for part in parts]
    return [part for part in filled if part] or [[("", 1.0)]]


def strip_weights(prompt: str) -> str:
    """The words of the prompt without the notation, for encoders that take no weights."""
    return " ".join("".join(text for text, _ in parse(part)) for part in BREAK.split(prompt))


def encode_weighted_prompt(pipeline: Any, prompt: str, negative_prompt: str) -> dict[str, Any]:
    """What the pipeline takes in place of both prompts, (1, 77 n, D), of equal lengths."""
    import torch

    encoders = [pipeline.text_encoder]
    if getattr(pipeline, "text_encoder_2", None) is not None:
        encoders.append(pipeline.text_encoder_2)
    with torch.no_grad():
        provider = _provider(pipeline, encoders)
        wanted, unwanted = (_embedded(provider, text) for text in (prompt, negative_prompt))
        wanted, unwanted = _pad_embeds(provider, wanted, unwanted)
        found = {"prompt_embeds": wanted, "negative_prompt_embeds": unwanted}
        if len(encoders) > 1:
            found["pooled_prompt_embeds"] = _pooled(pipeline, prompt)
            found["negative_pooled_prompt_embeds"] = _pooled(pipeline, negative_prompt)
        return found


def supports_weighting(pipeline: Any) -> bool:
    """Whether the pipeline's words go through CLIP alone, as in Stable Diffusion and SDXL."""
    return type(pipeline).__name__.startswith("StableDiffusion") and not hasattr(
        pipeline, "text_encoder_3"
    )


def _provider(pipeline: Any, encoders: list[Any]) -> Any:
    from compel.embeddings_provider import (
        EmbeddingsProvider,
        EmbeddingsProviderMulti,
        ReturnedEmbeddingsType,
        SplitLongTextMode,
    )

    options = {"truncate": False, "split_long_text_mode": SplitLongTextMode.PHRASES}
    if len(encoders) == 1:
        return EmbeddingsProvider(pipeline.tokenizer, encoders[0], **options)
    return EmbeddingsProviderMulti(
        [pipeline.tokenizer, pipeline.tokenizer_2],
        encoders,
        returned_embeddings_type=ReturnedEmbeddingsType.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED,
        **options,
    )


def _embedded(provider: Any, prompt: str) -> torch.Tensor:
    chunks = split_chunks(prompt)
    found: torch.Tensor = provider.get_embeddings_for_weighted_prompt_fragments(
        [[text for text, _ in chunk] for chunk in chunks],
        [[weight for _, weight in chunk] for chunk in chunks],
        device=provider.text_encoder.device,
    )
    return found


def _pad_embeds(provider: Any, *embeddings: torch.Tensor) -> list[torch.Tensor]:
    import torch

    longest = max(embedding.shape[1] for embedding in embeddings)
    empty = _embedded(provider, "")
    return [
        torch.cat([embedding] + [empty] * ((longest - embedding.shape[1]) // empty.shape[1]), dim=1)
        for embedding in embeddings
    ]


def _pooled(pipeline: Any, prompt: str) -> torch.Tensor:
    """The second encoder's summary of the first 77 tokens, as SDXL takes it."""
    tokenizer, encoder = pipeline.tokenizer_2, pipeline.text_encoder_2
    tokens = tokenizer(
        strip_weights(prompt),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    found: torch.Tensor = encoder(tokens.input_ids.to(encoder.device)).text_embeds
    return found


def _weight(text: str) -> float:
    weight = float(text.strip(":)").strip())
    if not 0 <= weight <= MAX_WEIGHT:
        raise InvalidInput("prompt", text, f"weights from 0 to {MAX_WEIGHT:g}")
    return weight


def _multiply(pieces: list[list[Any]], factor: float) -> None:
    for piece in pieces:
        piece[1] *= factor


def _join(pieces: list[list[Any]]) -> Fragments:
    """Neighbours of equal weight become one text."""
    joined: Fragments = []
    for text, weight in pieces:
        if joined and joined[-1][1] == weight:
            joined[-1] = (joined[-1][0] + text, weight)
        else:
            joined.append((text, weight))
    return joined or [("", 1.0)]
