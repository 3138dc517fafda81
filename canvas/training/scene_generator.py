"""Generates scenes: sprites on backgrounds, with captions."""

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from random import Random

import numpy as np
from PIL import Image

from canvas.training.art_packages import STYLES
from canvas.training.assets import Concept, SpriteSet
from canvas.training.backgrounds import BACKGROUNDS, COLOURS, FLOATING, render_background
from canvas.training.captions import (
    ADJECTIVES,
    NEAR_SYNONYMS,
    NUMBERS,
    PLACE_PHRASES,
    PREFIXES,
    QUALITY_TAGS,
    SIZES,
    caption,
    subject_phrase,
)
from canvas.training.placement import place_sprite, render_shadow

DEFAULT_STYLE = STYLES.index("3d")  # of captions that name no style
# The style that stands in for one without sprites in a preset.
STYLE_FALLBACK = {"glossy": "3d", "sticker": "cartoon"}
HELD_OUT_PER_THOUSAND = 30
# Words with another meaning in captions, which cannot name a concept as well.
RESERVED_WORDS = {
    word
    for phrases in (
        *PLACE_PHRASES.values(),
        tuple(COLOURS),
        STYLES,
        *SIZES.values(),
        ADJECTIVES,
        PREFIXES,
        QUALITY_TAGS,
        tuple(NUMBERS.values()),
    )
    for phrase in phrases
    for word in (*phrase.split(), phrase)
} | {"style", "picture", "background", "and", "with", "ocean", "weather", "starry"}
# The layouts that a caption can describe; classes of an auxiliary loss of the text encoder.
LAYOUTS = ("", "tiny", "huge", "left", "right", "2", "3", "4", "pair")


@dataclass(frozen=True)
class Scene:
    """The content of an image; `place` indexes BACKGROUNDS, `concepts` are left to right."""

    concepts: tuple[int, ...]
    style: int
    place: int
    caption: str = ""
    count: int = 1
    size: str = ""
    position: str = ""
    place_in_caption: bool = True

    @property
    def placements(self) -> tuple[tuple[int, str], ...]:
        """Each concept with the name of its placement."""
        if len(self.concepts) > 1 or self.count == 2:
            return ((self.concepts[0], "left"), (self.concepts[-1], "right"))
        name = str(self.count) if self.count > 1 else self.size or self.position
        return ((self.concepts[0], name),)

    @property
    def layout(self) -> int:
        """Index in LAYOUTS."""
        pair = "pair" if len(self.concepts) > 1 else ""
        number = str(self.count) if self.count > 1 else ""
        return LAYOUTS.index(self.size or self.position or number or pair)


def _hash_bucket(*parts: str) -> int:
    digest = hashlib.sha256("|".join(parts).encode()).digest()
    return int.from_bytes(digest[:4], "big") % 1000


def is_held_out(concept: Concept, style: int, place: int) -> bool:
    """Whether the combination is excluded from training."""
    bucket = _hash_bucket(concept.label, STYLES[style], BACKGROUNDS[place])
    return bucket < HELD_OUT_PER_THOUSAND


def is_held_out_pair(first: Concept, second: Concept) -> bool:
    """Whether the two concepts, in either order, are excluded from training as a pair."""
    return _hash_bucket(*sorted((first.label, second.label))) < HELD_OUT_PER_THOUSAND


def caption_words(concepts: list[Concept]) -> list[list[str]]:
    """The words of each concept in captions: its own, then tags that no other concept has."""
    owners = defaultdict(set)
    for row, concept in enumerate(concepts):
        for tag in {*concept.words, *concept.tags}:
            owners[tag].add(row)
    excluded = {*NEAR_SYNONYMS} | RESERVED_WORDS
    return [
        [concept.name]
        + [word for word in concept.words[1:] if word not in excluded]
        + [tag for tag in concept.tags if len(owners[tag]) == 1 and tag not in excluded and tag not in concept.words]
        for concept in concepts
    ]


