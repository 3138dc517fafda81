"""The words that a model with a vocabulary knows, and their synonyms in several languages.

The built-in model knows a list of things, places, colours and styles: `vocabulary.json` in its folder.
`synonyms.json` beside it has further words for them in several languages; both are written by
`canvas/training/word_table.py`.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from canvas.catalog import ModelSpec

VOCABULARY, SYNONYMS = "vocabulary.json", "synonyms.json"
ENGLISH = "en"
Kind = Literal[
    "thing", "place", "style", "colour", "count", "size", "position",
    "modifier", "background", "stop", "decor", "negation", "unknown", "break",
]  # fmt: skip
# Sections of synonyms.json with a table of words by meaning, and those with a plain list of words.
MEANINGS: Mapping[str, Kind] = {
    "things": "thing",
    "places": "place",
    "styles": "style",
    "colours": "colour",
    "counts": "count",
    "sizes": "size",
    "positions": "position",
}
PLAIN: Mapping[str, Kind] = {
    "stop": "stop",
    "background": "background",
    "decor": "decor",
    "negations": "negation",
    "not_things": "unknown",  # phrases with the name of a thing that mean something else
}
# Han and Hiragana are written without spaces: each character is a token, a run of Katakana is one.
_SIGNS = r"[,.;:!?、。؛،\n]"
TOKEN = re.compile(
    rf"\d+[.,]\d+|[\u3041-\u309f\u3400-\u9fff]|[\u30a1-\u30ff]+|[^\W_\u3041-\u30ff\u3400-\u9fff]+|{_SIGNS}"
)
BREAK = re.compile(_SIGNS)
ENGLISH_ENDINGS = (("ies", "y"), ("ves", "f"), ("ves", "fe"), ("es", ""), ("s", ""))
ENDINGS: Mapping[str, tuple[str, ...]] = {
    "de": ("e", "n", "en", "er", "ern", "s", "es"),
    "es": ("s", "es"),
    "pt": ("s", "es"),
    "fr": ("s", "x"),
}
PREFIXES: Mapping[str, tuple[str, ...]] = {"ar": ("ال", "وال", "بال", "لل", "و", "ب", "ل")}
MAX_PHRASE = 6  # tokens of a word or phrase
MIN_TYPO_LENGTH, TYPO_SIMILARITY = 6, 0.85


@dataclass(frozen=True)
class Meaning:
    """A word of a language: its kind and the model's name for it; `own` if captions use the word."""

    kind: Kind
    name: str = ""
    own: bool = False


@dataclass(frozen=True)
class Part:
    """A piece of a prompt with its meaning; None if it is not known."""

    text: str
    meaning: Meaning | None
    plural: bool = False


