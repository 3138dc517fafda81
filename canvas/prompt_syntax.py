"""The syntax inside prompts: weights, `BREAK` and LoRA tags.

`dynamic_prompts` expands braces and wildcard lists before this module sees a prompt.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from canvas.errors import InvalidInput, LazyMessage

Fragments = list[tuple[str, float]]

# A decimal point or comma, and a digit on at least one side of it.
NUMBER = r"[+-]?(?:\d+(?:[.,]\d*)?|[.,]\d+)"

# Weights. The syntax of AUTOMATIC1111's web UI: its wiki, "Features: Attention/emphasis".
FACTORS = {"(": 1.1, "[": 1 / 1.1}  # of the weight, by bracket
OPENING = {")": "(", "]": "["}
MAX_WEIGHT = 10.0
TOKEN = re.compile(
    rf"\\(?P<escaped>[()\[\]\\])|(?P<weight>:\s*{NUMBER}\s*\))|(?P<bracket>[()\[\]])"
    r"|(?P<separator>\s*\bBREAK\b\s*)|(?P<text>(?:(?!\bBREAK\b)[^\\()\[\]:\s])+|\s+|.)",
    re.DOTALL,
)
# `[from:to:0.5]`, `[to:5]`, `[from::5]`, `[a|b]`: other prompts at some of the steps.
PROMPT_EDITING = re.compile(rf"(?<!\\)\[(?:[^\[\]]*:\s*{NUMBER}\s*|[^\[\]|]*\|[^\[\]]*)\]")

# What is hardly meant as words: `(fox:1.3)` and `BREAK`.
EXPLICIT_WEIGHT = re.compile(rf"(?<!\\)\([^()]*:\s*{NUMBER}\s*\)|\bBREAK\b")

# LoRA tags
LORA_TAG = re.compile(r"<\s*(?P<kind>lora|lyco|lycoris|hypernet)\s*:(?P<arguments>[^<>]*)>", re.IGNORECASE)
LORA_KINDS = ("lora", "lyco", "lycoris")
LORA_FILE = re.compile(r".*/.*\.(safetensors|bin|pt)", re.IGNORECASE)
MAX_LORA_WEIGHT = 10.0


@dataclass(frozen=True)
class LoraWeight:
    """The weights of a LoRA: on the UNet or transformer, and on the text encoders."""

    model: float
    text_encoder: float

    def __add__(self, other: LoraWeight) -> LoraWeight:
        """The weight of a LoRA that is named twice."""
        return LoraWeight(self.model + other.model, self.text_encoder + other.text_encoder)

    def __bool__(self) -> bool:
        return bool(self.model or self.text_encoder)


LoraTags = tuple[tuple[str, LoraWeight], ...]


def split_chunks(prompt: str) -> list[Fragments]:
    """The fragments of each part between `BREAK`s, without blank ones; brackets may contain `BREAK`.

    Unclosed brackets extend to the end. Raises InvalidInput for a weight outside 0 to MAX_WEIGHT, and
    for prompt editing.
    """
    chunks = [[(text, weight) for text, weight in chunk if text.strip()] for chunk in _parse(prompt)]
    return [chunk for chunk in chunks if chunk] or [[("", 1.0)]]


def strip_weights(prompt: str) -> str:
    """The prompt without the syntax of weights."""
    return " ".join("".join(text for text, _ in chunk) for chunk in _parse(prompt))


def has_weights(prompt: str) -> bool:
    """Whether a part of the prompt has another weight than 1; also for invalid weights."""
    try:
        return any(weight != 1 for chunk in split_chunks(prompt) for _, weight in chunk)
    except InvalidInput:
        return True


def has_weight_syntax(prompt: str) -> bool:
    """Whether the prompt means something else with prompt weights than without."""
    try:
        return strip_weights(prompt) != prompt
    except InvalidInput:
        return True


def weights_note(prompt: str, *, weighting: bool) -> str:
    """A note if the prompt contains weights that are read as words."""
    match = None if weighting else EXPLICIT_WEIGHT.search(prompt)
    return f"{match[0][:60]} was read as words, because prompt weights are off" if match else ""


def _parse(prompt: str) -> list[Fragments]:
    """The fragments between `BREAK`s."""
    if editing := PROMPT_EDITING.search(prompt):
        text = "{syntax} changes the prompt during the steps, which is not supported. Choose one of the texts."
        raise InvalidInput("prompt", prompt, message=LazyMessage(text, syntax=editing[0]))
    parser = _WeightParser()
    for match in TOKEN.finditer(prompt):
        bracket = match["bracket"]
        if bracket in ("(", "["):
            parser.open(bracket)
        elif bracket:
            parser.close(OPENING[bracket], FACTORS[OPENING[bracket]], bracket)
        elif match["weight"]:
            parser.close("(", _parse_weight(match["weight"]), match["weight"])
        elif match["separator"]:
            parser.fragments.append([None, 1.0])
        else:
            parser.fragments.append([match["escaped"] or match[0], 1.0])
    return _merge(parser.finish())


class _WeightParser:
    """Fragments, each a text and its weight; the text is None for a `BREAK`."""

    def __init__(self) -> None:
        self.fragments: list[list[Any]] = []
        self._opened: list[tuple[str, int]] = []  # brackets with the index of their first fragment

    def open(self, bracket: str) -> None:
        self._opened.append((bracket, len(self.fragments)))

    def close(self, bracket: str, factor: float, text: str) -> None:
        """Weight the fragments since the bracket; `text` is a word if none is open."""
        matching = [index for index, (kind, _) in enumerate(self._opened) if kind == bracket]
        if matching:
            _, start = self._opened.pop(matching[-1])
            self._multiply(start, factor)
        else:
            self.fragments.append([text, 1.0])

    def finish(self) -> list[list[Any]]:
        """Close the open brackets."""
        for kind, start in reversed(self._opened):
            self._multiply(start, FACTORS[kind])
        return self.fragments

    def _multiply(self, start: int, factor: float) -> None:
        for fragment in self.fragments[start:]:
            fragment[1] *= factor


def _parse_weight(syntax: str) -> float:
    weight = _number(syntax.strip(":)").strip())
    if not 0 <= weight <= MAX_WEIGHT:
        text = "Weights in the prompt must be from 0 to {maximum} (got {value})."
        raise InvalidInput("prompt", syntax, message=LazyMessage(text, maximum=f"{MAX_WEIGHT:g}", value=f"{weight:g}"))
    return weight


def _number(text: str) -> float:
    return float(text.replace(",", "."))


def _merge(fragments: list[list[Any]]) -> list[Fragments]:
    """Join neighbours of equal weight, in one list for each part between the separators."""
    chunks: list[Fragments] = [[]]
    for text, weight in fragments:
        if text is None:
            chunks.append([])
        elif chunks[-1] and chunks[-1][-1][1] == weight:
            chunks[-1][-1] = (chunks[-1][-1][0] + text, weight)
        else:
            chunks[-1].append((text, weight))
    return chunks


def parse_lora_tags(prompt: str) -> tuple[str, LoraTags]:
    """The prompt without its LoRA tags, and their names and weights.

    `<lora:name>`, `<lora:name:0.8>`, `<lora:name:0.5:0.8>` (text encoder, model) and
    `<lora:name:te=0.5:unet=0.8>`. Raises InvalidInput for what else such a tag may contain.
    """
    tags = tuple(_parse_lora_tag(match) for match in LORA_TAG.finditer(prompt))
    if not tags:
        return prompt, ()
    text = re.sub(r"[^\S\n]{2,}", " ", LORA_TAG.sub("", prompt))
    return re.sub(r"(,\s*)+(?=,|$)", "", text).strip(" ,"), tags


def _parse_lora_tag(match: re.Match[str]) -> tuple[str, LoraWeight]:
    if match["kind"].lower() not in LORA_KINDS:
        raise _invalid_tag(match[0], LazyMessage("hypernetworks are not supported"))
    name, *arguments = (part.strip() for part in match["arguments"].split(":"))
    if arguments and LORA_FILE.fullmatch(f"{name}:{arguments[0]}"):
        name = f"{name}:{arguments.pop(0)}"
    if not name:
        raise _invalid_tag(match[0], LazyMessage("the name is missing"))
    positional: list[float] = []
    named: dict[str, float] = {}
    for argument in filter(None, arguments):
        key, equals, value = argument.rpartition("=")
        key = key.strip().lower()
        if (equals and key not in ("te", "unet")) or not re.fullmatch(NUMBER, value.strip()):
            raise _invalid_tag(match[0], LazyMessage("{argument} is not supported", argument=argument))
        weight = _number(value.strip())
        if abs(weight) > MAX_LORA_WEIGHT:
            raise _invalid_tag(match[0], LazyMessage("weights go up to {maximum}", maximum=f"{MAX_LORA_WEIGHT:g}"))
        if equals:
            named[key] = weight
        else:
            positional.append(weight)
    if len(positional) > 2:
        raise _invalid_tag(match[0], LazyMessage("it has more than two weights"))
    text_encoder = named.get("te", positional[0] if positional else 1.0)
    model = named.get("unet", positional[1] if len(positional) > 1 else text_encoder)
    return name, LoraWeight(model, text_encoder)


def _invalid_tag(tag: str, reason: LazyMessage) -> InvalidInput:
    text = "The tag {tag} cannot be used: {reason}. Write it as {example}."
    example = "<lora:name:0.8>"
    return InvalidInput("prompt", tag, message=LazyMessage(text, tag=tag, reason=reason, example=example))
