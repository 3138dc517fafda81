"""Endless fresh scenes: drawings on backgrounds, with their captions."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

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
from canvas.training.sprites import Sprites, Thing

DEFAULT_STYLE = STYLES.index("3d")  # drawn when the prompt names none
# What a style's name stands for where a preset has no drawings of it.
ALIKE_STYLES = {"glossy": "3d", "sticker": "cartoon"}
HELD_OUT_PER_THOUSAND = 30
# Words that no training caption of a scene holds: the near-synonyms of the evaluation.
NEAR_SYNONYMS = {
    "puppy": "dog",
    "kitten": "cat",
    "bunny": "rabbit",
    "piglet": "pig",
    "calf": "cow",
    "pony": "horse",
    "lamb": "sheep",
    "duckling": "duck",
    "serpent": "snake",
    "toad": "frog",
    "tortoise": "turtle",
    "alligator": "crocodile",
    "grizzly": "bear",
    "wasp": "bee",
    "moth": "butterfly",
    "vessel": "ship",
    "yacht": "sailboat",
    "jet": "airplane",
    "chopper": "helicopter",
    "lorry": "truck",
    "sedan": "car",
    "cottage": "house",
    "fortress": "castle",
    "chapel": "church",
    "clinic": "hospital",
    "cheeseburger": "hamburger",
    "muffin": "cupcake",
    "biscuit": "cookie",
    "espresso": "coffee",
    "ale": "beer",
    "gift": "present",
    "necklace": "ring",
    "blossom": "cherry blossom",
    "pine": "fir tree",
    "toadstool": "mushroom",
    "lamp": "light bulb",
    "computer": "laptop",
    "trainers": "running shoe",
    "spectacles": "glasses",
    "android": "robot",
    "spook": "ghost",
    "infant": "baby",
    "cosmonaut": "astronaut",
    "rucksack": "backpack",
    "cycle": "bicycle",
    "parcel": "package",
    "blade": "swords",
    "flames": "fire",
    "orb": "crystal ball",
    "squirrel": "hamster",
}
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

# Where a thing stands: centre x, centre y and side of its square, in shares of the picture.
# Always the same: with little computing, a model learns one place to put a drawing long before
# it learns many.
PLACEMENTS: dict[str, tuple[tuple[float, float, float], ...]] = {
    "": ((0.5, 0.53, 0.625),),
    "tiny": ((0.5, 0.63, 0.31),),
    "huge": ((0.5, 0.5, 0.75),),
    "left": ((0.26, 0.56, 0.46),),
    "right": ((0.74, 0.56, 0.46),),
    "3": tuple(((row + 0.5) / 3, 0.56, 0.31) for row in range(3)),
    "4": tuple(((row + 0.5) / 4, 0.56, 0.235) for row in range(4)),
}


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


def placed(
    drawing: Image.Image, placement: str, size: int
) -> Iterator[tuple[Image.Image, int, int]]:
    """The drawing at the size of each of its places, with left and top, in pixels."""
    for x, y, side in PLACEMENTS[placement]:
        scale = side * size / max(drawing.size)
        sprite = drawing.resize(
            (max(1, round(drawing.width * scale)), max(1, round(drawing.height * scale))),
            Image.Resampling.BILINEAR,
        )
        yield sprite, round(x * size - sprite.width / 2), round(y * size - sprite.height / 2)


class SceneMaker:
    """Draws scenes and paints them; one random stream a maker."""

    def __init__(
        self, sprites: Sprites, image_size: int, seed: int, near: list[list[str]] | None = None
    ) -> None:
        self.sprites = sprites
        self.near = near or [[] for _ in sprites.things]
        self.size = image_size
        self.rng = Random(seed)
        self.words = caption_words(sprites.things)
        self.styles = sorted(set(sprites.style_of.tolist()))

    def _word(self, thing: int) -> str:
        words, own = self.words[thing], len(self.sprites.things[thing].words)
        if self.near[thing] and self.rng.random() < 0.4:
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
                    middle = left + sprite.width / 2
                    self._shadow(picture, middle, top + sprite.height, sprite.width)
                picture.paste(sprite, (left, top), sprite)
        return picture

    def _shadow(self, picture: Image.Image, x: float, y: float, width: float) -> None:
        mask = Image.new("L", picture.size, 0)
        half, flat = width * 0.42, max(1.5, width * 0.06)
        ImageDraw.Draw(mask).ellipse((x - half, y - flat, x + half, y + flat), fill=80)
        box = tuple(int(v) for v in (x - half - 4, y - flat - 4, x + half + 4, y + flat + 4))
        soft = mask.crop(box).filter(ImageFilter.BoxBlur(picture.width / 64))
        picture.paste(Image.new("RGB", soft.size, (0, 0, 0)), box[:2], soft)

    def batch(self, count: int, **shares: float) -> tuple[np.ndarray, list[Scene]]:
        """Pictures as uint8 [count, size, size, 3], and their scenes."""
        scenes = [self.draw(**shares) for _ in range(count)]
        return np.stack([np.asarray(self.paint(scene)) for scene in scenes]), scenes