class Vocabulary:
    """The words of a model, in all languages of its table."""

    def __init__(self, words: Mapping[str, Any], synonyms: Mapping[str, Any]) -> None:
        self.things: Mapping[str, Mapping[str, Any]] = words["things"]
        self.places: Mapping[str, Sequence[str]] = words["places"]
        self.styles: Sequence[str] = words["styles"]  # the default first
        self.colours: Sequence[str] = words["colours"]
        self._colour_phrase: str = words["colour_phrase"]
        self._counts: Sequence[str] = words["counts"]
        self.max_things: int = words["max_things"]
        self._hue_step: int = words.get("hue_step", 15)
        self._hues: Mapping[str, int | None] = words.get("hues", {})  # of colours, in degrees
        # By layout the modifiers that shift all things, horizontal and vertical; "" for none
        self.shifts: Mapping[str, Sequence[Sequence[str]]] = words.get("shifts", {})
        self._backgrounds: Mapping[str, Sequence[str]] = words.get("backgrounds", {})
        self._near: Mapping[str, str] = synonyms.get("near", {})
        self._typo_exceptions = frozenset(synonyms.get("typo_exceptions", "").split("|"))
        self._vague = frozenset(synonyms.get("vague", "").split("|"))
        self._plurals: dict[str, str] = dict(synonyms.get("plurals", {}))
        tables = {name: _language_table(sections) for name, sections in synonyms.get("languages", {}).items()}
        english = tables.pop(ENGLISH, {})
        self._add_own_words(english, words)
        self._languages = {ENGLISH: english} | {name: _with_plain_letters(table) for name, table in tables.items()}

    def _add_own_words(self, table: dict[str, list[Meaning]], words: Mapping[str, Any]) -> None:
        """The words of captions, which precede synonyms."""
        own: list[tuple[str, Meaning]] = []
        for name, thing in self.things.items():
            own += [(word, Meaning("thing", name, own=True)) for word in thing["words"]]
            self._plurals.setdefault(key_of(thing["many"]), key_of(name))
        for name, phrases in self.places.items():
            own += [(phrase, Meaning("place", name, own=True)) for phrase in (*phrases, name)]
        own += [(name, Meaning("style", name, own=True)) for name in self.styles]
        own += [(name, Meaning("colour", name, own=True)) for name in self.colours]
        own += [(word, Meaning("count", str(number), own=True)) for number, word in enumerate(self._counts, 2)]
        own += [(word, Meaning("size", word, own=True)) for word in words["sizes"]]
        own += [(phrase, Meaning("position", phrase.rsplit(" ", 1)[-1], own=True)) for phrase in words["positions"]]
        own += [(phrase, Meaning("modifier", phrase, own=True)) for phrase in self._modifiers()]
        # Captions come first, but not names of things such as "orange" before the same colour
        for word, meaning in reversed(own):
            meanings = table.setdefault(key_of(word), [])
            meanings[:] = [meaning, *(other for other in meanings if other.kind != meaning.kind)]

    @cached_property
    def hue_modifiers(self) -> frozenset[str]:
        """The modifiers that recolour a thing: `hue 90`."""
        degrees = range(self._hue_step, 360, self._hue_step) if self._hues else ()
        return frozenset(f"hue {number}" for number in degrees)

    def _modifiers(self) -> Iterator[str]:
        """The modifiers that recolour and shift things."""
        yield from self.hue_modifiers
        yield from filter(None, chain.from_iterable(chain.from_iterable(self.shifts.values())))

    # Reading

    def parts(self, prompt: str) -> list[Part]:
        """The pieces of a prompt with their meanings, in the language that explains most of it."""
        text = unicodedata.normalize("NFKC", prompt)
        tokens = [match.group() for match in TOKEN.finditer(text)]
        parts, language = self._in_likeliest_language(tokens, [key_of(token) or token for token in tokens])
        for index, part in enumerate(parts if language == ENGLISH else ()):
            if part.meaning is None and (name := self.correction(part.text)):
                parts[index] = Part(part.text, Meaning("thing", name))
        return parts

    def _in_likeliest_language(self, tokens: Sequence[str], keys: Sequence[str]) -> tuple[list[Part], str]:
        """English, unless another language explains at least two more words, or any of an unknown prompt.

        Of two that explain as many words the one with longer phrases counts.
        """
        english = list(self._read(tokens, keys, ENGLISH))
        known = _known(english)
        if all(part.meaning for part in english):
            return english, ENGLISH
        best, best_language, best_score = english, ENGLISH, (known + 1 if known else 0, 0)
        for language in self._languages:
            parts = list(self._read(tokens, keys, language)) if language != ENGLISH else english
            if (score := (_known(parts), -len(parts))) > best_score:
                best, best_language, best_score = parts, language, score
        return best, best_language

    def _read(self, tokens: Sequence[str], keys: Sequence[str], language: str) -> Iterator[Part]:
        """Split into the longest phrases that the language has."""
        start = 0
        while start < len(tokens):
            if BREAK.fullmatch(tokens[start]):
                yield Part(tokens[start], Meaning("break"))
                start += 1
                continue
            length, meanings, plural = self._longest(keys, start, language)
            if length > 1 and (
                self._is_before_thing(meanings[0], keys, start, length, language)
                or self._is_coloured(meanings[0], keys, start, length, language)
            ):
                length, (meanings, plural) = 1, self._find(keys[start], language)
            if meanings:
                meaning = self._in_context(meanings, keys, start, length, language)
                known = None if meaning.kind == "unknown" else meaning
                yield Part(joined(tokens[start : start + length]), known, plural)
            else:
                yield Part(tokens[start], None)
            start += length

    def _longest(self, keys: Sequence[str], start: int, language: str) -> tuple[int, Sequence[Meaning], bool]:
        """The longest phrase at a token: its length, meanings and whether it is a plural; without any, one token."""
        for length in range(min(MAX_PHRASE, len(keys) - start), 0, -1):
            meanings, plural = self._find(" ".join(keys[start : start + length]), language)
            if meanings:
                return length, meanings, plural
        return 1, (), False

    def _is_before_thing(self, meaning: Meaning, keys: Sequence[str], start: int, length: int, language: str) -> bool:
        """Whether a phrase such as "a cup of" ends inside a thing: "cup of tea"."""
        if meaning.kind not in ("stop", "count"):
            return False
        inner, meanings, _ = self._longest(keys, start + 1, language)
        return inner >= length and meanings[0].kind == "thing"

    def _is_coloured(self, meaning: Meaning, keys: Sequence[str], start: int, length: int, language: str) -> bool:
        """Whether a phrase such as "blue fox" is only a thing with its colour."""
        if meaning.kind != "thing" or meaning.own:
            return False
        first, _ = self._find(keys[start], language)
        others, _ = self._find(" ".join(keys[start + 1 : start + length]), language)
        is_colour = any(each.kind == "colour" and each.own for each in first)
        return is_colour and meaning.name in [each.name for each in others]

    def _in_context(
        self, meanings: Sequence[Meaning], keys: Sequence[str], start: int, length: int, language: str
    ) -> Meaning:
        """The sense of "orange" in "an orange", "an orange hot dog" and "on an orange background"."""
        colour = next((meaning for meaning in meanings if meaning.kind == "colour"), None)
        if colour is None or meanings[0] is colour:
            return meanings[0]
        after = start + length
        neighbours = [*keys[max(0, start - 1) : start], *keys[after : after + 1]]
        is_background = any(self._kind(key, language) == "background" for key in neighbours)
        while after < len(keys) and self._kind(keys[after], language) in ("size", "style", "decor"):
            after += 1
        following = self._longest(keys, after, language)[1] if after < len(keys) else ()
        is_adjective = any(meaning.kind == "thing" for meaning in following[:1])
        return colour if is_background or is_adjective else meanings[0]

    def _kind(self, key: str, language: str) -> Kind | None:
        """The kind of a word's first meaning."""
        meanings, _ = self._find(key, language)
        return meanings[0].kind if meanings else None

    def _find(self, key: str, language: str) -> tuple[Sequence[Meaning], bool]:
        """The meanings of a word or phrase and whether it is a plural."""
        tables = [(language, self._languages[language])]
        if language != ENGLISH:
            tables.append((ENGLISH, self._languages[ENGLISH]))
        for name, table in tables:
            exact = self._of_language(table.get(key, ()), name, language)
            if exact and exact[0].own:
                return exact, False
            forms = [
                (self._of_language(table.get(form, ()), name, language), plural)
                for form, plural in self._base_forms(key, name)
            ]
            found = [(meanings, plural) for meanings, plural in forms if meanings]
            # "apples" is a plural of the model's own word, even if the table has it, too
            own = next((each for each in found if each[0][0].own and each[0][0].kind == "thing"), None)
            if own or exact or found:
                return own or ((exact, False) if exact else found[0])
        return (), False

    def _of_language(self, meanings: Sequence[Meaning], name: str, language: str) -> Sequence[Meaning]:
        """In a prompt of another language only names of things and styles are English."""
        if name == language:
            return meanings
        return [meaning for meaning in meanings if meaning.own and meaning.kind in ("thing", "style")]

    def _base_forms(self, key: str, language: str) -> Iterator[tuple[str, bool]]:
        """Forms from which an inflected one may come, and whether it would be a plural."""
        head, _, last = key.rpartition(" ")
        head = f"{head} " if head else ""
        if language == ENGLISH:
            yield from self._english_singulars(key, head, last)
            return
        for prefix in PREFIXES.get(language, ()):
            if last.startswith(prefix) and len(last) - len(prefix) >= 2:
                yield head + last.removeprefix(prefix), False
        for form in dict.fromkeys((last, without_accents(last))):
            if form != last:
                yield head + form, False
            for ending in ENDINGS.get(language, ()):
                if form.endswith(ending) and len(form) - len(ending) >= 3:
                    yield head + form.removesuffix(ending), True

    def _english_singulars(self, key: str, head: str, last: str) -> Iterator[tuple[str, bool]]:
        if (plain := without_accents(key)) != key:
            yield plain, False
        if key in self._plurals:
            yield self._plurals[key], True
        if last in self._plurals:
            yield head + self._plurals[last], True
        for ending, replacement in ENGLISH_ENDINGS:
            if last.endswith(ending) and len(last) - len(ending) >= 2:
                yield head + last.removesuffix(ending) + replacement, True

    # What a prompt consists of

    def __contains__(self, word: str) -> bool:
        return any(self._find(key_of(word), language)[0] for language in self._languages)

    def correction(self, word: str) -> str:
        """The thing whose name `word` is with a typo; "" for none and for common words."""
        key = key_of(word)
        if len(key) < MIN_TYPO_LENGTH or key in self._typo_exceptions:
            return ""
        names = self._names_by_initial.get(key[0], {})
        found = get_close_matches(key, names, 1, TYPO_SIMILARITY)
        return names[found[0]] if found else ""

    @cached_property
    def _names_by_initial(self) -> Mapping[str, Mapping[str, str]]:
        found: dict[str, dict[str, str]] = {}
        for name, thing in self.things.items():
            for word in map(key_of, thing["words"]):
                found.setdefault(word[0], {})[word] = name
        return found

    def nearest(self, word: str) -> str:
        """The known thing that is closest to an unknown English word; "" if none is."""
        key = key_of(word)
        forms = [key, *(form for form, _ in self._base_forms(key, ENGLISH))]
        return next((self._near[form] for form in forms if form in self._near), "")

    def is_vague(self, place: str) -> bool:
        """Whether a more exact place in the same prompt counts instead."""
        return key_of(place) in self._vague

    @property
    def max_count(self) -> int:
        return len(self._counts) + 1

    def place_phrase(self, place: str) -> str:
        if place in self.places:
            return self.places[place][0]
        return self._colour_phrase.format(place).replace(" a orange", " an orange")

    def style_for(self, thing: str, style: str) -> str:
        """The style, or the default one, or any in which there is a drawing of the thing."""
        drawn = self.things[thing].get("styles", self.styles)
        return next((each for each in (style, self.styles[0]) if each in drawn), drawn[0])

    def caption(self, name: str, count: int, size: str, style: str) -> str:
        """A thing in the words that the model was trained on: `two flat fox`; the default style has no word."""
        words = [word for word in (size, "" if style == self.styles[0] else style, name) if word]
        if count > 1:
            return " ".join([self._counts[count - 2], *words])
        if self.things[name]["one"] == name:  # without an article, as "glasses"
            return " ".join(words)
        if len(words) == 1:
            return str(self.things[name]["one"])
        return _with_article(words)

    def hue_modifier(self, name: str, style: str, colour: str) -> str | None:
        """What gives the drawing of a thing a colour; "" if it has it, None if it cannot have it."""
        thing = self.things[name]
        hue = thing["hues"][thing.get("styles", self.styles).index(style)] if "hues" in thing else None
        target = self._hues.get(colour)
        if hue is None or target is None:
            return None
        turn = round((target - hue) / self._hue_step) * self._hue_step % 360
        return f"hue {turn}" if turn else ""

    def subject(self, name: str, count: int, size: str, colour: str = "") -> str:
        """A thing in English: `two foxes`, `a tiny blue fox`, `grapes`."""
        thing = self.things[name]
        adjectives = list(filter(None, (size, colour)))
        if count > 1:
            return " ".join([self._counts[count - 2], *adjectives, thing["many"]])
        if not adjectives:
            return str(thing["one"])
        if not thing["one"].startswith(("a ", "an ")):
            return " ".join([*adjectives, thing["one"]])
        return _with_article([*adjectives, thing["one"].partition(" ")[2]])

    def background_for(self, thing: str, seed: int) -> str:
        """A place that suits a thing, by the seed; "" if the model needs none."""
        choices = self._backgrounds.get(thing) or self._backgrounds.get("", ())
        return choices[_digest(thing, seed)[0] % len(choices)] if choices else ""

    def position_for(self, thing: str, seed: int) -> str:
        """The side on which a thing is drawn smaller, by the seed; "" in most images."""
        return ("left", "right", *[""] * 6)[_digest(thing, seed)[1] % 8]

    def shift_for(self, layout: str, thing: str, seed: int) -> list[str]:
        """The modifiers that shift all things of a layout, by the seed."""
        digest = _digest(thing, seed)[2:]
        axes = self.shifts.get(layout, ())
        return list(filter(None, (axis[byte % len(axis)] for axis, byte in zip(axes, digest, strict=False))))