class SceneGenerator:
    """Samples and renders scenes, reproducibly from its seed."""

    def __init__(
        self,
        sprites: SpriteSet,
        image_size: int,
        seed: int,
        synonyms: list[list[str]] | None = None,
        synonym_ratio: float = 0.4,
    ) -> None:
        self.sprites = sprites
        self.synonyms = synonyms or [[] for _ in sprites.concepts]
        self.synonym_ratio = synonym_ratio
        self.image_size = image_size
        self.rng = Random(seed)
        self.words = caption_words(sprites.concepts)

    def _word(self, concept: int) -> str:
        words, own = self.words[concept], len(self.sprites.concepts[concept].words)
        if self.synonyms[concept] and self.rng.random() < self.synonym_ratio:
            return self.rng.choice(self.synonyms[concept])
        chance = self.rng.random()
        if chance < 0.75 or len(words) == 1:
            return words[0]
        return self.rng.choice(words[:own] if chance < 0.9 else words)

    def _style_word(self, style: int) -> str:
        others = [
            word
            for word, fallback in STYLE_FALLBACK.items()
            if fallback == STYLES[style] and STYLES.index(word) not in self.sprites.styles
        ]
        return self.rng.choice(others) if others and self.rng.random() < 0.15 else STYLES[style]

    def sample(self, pair_ratio: float = 0.22, layout_ratio: float = 0.1) -> Scene:
        """A scene that is not held out.

        pair_ratio: fraction with two concepts. layout_ratio: fraction of the others with a count,
        size or position.
        """
        rng, sprites = self.rng, self.sprites
        while True:
            count, size, position = 1, "", ""
            num_concepts = 2 if rng.random() < pair_ratio else 1
            concepts = tuple(rng.sample(range(len(sprites.concepts)), num_concepts))
            name_style = rng.random() < 0.85
            style = rng.choice(sprites.styles) if name_style else DEFAULT_STYLE
            place = rng.randrange(len(BACKGROUNDS))
            if BACKGROUNDS[place] in COLOURS and rng.random() < 0.4:
                place = rng.randrange(len(BACKGROUNDS) - len(COLOURS))
            if any((concept, style) not in sprites.index for concept in concepts):
                continue
            named = [sprites.concepts[concept] for concept in concepts]
            if any(is_held_out(concept, style, place) for concept in named):
                continue
            if num_concepts > 1 and is_held_out_pair(*named):
                continue
            if num_concepts == 1 and rng.random() < layout_ratio:
                kind = rng.randrange(3)
                count = rng.choice((2, 3, 3, 4)) if kind == 0 else 1
                size = rng.choice(("tiny", "huge")) if kind == 1 else ""
                position = rng.choice(("left", "right")) if kind == 2 else ""
            break
        subject = subject_phrase([self._word(concept) for concept in concepts], count, size, rng)
        where = "" if rng.random() < 0.08 else BACKGROUNDS[place]
        style_word = self._style_word(style) if name_style else ""
        text = caption(subject, where, style_word, position, rng)
        return Scene(concepts, style, place, text, count, size, position, bool(where))

    def render(self, scene: Scene) -> Image.Image:
        """The scene as an RGB image."""
        size, place = self.image_size, BACKGROUNDS[scene.place]
        image = render_background(place, size, self.rng)
        for concept, placement in scene.placements:
            sprite = self.sprites.images[self.sprites.index[concept, scene.style]]
            for resized, left, top in place_sprite(sprite, placement, size):
                if place not in FLOATING:
                    shadow, x, y = render_shadow(size, resized, left, top)
                    image.paste(Image.new("RGB", shadow.size), (x, y), shadow)
                image.paste(resized, (left, top), resized)
        return image

    def sample_images(self, count: int, pair_ratio: float = 0.22) -> tuple[np.ndarray, list[Scene]]:
        """Images as uint8 [count, size, size, 3], and their scenes."""
        scenes = [self.sample(pair_ratio) for _ in range(count)]
        return np.stack([np.asarray(self.render(scene)) for scene in scenes]), scenes
