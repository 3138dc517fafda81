"""The words that go to the model: style and trigger words added, and what it would cut off."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canvas.catalog import ModelSpec
from canvas.errors import ModelCorrupted
from canvas.models.loras import parse_lora_tags
from canvas.request import GenerationRequest
from canvas.styles import STYLES

if TYPE_CHECKING:
    from canvas.models.download import LocalModel

CLIP_LIMIT = 77
# What CLIP's tokenizer begins with: runs of letters, single digits, runs of other signs.
WORD = re.compile(r"'(?:s|t|re|ve|m|ll|d)\b|[^\W\d_]+|\d|[^\s\w]+|_", re.IGNORECASE)
LETTERS_A_TOKEN = 7


@dataclass(frozen=True)
class TokenBudget:
    """How a prompt fits the model: `kept + cut` is the text, `cut` is what it never sees.

    `tokens` and `limit` leave out the two marks of start and end.
    """

    tokens: int
    limit: int
    kept: str
    truncated: str


def enhance_prompt(request: GenerationRequest, spec: ModelSpec) -> str:
    """Trigger words, the prompt, the style's words; none is said twice.

    Names of LoRAs, `<lora:name:0.8>`, are not for the model to read.
    """
    prompt = _joined(parse_lora_tags(request.prompt)[0], STYLES[request.style].words)
    if not spec.trigger_words or _contains(prompt, spec.trigger_words):
        return prompt
    return f"{spec.trigger_words}, {prompt}"


def enhance_negative_prompt(request: GenerationRequest) -> str:
    """The negative prompt and the style's negative words; none is said twice."""
    return _joined(request.negative_prompt, STYLES[request.style].negative_words)


def truncate_to_limit(text: str, local: LocalModel, spec: ModelSpec) -> TokenBudget:
    """The exact fit, by the model's own tokenizer; an estimate where it brings none."""
    folder = local.path.with_suffix("") if local.path.is_file() else local.path
    folder = folder / "tokenizer"
    if not folder.is_dir():
        return estimate_tokens(text)
    return _fit(text, _tokenizer(folder), spec)


def text_within_limit(text: str, tokenizer: Any, spec: ModelSpec) -> str:
    """The text as far as the model reads it; its tokenizer may go on."""
    return _fit(text, tokenizer, spec).kept


def _fit(text: str, tokenizer: Any, spec: ModelSpec) -> TokenBudget:
    longest = int(tokenizer.model_max_length)  # absurdly large where the folder does not say
    limit = spec.prompt_tokens or (longest if longest < 100_000 else CLIP_LIMIT) - 2
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return _split(text, encoded["offset_mapping"], limit)


def estimate_tokens(text: str) -> TokenBudget:
    """About how the text fits CLIP's 77 tokens: a token a sign, and one a few letters."""
    spans: list[tuple[int, int]] = []
    for word in WORD.finditer(text):
        spans += [word.span()] * (1 + (len(word.group()) - 1) // LETTERS_A_TOKEN)
    return _split(text, spans, CLIP_LIMIT - 2)


def _split(text: str, spans: list[tuple[int, int]], limit: int) -> TokenBudget:
    """Cut after the last token that fits; a character half of whose tokens fit is cut whole."""
    if len(spans) <= limit:
        return TokenBudget(len(spans), limit, text, "")
    at = min(spans[limit - 1][1], spans[limit][0])
    return TokenBudget(len(spans), limit, text[:at], text[at:])


@lru_cache(maxsize=4)
def _tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder; reads its files only, torch is not needed."""
    from transformers import CLIPTokenizer

    try:
        return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelCorrupted(
            f"The tokenizer of {folder.parent.name} cannot be read. Download the model again."
        ) from error


def _joined(text: str, words: str) -> str:
    """The text and those of the comma-separated words that it does not hold yet."""
    missing = [word for word in words.split(", ") if word and not _contains(text, word)]
    return ", ".join([part for part in (text.rstrip(" ,"), *missing) if part])


def _contains(text: str, words: str) -> bool:
    found = re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text, re.IGNORECASE)
    return found is not None
