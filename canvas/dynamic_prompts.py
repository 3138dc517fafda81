"""Dynamic prompts: `{red|blue} fox` and `__animals__` stand for several prompts."""

from __future__ import annotations

import re
import unicodedata
from fnmatch import fnmatchcase
from itertools import permutations, product
from math import perm
from pathlib import Path

from canvas.errors import InvalidInput, LazyMessage
from canvas.files import read_text_file, split_lines
from canvas.validation import MAX_TEXT

MAX_PROMPTS = 100
MAX_DEPTH = 5
MAX_FILE_BYTES = 1_000_000  # of a wildcard list
# An escaped special character, or a wildcard.
TOKEN = re.compile(r"\\([{}|_\\])|__(?=[^\s_])((?:(?!__)[^{}|<>:\\\n]){1,100}?)(?<![\s_])__(?!_)")
WORDS = re.compile(r"[^\\{}|_$]+")
SPECIAL = re.compile(r"[{}|_\\]")
SYNTAX = re.compile(r"\{|__|\\[{}|_\\]")
# `2$$`, `1-3$$` or `2$$ and $$` in front of the alternatives, `0.5::` in front of one.
CHOOSE = re.compile(r"\s*(?P<low>\d{0,2})(?P<range>-(?P<high>\d{0,2}))?\$\$(?:(?P<separator>[^|{}$]*)\$\$)?")
PROBABILITY = re.compile(r"\s*\d+(?:\.\d+)?::")
VARIABLE = re.compile(r"\$\{[^}]*\}?")


def expand(prompt: str, wildcards_dir: Path) -> list[str]:
    """All prompts that a dynamic prompt stands for, in order and without duplicates.

    `{a|b}` is replaced by each alternative, `{2$$a|b|c}` by each two of them; both may be nested.
    `__name__` is replaced by each line of `name.txt`, which may be dynamic, too; `__folder/*__` by
    those of several lists. Braces without a bar stay; a backslash escapes these characters. Raises
    InvalidInput for a missing list, for variables and for more than MAX_PROMPTS prompts.
    """
    if not SYNTAX.search(prompt) or len(prompt) > MAX_TEXT:  # which no request accepts
        return [prompt]
    prompts = _parse_sequence(_PromptReader(prompt, Wildcards(wildcards_dir)), depth=0)
    return list(dict.fromkeys(prompts))


def expand_pairs(prompt: str, negative_prompt: str, wildcards_dir: Path) -> list[tuple[str, str]]:
    """Each prompt with each negative prompt; raises what `expand` raises."""
    pairs = list(product(expand(prompt, wildcards_dir), expand(negative_prompt, wildcards_dir)))
    _check_count(len(pairs))
    return pairs


def escape(prompt: str) -> str:
    """The dynamic prompt that stands for this prompt alone."""
    return SPECIAL.sub(r"\\\g<0>", prompt) if SYNTAX.search(prompt) else prompt


