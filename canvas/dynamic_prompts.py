"""Dynamic prompts: `{red|blue} fox` and `__animals__` stand for several prompts."""

from __future__ import annotations

import re
from itertools import product
from math import prod
from pathlib import Path

from canvas.errors import InvalidInput, LazyMessage

MAX_PROMPTS = 100
MAX_DEPTH = 5
MAX_FILE_BYTES = 1_000_000  # of a wildcard list
# An escaped special character, or a wildcard.
TOKEN = re.compile(r"\\([{}|_\\])|__([A-Za-z0-9][A-Za-z0-9 -]*(?:_[A-Za-z0-9 -]+)*)__")


def expand(prompt: str, wildcards_dir: Path) -> list[str]:
    """All prompts that a dynamic prompt stands for, in order and without duplicates.

    `{a|b}` is replaced by each alternative and may be nested; `__name__` by each line of
    `name.txt`. Braces without a bar stay; a backslash escapes these characters. Raises
    InvalidInput for a missing list and for more than MAX_PROMPTS prompts.
    """
    prompts = _parse_sequence(_PromptReader(prompt, wildcards_dir), depth=0)
    return list(dict.fromkeys(prompts))


class _PromptReader:
    """A prompt and the position of the next character."""

    def __init__(self, prompt: str, wildcards_dir: Path) -> None:
        self.prompt, self.position = prompt, 0
        self.wildcards_dir = wildcards_dir

    @property
    def next(self) -> str:
        return self.prompt[self.position : self.position + 1]

    def take(self) -> list[str]:
        """Read one token: the alternatives that it stands for."""
        token = TOKEN.match(self.prompt, self.position)
        if token is None:
            self.position += 1
            return [self.prompt[self.position - 1]]
        self.position = token.end()
        return [token[1]] if token[1] else _read_wildcard(token[2], self.wildcards_dir)


def _parse_sequence(reader: _PromptReader, depth: int) -> list[str]:
    """Read to the end, or inside braces to the next bar or closing brace."""
    parts: list[list[str]] = []
    while reader.next and not (depth and reader.next in "|}"):
        parts.append(_parse_braces(reader, depth) if reader.next == "{" else reader.take())
        _check_count(prod(map(len, parts)))
    return ["".join(chosen) for chosen in product(*parts)]


def _parse_braces(reader: _PromptReader, depth: int) -> list[str]:
    start = reader.position
    if depth >= MAX_DEPTH:
        message = LazyMessage("Braces must be nested at most {number} deep.", number=MAX_DEPTH)
        raise InvalidInput("prompt", reader.prompt, message=message)
    reader.position += 1
    choices = [_parse_sequence(reader, depth + 1)]
    while reader.next == "|":
        reader.position += 1
        choices.append(_parse_sequence(reader, depth + 1))
    if reader.next != "}":  # unbalanced: an ordinary character
        reader.position = start + 1
        return ["{"]
    reader.position += 1
    if len(choices) == 1:
        return ["{" + text + "}" for text in choices[0]]
    found = [text.strip() for choice in choices for text in choice]
    _check_count(len(found))
    return found


def _read_wildcard(name: str, wildcards_dir: Path) -> list[str]:
    path, value = wildcards_dir / f"{name}.txt", f"__{name}__"
    if not path.is_file():
        existing = ", ".join(sorted(file.stem for file in wildcards_dir.glob("*.txt")))
        message = LazyMessage(
            'There is no wildcard list "{name}" (existing: {names}). Add {file} to the data folder.',
            name=name,
            names=existing or LazyMessage("none"),
            file=f"wildcards/{name}.txt",
        )
        raise InvalidInput("prompt", value, message=message)
    if path.stat().st_size > MAX_FILE_BYTES:
        number = f"{MAX_FILE_BYTES:,}"
        message = LazyMessage('The wildcard list "{name}" is larger than {number} bytes.', name=name, number=number)
        raise InvalidInput("prompt", value, message=message)
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    lines = [line.strip() for line in text.splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        message = LazyMessage('The wildcard list "{name}" is empty.', name=name)
        raise InvalidInput("prompt", value, message=message)
    return found


def _check_count(number: int) -> None:
    if number > MAX_PROMPTS:
        message = LazyMessage(
            "A dynamic prompt must stand for at most {allowed} prompts (got {number}).",
            allowed=MAX_PROMPTS,
            number=f"{number:,}",
        )
        raise InvalidInput("prompt", number, message=message)
