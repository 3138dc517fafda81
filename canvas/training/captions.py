"""The words of prompts: places, colours, articles and plurals. Lists of words are in `words.toml`."""

import tomllib
from itertools import takewhile
from pathlib import Path
from typing import Any

WORD_LISTS: dict[str, Any] = tomllib.loads(Path(__file__).with_name("words.toml").read_text(encoding="utf-8"))
PLACE_PHRASES = {place: tuple(phrases.split(", ")) for place, phrases in WORD_LISTS["phrases"].items()}
COLOUR_PHRASES = ("on a {} background", "on {}", "{} background", "on a plain {} background")
POSITIONS = {"left": "on the left", "right": "on the right"}
DEFAULT_STYLE = "3d"  # of prompts that name no style
PLURALS, UNCOUNTABLE = (frozenset(WORD_LISTS["nouns"][kind].split(", ")) for kind in ("plural", "uncountable"))
IRREGULAR_PLURALS = dict(reversed(pair.split(" ")) for pair in WORD_LISTS["plurals"]["en"].split(", "))
SINGULAR_ENDINGS = ("ss", "us", "is", "ceros")
# The words before these are the noun: `piece of cake`, `heart with a ribbon`.
PREPOSITIONS = frozenset(WORD_LISTS["nouns"]["prepositions"].split(", "))


def in_style(name: str, style: str) -> str:
    """A thing in a style, as prompts of the model name it: `fox`, `flat fox`."""
    return name if style == DEFAULT_STYLE else f"{style} {name}"


def article(words: str) -> str:
    """The words with an indefinite article (`a fox`, `an owl`); none for plurals and mass nouns."""
    last = _noun(words).rsplit(maxsplit=1)[-1]
    if _is_plural(last) or {last, words} & UNCOUNTABLE:
        return words
    is_vowel = words.startswith(("a", "e", "i", "o", "u", "hour", "x-")) and not words.startswith(("uni", "eu"))
    return f"{'an' if is_vowel else 'a'} {words}"


def _noun(words: str) -> str:
    """The words up to the first preposition."""
    first, *rest = words.split()
    return " ".join([first, *takewhile(lambda word: word not in PREPOSITIONS, rest)])


def _is_plural(word: str) -> bool:
    return word in PLURALS or (word.endswith("s") and not word.endswith(SINGULAR_ENDINGS))


def plural(words: str) -> str:
    """The plural of the noun, by common rules: `red apples`, `pieces of cake`."""
    noun = _noun(words)
    head, _, last = noun.rpartition(" ")
    if _is_plural(last):
        many = last
    elif last in IRREGULAR_PLURALS and not last.endswith("us"):  # octopuses
        many = IRREGULAR_PLURALS[last]
    elif last.endswith(("x", "ch", "sh", *SINGULAR_ENDINGS)):
        many = f"{last}es"
    elif last.endswith("y") and last[-2:-1] not in "aeiou":
        many = f"{last[:-1]}ies"
    else:
        many = f"{last}s"
    return f"{head} {many}".strip() + words.removeprefix(noun)