class Wildcards:
    """The lists in a folder and its sub folders, by relative path without the suffix."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, Path] | None = None

    @property
    def files(self) -> dict[str, Path]:
        if self._files is None:
            paths = sorted(path for path in self._folder.rglob("*") if path.suffix.lower() == ".txt" and path.is_file())
            self._files = {
                _normalize(path.relative_to(self._folder).with_suffix("").as_posix()): path for path in paths
            }
        return self._files

    def find(self, name: str) -> list[Path]:
        """The lists of that path or pattern, or else of that name in any sub folder."""
        wanted = _normalize(name.strip()).removesuffix(".txt")
        if wanted in self.files:
            return [self.files[wanted]]
        return [
            path
            for known, path in self.files.items()
            if fnmatchcase(known, wanted.replace("[", "[[]")) or known.rpartition("/")[2] == wanted
        ]

    def read(self, name: str) -> list[str]:
        """The lines of the lists of that name, without comments."""
        paths = self.find(name)
        if not paths:
            message = LazyMessage(
                'There is no wildcard list "{name}" (existing: {names}). Add {file} to the data folder.',
                name=name,
                names=", ".join(self.files) or LazyMessage("none"),
                file=f"wildcards/{name}.txt",
            )
            raise InvalidInput("prompt", f"__{name}__", message=message)
        lines = [line.strip() for path in paths for line in split_lines(_read_list(path))]
        found = [line for line in lines if line and not line.startswith("#")]
        if not found:
            message = LazyMessage('The wildcard list "{name}" is empty.', name=name)
            raise InvalidInput("prompt", f"__{name}__", message=message)
        return found


def _normalize(name: str) -> str:
    # macOS decomposes accents in file names.
    return unicodedata.normalize("NFC", name).casefold()


def _read_list(path: Path) -> str:
    if path.stat().st_size > MAX_FILE_BYTES:
        message = LazyMessage(
            'The wildcard list "{name}" is larger than {number} bytes.', name=path.stem, number=f"{MAX_FILE_BYTES:,}"
        )
        raise InvalidInput("prompt", path.name, message=message)
    try:
        return read_text_file(path)
    except UnicodeDecodeError as error:
        message = LazyMessage(
            'The wildcard list "{name}" is neither UTF-8 nor UTF-16 text. Save it as UTF-8.', name=path.stem
        )
        raise InvalidInput("prompt", path.name, message=message) from error


class _PromptReader:
    """A prompt and the position of the next character."""

    def __init__(self, prompt: str, wildcards: Wildcards) -> None:
        self.prompt, self.position = prompt, 0
        self.wildcards = wildcards

    @property
    def next(self) -> str:
        return self.prompt[self.position : self.position + 1]

    def match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """Read what matches the pattern."""
        found = pattern.match(self.prompt, self.position)
        if found:
            self.position = found.end()
        return found

    def take(self, depth: int) -> list[str]:
        """Read one token: the alternatives that it stands for."""
        if variable := VARIABLE.match(self.prompt, self.position):
            text = "Variables such as {syntax} are not supported in prompts. Write the text itself."
            raise InvalidInput("prompt", self.prompt, message=LazyMessage(text, syntax=variable[0]))
        if words := self.match(WORDS):
            return [words[0]]
        token = self.match(TOKEN)
        if token is None:
            self.position += 1
            return [self.prompt[self.position - 1]]
        if token[1]:
            return [token[1]]
        in_tag = self.prompt.rfind("<", 0, token.start()) > self.prompt.rfind(">", 0, token.start())
        if in_tag and not self.wildcards.find(token[2]):
            return [token[0]]  # part of the name of a LoRA
        return _expand_list(token[2], self.wildcards, depth)


def _expand_list(name: str, wildcards: Wildcards, depth: int) -> list[str]:
    lines = wildcards.read(name)
    _check_count(len(lines))
    _check_depth(depth, name)
    found: list[str] = []
    for line in lines:
        reader = _PromptReader(line, wildcards)
        reader.match(PROBABILITY)
        found += _parse_sequence(reader, depth + 1, ends="")
        _check_count(len(found))
    return found


def _parse_sequence(reader: _PromptReader, depth: int, ends: str | None = None) -> list[str]:
    """Read to the end, or inside braces to the next bar or closing brace."""
    ends = ("|}" if depth else "") if ends is None else ends
    parts: list[list[str]] = []
    count = 1
    while reader.next and reader.next not in ends:
        parts.append(_parse_braces(reader, depth) if reader.next == "{" else reader.take(depth))
        count *= len(parts[-1])
        _check_count(count)
    return ["".join(chosen) for chosen in product(*parts)]


def _parse_braces(reader: _PromptReader, depth: int) -> list[str]:
    start = reader.position
    _check_depth(depth, reader.prompt)
    reader.position += 1
    choose = reader.match(CHOOSE)
    choices: list[list[str]] = []
    while True:
        reader.match(PROBABILITY)
        choices.append(_parse_sequence(reader, depth + 1))
        if reader.next != "|":
            break
        reader.position += 1
    if reader.next != "}":  # unbalanced: an ordinary character
        reader.position = start + 1
        return ["{"]
    reader.position += 1
    if len(choices) == 1 and choose is None:
        return ["{" + text + "}" for text in choices[0]]
    found = [text.strip() for choice in choices for text in choice]
    if choose:
        return _combinations(found, choose)
    _check_count(len(found))
    return found


def _combinations(texts: list[str], choose: re.Match[str]) -> list[str]:
    """Each ordered choice of so many texts."""
    low = int(choose["low"] or (0 if choose["range"] else 1))
    high = min(int(choose["high"] or len(texts)) if choose["range"] else low, len(texts))
    _check_count(sum(perm(len(texts), number) for number in range(low, high + 1)))
    separator = ", " if choose["separator"] is None else choose["separator"]
    found = [separator.join(chosen) for number in range(low, high + 1) for chosen in permutations(texts, number)]
    if not found:
        text = "{syntax} needs at least {number} alternatives."
        raise InvalidInput("prompt", choose[0], message=LazyMessage(text, syntax=choose[0].strip(), number=low))
    return found


def _check_depth(depth: int, value: str) -> None:
    if depth >= MAX_DEPTH:
        message = LazyMessage("Braces and wildcard lists must be nested at most {number} deep.", number=MAX_DEPTH)
        raise InvalidInput("prompt", value, message=message)


def _check_count(number: int) -> None:
    if number > MAX_PROMPTS:
        message = LazyMessage(
            "A dynamic prompt must stand for at most {allowed} prompts (got {number}).",
            allowed=MAX_PROMPTS,
            number=f"{number:,}",
        )
        raise InvalidInput("prompt", number, message=message)