def _with_article(words: Sequence[str]) -> str:
    return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])


def _digest(thing: str, seed: int) -> bytes:
    return hashlib.sha256(f"{thing} {seed}".encode()).digest()


def key_of(text: str) -> str:
    """A text as a key of the tables: tokens in lower case, without signs."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    letters = "".join(letter for letter in folded if unicodedata.category(letter) != "Mn")
    return " ".join(token for token in TOKEN.findall(letters) if not BREAK.fullmatch(token))


def _known(parts: Sequence[Part]) -> int:
    """How many words have a meaning; a Chinese or Japanese character counts as one."""
    words = (part for part in parts if part.meaning and part.meaning.kind != "break")
    return sum(len(key_of(part.text).split()) for part in words)


def without_accents(text: str) -> str:
    """é → e; letters without a base letter stay."""
    decomposed = unicodedata.normalize("NFD", text)
    return "".join(letter for letter in decomposed if unicodedata.category(letter) != "Mn")


def joined(tokens: Sequence[str]) -> str:
    """Words with spaces between them, but Chinese and Japanese characters without."""
    text = ""
    for token in tokens:
        text += f" {token}" if text and not ("\u3040" <= token[0] <= "\u9fff") else token
    return text


def _language_table(sections: Mapping[str, Any]) -> dict[str, list[Meaning]]:
    """The meanings of each word; those of later sections come after those of earlier ones."""
    table: dict[str, list[Meaning]] = {}
    for section, kind in MEANINGS.items():
        for name, words in sections.get(section, {}).items():
            for word in words.split("|"):
                table.setdefault(word, []).append(Meaning(kind, name))
    for section, kind in PLAIN.items():
        for word in filter(None, sections.get(section, "").split("|")):
            table.setdefault(word, []).append(Meaning(kind))
    return table


def _with_plain_letters(table: dict[str, list[Meaning]]) -> dict[str, list[Meaning]]:
    """Also the words without their accents, as many people write them."""
    plain = {without_accents(word): meanings for word, meanings in table.items() if not word.isascii()}
    return {**plain, **table}


@lru_cache(maxsize=4)
def load_vocabulary(folder: Path) -> Vocabulary | None:
    """The vocabulary in the folder of a model; None without one."""
    path = folder / VOCABULARY
    if not path.is_file():
        return None
    words = json.loads(path.read_text(encoding="utf-8"))
    table = folder / SYNONYMS
    synonyms = json.loads(table.read_text(encoding="utf-8")) if table.is_file() else {}
    return Vocabulary(words, synonyms)


def vocabulary_of(spec: ModelSpec) -> Vocabulary | None:
    """The vocabulary of a model that has one in its folder."""
    return load_vocabulary(Path(spec.name)) if Path(spec.name).is_absolute() else None
