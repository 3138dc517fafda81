"""Prompts that stand for many: `{red|blue} fox`, `__animals__`, and all that they combine to."""

from __future__ import annotations

import re
from itertools import product
from math import prod
from pathlib import Path

from canvas.errors import InvalidInput, LazyMessage

MAX_PROMPTS = 100
MAX_DEPTH = 5
MAX_FILE_BYTES = 1_000_000  # bytes of a list of words
# An escaped sign, or a list by its name.
TOKEN = re.compile(r"\\([{}|_\\])|__([A-Za-z0-9][A-Za-z0-9 -]*(?:_[A-Za-z0-9 -]+)*)__")


def expand(prompt: str, wildcards: Path) -> list[str]:
    """All prompts that it stands for, in order; `wildcards` is the folder of the lists.

    `{a|b}` takes each in turn, also within another; `__name__` takes each line of
    `name.txt`. Braces without a bar stay, and a backslash keeps any of these signs as it is.
    Raises InvalidInput for a list that is not there, and for more than MAX_PROMPTS.
    """
    prompts = _parse_sequence(_PromptReader(prompt, wildcards), depth=0)
    return list(dict.fromkeys(prompts))


class _PromptReader:
    """The prompt and how far it has been read."""

    def __init__(self, prompt: str, wildcards: Path) -> None:
        self.prompt, self.at = prompt, 0
        self.wildcards = wildcards

    @property
    def next(self) -> str:
        return self.prompt[self.at : self.at + 1]

    def take(self) -> list[str]:
        """What stands at this place, a list's lines where one is named."""
        token = TOKEN.match(self.prompt, self.at)
        if token is None:
            self.at += 1
            return [self.prompt[self.at - 1]]
        self.at = token.end()
        return [token[1]] if token[1] else _read_wildcard(token[2], self.wildcards)


def _parse_sequence(reader: _PromptReader, depth: int) -> list[str]:
    """Everything up to the end, or within braces up to a bar or the closing one."""
    parts: list[list[str]] = []
    while reader.next and not (depth and reader.next in "|}"):
        parts.append(_parse_braces(reader, depth) if reader.next == "{" else reader.take())
        _check_count(prod(map(len, parts)))
    return ["".join(chosen) for chosen in product(*parts)]


def _parse_braces(reader: _PromptReader, depth: int) -> list[str]:
    start = reader.at
    if depth >= MAX_DEPTH:
        raise InvalidInput("prompt", "{" * depth, f"at most {MAX_DEPTH} braces in each other")
    reader.at += 1
    choices = [_parse_sequence(reader, depth + 1)]
    while reader.next == "|":
        reader.at += 1
        choices.append(_parse_sequence(reader, depth + 1))
    if reader.next != "}":  # never closed: a brace like any other sign
        reader.at = start + 1
        return ["{"]
    reader.at += 1
    if len(choices) == 1:
        return ["{" + text + "}" for text in choices[0]]
    found = [text.strip() for choice in choices for text in choice]
    _check_count(len(found))
    return found


def _read_wildcard(name: str, wildcards: Path) -> list[str]:
    path = wildcards / f"{name}.txt"
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in wildcards.glob("*.txt"))) or "none yet"
        lists = LazyMessage("a list in the folder wildcards (there are: {names})", names=there)
        raise InvalidInput("prompt", f"__{name}__", lists)
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InvalidInput("prompt", f"__{name}__", f"a list of at most {MAX_FILE_BYTES:,} bytes")
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    lines = [line.strip() for line in text.splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise InvalidInput("prompt", f"__{name}__", "a list with at least one line")
    return found


def _check_count(number: int) -> None:
    if number > MAX_PROMPTS:
        most = LazyMessage("at most {number} pictures of one prompt", number=MAX_PROMPTS)
        raise InvalidInput("prompt", f"{number:,} combinations", most)
