"""Prompts as the model gets them: style and trigger words added, cut at the token limit."""

from __future__ import annotations

import logging
import re
import tempfile
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from canvas import prompt_reading
from canvas.catalog import ModelSpec
from canvas.errors import InvalidInput, ModelCorrupted, ModelUnsupported
from canvas.models import single_file
from canvas.models.capabilities import read_config
from canvas.models.download import LocalModel
from canvas.prompt_syntax import has_weights, parse_lora_tags, split_chunks, strip_weights
from canvas.request import RANDOM_SEED, GenerationRequest
from canvas.styles import STYLES
from canvas.vocabulary import vocabulary_of

logger = logging.getLogger(__name__)

CLIP_LIMIT = 77
# How CLIP's tokenizer splits a text first: letters, single digits, other signs.
WORD = re.compile(r"'(?:s|t|re|ve|m|ll|d)\b|[^\W\d_]+|\d|[^\s\w]+|_", re.IGNORECASE)
LETTERS_PER_TOKEN = 7


@dataclass(frozen=True)
class TokenBudget:
    """How a prompt fits the model's token limit; `kept + truncated` is the prompt.

    `tokens` and `limit` do not count the start and end tokens.
    """

    tokens: int
    limit: int
    kept: str
    truncated: str


def enhance_prompt(request: GenerationRequest, spec: ModelSpec) -> str:
    """Trigger words, the prompt and the style's words, without repeating any.

    LoRA tags, `<lora:name:0.8>`, are removed.
    """
    prompt = _append_missing(parse_lora_tags(request.prompt)[0], STYLES[request.style].words)
    if not spec.trigger_words or _contains(prompt, spec.trigger_words):
        return prompt
    return f"{spec.trigger_words}, {prompt}"


def understand(
    request: GenerationRequest, spec: ModelSpec, source_prompt: str = ""
) -> prompt_reading.Understanding | None:
    """How a model with a vocabulary reads the prompt and the words of the style; None for any other model.

    Also None with invalid prompt weights. Such a model has no weights of words: they are left out.
    Things stay where `source_prompt`, that of an image that is edited, had them.
    """
    vocabulary = vocabulary_of(spec)
    if vocabulary is None:
        return None
    prompt = parse_lora_tags(request.prompt)[0]
    weighted = request.prompt_weighting and has_weights(prompt)
    if request.prompt_weighting:
        try:
            split_chunks(prompt)
        except InvalidInput:
            return None
        prompt = strip_weights(prompt)
    # An image that is edited has a background already
    varies = request.task == "text_to_image" and request.seed != RANDOM_SEED
    text = _append_missing(prompt, STYLES[request.style].words)
    seed = request.seed if varies else None
    reading = prompt_reading.understand(vocabulary, text, seed=seed, like=source_prompt)
    return replace(reading, left_out=(*reading.left_out, "weights")) if weighted else reading


def enhance_negative_prompt(request: GenerationRequest) -> str:
    """The negative prompt and the style's negative words, without repeating any."""
    return _append_missing(request.negative_prompt, STYLES[request.style].negative_words)


def without_weights(request: GenerationRequest) -> GenerationRequest:
    """The request without the syntax of prompt weights; LoRA tags stay."""
    prompt, negative_prompt = strip_weights(request.prompt), strip_weights(request.negative_prompt)
    return replace(request, prompt=prompt, negative_prompt=negative_prompt, prompt_weighting=False)


def truncate_to_limit(text: str, local: LocalModel, spec: ModelSpec) -> TokenBudget:
    """Count and split with the model's tokenizer, or an estimate if it has none that can be read."""
    name, limit = "tokenizer", spec.prompt_tokens
    with suppress(ModelCorrupted, ModelUnsupported):  # loading it raises the error
        capabilities = single_file.read_local(local.path, spec.name)
        name, limit = capabilities.tokenizer, limit or capabilities.prompt_tokens
    folder = local.path.with_suffix("") if local.path.is_file() else local.path
    tokenizer = _load_tokenizer(folder / name)
    if tokenizer is None:
        return estimate_tokens(text, limit)
    return _tokenize(text, tokenizer, limit)


def text_within_limit(text: str, tokenizer: Any, spec: ModelSpec) -> str:
    """The text up to the model's token limit, which may be less than its tokenizer's."""
    return _tokenize(text, tokenizer, spec.prompt_tokens).kept


def _tokenize(text: str, tokenizer: Any, limit: int = 0) -> TokenBudget:
    max_length = int(tokenizer.model_max_length)  # about 1e30 if it is not configured
    limit = limit or (max_length if max_length < 100_000 else CLIP_LIMIT) - 2
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return _split(text, encoded["offset_mapping"], limit)


def estimate_tokens(text: str, limit: int = 0) -> TokenBudget:
    """Estimate the tokens: one per sign, one per few letters of a word; by default for CLIP's limit of 77."""
    spans: list[tuple[int, int]] = []
    for word in WORD.finditer(text):
        spans += [word.span()] * (1 + (len(word.group()) - 1) // LETTERS_PER_TOKEN)
    return _split(text, spans, limit or CLIP_LIMIT - 2)


def _split(text: str, spans: list[tuple[int, int]], limit: int) -> TokenBudget:
    """Cut after the last token that fits, and before a character or word whose tokens do not all fit."""
    if len(spans) <= limit:
        return TokenBudget(len(spans), limit, text, "")
    first_truncated = spans[limit][0]
    end = min(first_truncated, max((end for start, end in spans[:limit] if start < first_truncated), default=0))
    return TokenBudget(len(spans), limit, text[:end], text[end:])


@lru_cache(maxsize=4)
def _load_tokenizer(folder: Path) -> Any:
    """The tokenizer in the folder, of any class; None if it cannot be read or has no offsets."""
    if not folder.is_dir():
        return _shipped_tokenizer() if not folder.parent.is_dir() else None
    try:
        import transformers

        name = read_config(folder).get("tokenizer_class", "CLIPTokenizer")
        if name not in ("CLIPTokenizer", "PreTrainedTokenizerFast"):
            name = "AutoTokenizer"  # whose import takes a second more
        tokenizer = getattr(transformers, name).from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, ImportError, AttributeError) as error:
        logger.warning("The tokenizer %s cannot be read: %s", folder, error)
        return None
    return tokenizer if tokenizer.is_fast else None


@lru_cache(maxsize=1)
def _shipped_tokenizer() -> Any:
    """CLIP's, for single files."""
    from transformers import CLIPTokenizer

    with tempfile.TemporaryDirectory() as folder:
        single_file.write_tokenizer(Path(folder) / "tokenizer")
        return CLIPTokenizer.from_pretrained(str(Path(folder) / "tokenizer"))


def _append_missing(text: str, words: str) -> str:
    """Append those of the comma-separated words that the text does not contain."""
    missing = [word for word in words.split(", ") if word and not _contains(text, word)]
    return ", ".join([part for part in (text.rstrip(" ,"), *missing) if part])


def _contains(text: str, words: str) -> bool:
    return bool(re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text, re.IGNORECASE))
