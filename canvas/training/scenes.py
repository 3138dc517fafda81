"""Endless fresh scenes: drawings on backgrounds, with their captions."""

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from random import Random

import numpy as np
from PIL import Image

from canvas.training.backgrounds import BACKGROUNDS, COLOURS, FLOATING, paint
from canvas.training.captions import (
    ADJECTIVES,
    NUMBERS,
    OPENINGS,
    PLACE_PHRASES,
    SIZES,
    TAIL,
    caption,
    subject_phrase,
)
from canvas.training.packages import STYLES
from canvas.training.placing import placed, shadow
from canvas.training.sprites import Sprites, Thing
from canvas.training.synonyms import NEAR_SYNONYMS

DEFAULT_STYLE = STYLES.index("3d")  # drawn when the prompt names none
# What a style's name stands for where a preset has no drawings of it.
ALIKE_STYLES = {"glossy": "3d", "sticker": "cartoon"}
HELD_OUT_PER_THOUSAND = 30
# A tag that also tells a place, a style or a size would be two things at once.
RESERVED_WORDS = {
    word
    for phrases in (
        *PLACE_PHRASES.values(),
        tuple(COLOURS),
        STYLES,
        *SIZES.values(),
        ADJECTIVES,
        OPENINGS,
        TAIL,
        tuple(NUMBERS.values()),
    )
    for phrase in phrases
    for word in (*phrase.split(), phrase)
} | {"style", "picture", "background", "and", "with", "ocean", "weather", "starry"}
# How a caption lays its things out, as the text encoder is asked to tell.
LAYOUTS = ("", "tiny", "huge", "left", "right", "2", "3", "4", "pair")


@dataclass(frozen=True)
class Scene:
    """What a scene shows; `place` indexes BACKGROUNDS, `things` are left to right."""

    things: tuple[int, ...]
    style: int
    place: int
    caption: str = ""
    count: int = 1
    size: str = ""
    position: str = ""
    named_place: bool = True

    @property
    def parts(self) -> tuple[tuple[int, str], ...]:
        """Each thing with the name of its placement."""
        if len(self.things) > 1 or self.count == 2:
            return ((self.things[0], "left"), (self.things[-1], "right"))
        return (
            (self.things[0], str(self.count) if self.count > 1 else self.size or self.position),
        )

    @property
    def layout(self) -> int:
        """Index in LAYOUTS."""
        pair = "pair" if len(self.things) > 1 else ""
        number = str(self.count) if self.count > 1 else ""
        return LAYOUTS.index(self.size or self.position or number or pair)


def _bucket(*parts: str) -> int:
    digest = hashlib.sha256("|".join(parts).encode()).digest()
    return int.from_bytes(digest[:4], "big") % 1000


def is_held_out(thing: Thing, style: int, place: int) -> bool:
    """Whether training never sees the thing in this style at this place."""
    held = _bucket(thing.label, STYLES[style], BACKGROUNDS[place])
    return held < HELD_OUT_PER_THOUSAND


def is_held_out_pair(first: Thing, second: Thing) -> bool:
    """Whether training never sees the two things together (in either order)."""
    return _bucket(*sorted((first.label, second.label))) < HELD_OUT_PER_THOUSAND


def caption_words(things: list[Thing]) -> list[list[str]]:
    """Each thing's words, its own first, then tags that belong to it alone."""
    owners = defaultdict(set)
    for row, thing in enumerate(things):
        for tag in {*thing.words, *thing.tags}:
            owners[tag].add(row)
    held = {*NEAR_SYNONYMS} | RESERVED_WORDS
    return [
        [thing.name]
        + [word for word in thing.words[1:] if word not in held]
        + [
            tag
            for tag in thing.tags
            if len(owners[tag]) == 1 and tag not in held and tag not in thing.words
        ]
        for thing in things
    ]


class SceneMaker:
    """Draws scenes and paints them; one random stream a maker."""

    def __init__(
        self,
        sprites: Sprites,
        image_size: int,
        seed: int,
        near: list[list[str]] | None = None,
        near_share: float = 0.4,
    ) -> None:
        self.sprites = sprites
        self.near = near or [[] for _ in sprites.things]
        self.near_share = near_share
        self.size = image_size
        self.rng = Random(seed)
        self.words = caption_words(sprites.things)
        self.styles = sorted(set(sprites.style_of.tolist()))

    def _word(self, thing: int) -> str:
        words, own = self.words[thing], len(self.sprites.things[thing].words)
        if self.near[thing] and self.rng.random() < self.near_share:
            return self.rng.choice(self.near[thing])
        chance = self.rng.random()
        if chance < 0.75 or len(words) == 1:
            return words[0]
        return self.rng.choice(words[:own] if chance < 0.9 else words)

    def _style_word(self, style: int) -> str:
        others = [
            word
            for word, alike in ALIKE_STYLES.items()
            if alike == STYLES[style] and STYLES.index(word) not in self.styles
        ]
        return self.rng.choice(others) if others and self.rng.random() < 0.15 else STYLES[style]

    def draw(self, pairs: float = 0.22, unusual: float = 0.1) -> Scene:
        """A scene that is not held out; shares of two-thing and of unusual layouts."""
        rng, sprites = self.rng, self.sprites
        while True:
            count, size, position = 1, "", ""
            amount = 2 if rng.random() < pairs else 1
            things = tuple(rng.sample(range(len(sprites.things)), amount))
            say_style = rng.random() < 0.85
            style = rng.choice(self.styles) if say_style else DEFAULT_STYLE
            place = rng.randrange(len(BACKGROUNDS))
            if BACKGROUNDS[place] in COLOURS and rng.random() < 0.4:
                place = rng.randrange(len(BACKGROUNDS) - len(COLOURS))
            if any((thing, style) not in sprites.index for thing in things):
                continue
            if any(is_held_out(sprites.things[thing], style, place) for thing in things):
                continue
            if amount > 1 and is_held_out_pair(*(sprites.things[thing] for thing in things)):
                continue
            if amount == 1 and rng.random() < unusual:
                kind = rng.randrange(3)
                count = rng.choice((2, 3, 3, 4)) if kind == 0 else 1
                size = rng.choice(("tiny", "huge")) if kind == 1 else ""
                position = rng.choice(("left", "right")) if kind == 2 else ""
            break
        subject = subject_phrase([self._word(thing) for thing in things], count, size, rng)
        where = "" if rng.random() < 0.08 else BACKGROUNDS[place]
        text = caption(subject, where, self._style_word(style) if say_style else "", position, rng)
        return Scene(things, style, place, text, count, size, position, bool(where))

    def paint(self, scene: Scene) -> Image.Image:
        """The scene as an RGB picture of the maker's size."""
        size, place = self.size, BACKGROUNDS[scene.place]
        picture = paint(place, size, self.rng)
        for thing, placement in scene.parts:
            drawing = self.sprites.pictures[self.sprites.index[thing, scene.style]]
            for sprite, left, top in placed(drawing, placement, size):
                if place not in FLOATING:
                    soft, x, y = shadow(size, sprite, left, top)
                    picture.paste(Image.new("RGB", soft.size), (x, y), soft)
                picture.paste(sprite, (left, top), sprite)
        return picture

    def batch(self, count: int, **shares: float) -> tuple[np.ndarray, list[Scene]]:
        """Pictures as uint8 [count, size, size, 3], and their scenes."""
        scenes = [self.draw(**shares) for _ in range(count)]
        return np.stack([np.asarray(self.paint(scene)) for scene in scenes]), scenes
