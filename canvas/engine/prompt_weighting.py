"""Prompt weights, `(word:1.3)`, `[word]`, `BREAK`, and prompts of more than 77 tokens."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from canvas.errors import InvalidInput, LazyMessage

if TYPE_CHECKING:
    import torch

Fragments = list[tuple[str, float]]

FACTORS = {"(": 1.1, "[": 1 / 1.1}  # of the weight, by bracket
OPENING = {")": "(", "]": "["}
MAX_WEIGHT = 10.0
# The syntax of AUTOMATIC1111's web UI: its wiki, "Features: Attention/emphasis".
TOKEN = re.compile(
    r"\\(?P<escaped>[()\[\]\\])|(?P<weight>:\s*[+-]?\d*\.?\d+\s*\))|(?P<bracket>[()\[\]])"
    r"|(?P<text>[^\\()\[\]:]+|.)",
    re.DOTALL,
)
BREAK = re.compile(r"\s*\bBREAK\b\s*")


def parse(prompt: str) -> Fragments:
    """Texts with their weights; unclosed brackets extend to the end.

    Raises InvalidInput for a weight outside 0 to MAX_WEIGHT.
    """
    fragments: list[list[Any]] = []
    opened: list[tuple[str, int]] = []  # brackets with the index of their first fragment

    def close(bracket: str, factor: float, text: str) -> None:
        if not any(kind == bracket for kind, _ in opened):
            fragments.append([text, 1.0])
            return
        last = max(index for index, (kind, _) in enumerate(opened) if kind == bracket)
        _, start = opened.pop(last)
        multiply(start, factor)

    def multiply(start: int, factor: float) -> None:
        for fragment in fragments[start:]:
            fragment[1] *= factor

    for match in TOKEN.finditer(prompt):
        bracket = match["bracket"]
        if bracket in ("(", "["):
            opened.append((bracket, len(fragments)))
        elif bracket:
            close(OPENING[bracket], FACTORS[OPENING[bracket]], bracket)
        elif match["weight"]:
            close("(", _parse_weight(match["weight"]), match["weight"])
        else:
            fragments.append([match["escaped"] or match["text"], 1.0])
    for kind, start in reversed(opened):
        multiply(start, FACTORS[kind])
    return _merge(fragments)


def _parse_weight(syntax: str) -> float:
    weight = float(syntax.strip(":)").strip())
    if not 0 <= weight <= MAX_WEIGHT:
        text = "Weights in the prompt must be from 0 to {maximum} (got {value})."
        raise InvalidInput("prompt", syntax, message=LazyMessage(text, maximum=f"{MAX_WEIGHT:g}", value=f"{weight:g}"))
    return weight


def _merge(fragments: list[list[Any]]) -> Fragments:
    """Join neighbours of equal weight."""
    merged: Fragments = []
    for text, weight in fragments:
        if merged and merged[-1][1] == weight:
            merged[-1] = (merged[-1][0] + text, weight)
        else:
            merged.append((text, weight))
    return merged or [("", 1.0)]


def split_chunks(prompt: str) -> list[Fragments]:
    """The fragments of each part between `BREAK`s, without blank ones."""
    chunks = [parse(part) for part in BREAK.split(prompt)]
    chunks = [[(text, weight) for text, weight in chunk if text.strip()] for chunk in chunks]
    return [chunk for chunk in chunks if chunk] or [[("", 1.0)]]


def strip_weights(prompt: str) -> str:
    """The prompt without the syntax of weights."""
    return " ".join("".join(text for text, _ in parse(part)) for part in BREAK.split(prompt))


def encode_weighted_prompt(pipeline: Any, prompt: str, negative_prompt: str) -> dict[str, Any]:
    """The pipeline's arguments in place of both prompts: embeddings, (1, 77 n, D) each."""
    import torch

    encoders = [pipeline.text_encoder]
    if getattr(pipeline, "text_encoder_2", None) is not None:
        encoders.append(pipeline.text_encoder_2)
    with torch.no_grad():
        provider = _embeddings_provider(pipeline, encoders)
        embeds = [_encode(provider, text) for text in (prompt, negative_prompt)]
        names = ("prompt_embeds", "negative_prompt_embeds")
        arguments = dict(zip(names, _pad_embeds(provider, *embeds), strict=True))
        if len(encoders) > 1:
            arguments["pooled_prompt_embeds"] = _encode_pooled(pipeline, prompt)
            arguments["negative_pooled_prompt_embeds"] = _encode_pooled(pipeline, negative_prompt)
        return arguments


def supports_weighting(pipeline: Any) -> bool:
    """Whether the pipeline uses CLIP text encoders only, as Stable Diffusion and SDXL do."""
    return type(pipeline).__name__.startswith("StableDiffusion") and not hasattr(pipeline, "text_encoder_3")


def _embeddings_provider(pipeline: Any, encoders: list[Any]) -> Any:
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


def _encode(provider: Any, prompt: str) -> torch.Tensor:
    chunks = split_chunks(prompt)
    prompt_embeds: torch.Tensor = provider.get_embeddings_for_weighted_prompt_fragments(
        [[text for text, _ in chunk] for chunk in chunks],
        [[weight for _, weight in chunk] for chunk in chunks],
        device=provider.text_encoder.device,
    )
    return prompt_embeds


def _pad_embeds(provider: Any, *embeds: torch.Tensor) -> list[torch.Tensor]:
    """Append embeddings of the empty prompt until all have the same length."""
    import torch

    longest = max(tensor.shape[1] for tensor in embeds)
    empty = _encode(provider, "")
    return [torch.cat([tensor] + [empty] * ((longest - tensor.shape[1]) // empty.shape[1]), dim=1) for tensor in embeds]


def _encode_pooled(pipeline: Any, prompt: str) -> torch.Tensor:
    """SDXL's pooled embedding: the second encoder's, of the first 77 tokens."""
    tokenizer, encoder = pipeline.tokenizer_2, pipeline.text_encoder_2
    tokens = tokenizer(
        strip_weights(prompt),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    pooled: torch.Tensor = encoder(tokens.input_ids.to(encoder.device)).text_embeds
    return pooled
