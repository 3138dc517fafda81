"""Scenes: one to three drawings in fixed boxes on a background, with the prompt that describes them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from statistics import NormalDist

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter

from canvas.training.art_packages import STYLES
from canvas.training.assets import SpriteSet
from canvas.training.backgrounds import BACKGROUNDS, FLOATING, relight, render_background
from canvas.training.captions import COLOUR_PHRASES, PLACE_PHRASES, article, in_style
from canvas.training.config import IMAGE_SIZE, LATENT_SIZE, PATCH_SIZE, TrainingConfig
from canvas.training.recolour import RECOLOURS, recolour

HELD_OUT_PER_THOUSAND = 30
OPAQUE = 250  # alpha from which a pixel counts as covered


@dataclass(frozen=True)
class Box:
    """A square for a drawing, in cells; `thing` says which of the prompt's things is drawn in it."""

    size: str
    left: int
    top: int
    thing: str

    @property
    def cells(self) -> int:
        """Cells per side."""
        return BOX_CELLS[self.size]


# Drawings are known at three sizes; a box of 10 cells has 160 pixels.
BOX_CELLS = {"large": 10, "medium": 6, "small": 4}
BOXES = (
    Box("large", 3, 4, "first"),
    Box("medium", 1, 8, "first"),
    Box("medium", 9, 8, "last"),
    Box("small", 1, 10, "first"),
    Box("small", 6, 10, "second"),  # as in "fox, owl and cat"
    Box("small", 11, 10, "last"),
)
# The boxes of each layout, and its share of the scenes in percent.
LAYOUTS: dict[str, tuple[int, ...]] = {
    **{"one": (0,), "pair": (1, 2), "left": (1,), "right": (2,), "tiny": (4,)},
    **{"two": (1, 2), "three": (3, 4, 5), "trio": (3, 4, 5), "place": (), "empty": ()},
}
SHARES = (44, 22, 4, 4, 5, 6, 5, 7, 2, 1)
# By how many cells all boxes of a layout can be shifted to the right, and down, and no box touches the border.
SHIFTS_RIGHT: dict[str, range] = {
    **{"one": range(-2, 3), "pair": range(1), "left": range(3), "right": range(-2, 1), "tiny": range(-3, 4)},
    **{"two": range(1), "three": range(1), "trio": range(1)},
}
SHIFTS_DOWN = range(-2, 2)
RIGHT, DOWN = ("left", "right"), ("up", "down")  # the words for negative and positive shifts
SHIFTED_SHARE = 0.65  # of the scenes with drawings
RECOLOURED_SHARE = 0.4  # of the scenes with drawings of one thing


@dataclass(frozen=True)
class Scene:
    """The content of an image; `concepts` from left to right, `place` indexes BACKGROUNDS."""

    layout: str
    concepts: tuple[int, ...]
    style: int
    place: int
    light: float = 0.0  # the hour of the day as a standard normal variable
    shift: tuple[int, int] = (0, 0)  # of the boxes, in cells to the right and down
    recolour: str = ""  # one of RECOLOURS
    background: int = 0  # the row of `render_backgrounds`

    @property
    def drawn(self) -> tuple[int, ...]:
        """The concept in each box of the layout."""
        boxes = LAYOUTS[self.layout]
        return self.concepts if len(self.concepts) == len(boxes) else self.concepts * len(boxes)

    def concept_of(self, box: Box) -> int | None:
        """The concept whose cells the text encoder gives for a box, also one that the layout leaves empty."""
        if not self.concepts:
            return None
        second = {"pair": 1, "trio": 1}.get(self.layout, 0)
        return self.concepts[{"first": 0, "last": -1, "second": second}[box.thing]]

    def prompt(self, sprites: SpriteSet) -> str:
        """As the app writes it: `a flat fox and a flat owl in the snow`."""
        names = [in_style(sprites.concepts[concept].name, STYLES[self.style]) for concept in self.concepts]
        with_article = [article(name) for name in names]
        match self.layout:
            case "empty":
                return ""
            case "place":
                subject = ""
            case "two" | "three" | "tiny":
                subject = f"{'a tiny' if self.layout == 'tiny' else self.layout} {names[0]}"
            case "left" | "right":
                subject = f"{with_article[0]} on the {self.layout}"
            case "trio":
                subject = f"{with_article[0]}, {with_article[1]} and {with_article[2]}"
            case _:
                subject = " and ".join(with_article)
        return " ".join(filter(None, (subject, place_phrase(self.place), *self.modifiers)))

    @property
    def modifiers(self) -> list[str]:
        """What follows the place in prompts: another hue and a shift."""
        return [word for word in (self.recolour, *map(shift_modifier, self.shift, (RIGHT, DOWN))) if word]


def shift_modifier(cells: int, directions: tuple[str, str]) -> str:
    """`2 left` for -2 and RIGHT; "" for 0."""
    return f"{abs(cells)} {directions[cells > 0]}" if cells else ""


def place_phrase(place: int) -> str:
    """The words for a background in prompts."""
    name = BACKGROUNDS[place]
    return PLACE_PHRASES[name][0] if name in PLACE_PHRASES else COLOUR_PHRASES[0].format(name)


def _bucket(*parts: str) -> int:
    return int.from_bytes(hashlib.sha256("|".join(parts).encode()).digest()[:4], "big") % 1000


def is_held_out(scene: Scene, sprites: SpriteSet) -> bool:
    """Whether no training sees the combination: two concepts, or concept, style and place."""
    if not scene.concepts:
        return False
    labels = [sprites.concepts[concept].label for concept in scene.concepts]
    if scene.layout == "pair":
        return _bucket(*sorted(labels)) < HELD_OUT_PER_THOUSAND
    return _bucket(labels[0], STYLES[scene.style], BACKGROUNDS[scene.place]) < HELD_OUT_PER_THOUSAND


def resize_to_box(sprite: Image.Image, cells: int) -> tuple[Image.Image, int, int]:
    """A drawing at the size of a box, and its left and top in it, in pixels."""
    side = cells * PATCH_SIZE
    scale = side / max(sprite.size)
    size = (max(1, round(sprite.width * scale)), max(1, round(sprite.height * scale)))
    resized = sprite.resize(size, Image.Resampling.LANCZOS)
    return resized, (side - resized.width) // 2, (side - resized.height) // 2


def render_shadow(sprite: Image.Image, left: int, top: int) -> tuple[Image.Image, int, int]:
    """The soft shadow below a placed sprite, as a mask with left and top."""
    x, y = left + sprite.width / 2, top + sprite.height
    rx, ry = sprite.width * 0.42, max(1.5, sprite.width * 0.06)
    mask = Image.new("L", (IMAGE_SIZE, IMAGE_SIZE), 0)
    ImageDraw.Draw(mask).ellipse((x - rx, y - ry, x + rx, y + ry), fill=80)
    box = tuple(int(value) for value in (x - rx - 4, y - ry - 4, x + rx + 4, y + ry + 4))
    return mask.crop(box).filter(ImageFilter.BoxBlur(IMAGE_SIZE / 64)), box[0], box[1]


def compose(background: np.ndarray, scene: Scene, sprites: SpriteSet) -> tuple[np.ndarray, np.ndarray]:
    """The image [256, 256, 3] and where drawings cover it [256, 256], uint8."""
    name = BACKGROUNDS[scene.place]
    image = Image.fromarray(relight(background, name, NormalDist().cdf(scene.light)))
    covered = Image.new("L", image.size)
    for box, concept in zip(LAYOUTS[scene.layout], scene.drawn, strict=True):
        sprite = recolour(sprites.images[sprites.index[concept, scene.style]], scene.recolour)
        resized, left, top = resize_to_box(sprite, BOXES[box].cells)
        column, row = BOXES[box].left + scene.shift[0], BOXES[box].top + scene.shift[1]
        left, top = left + column * PATCH_SIZE, top + row * PATCH_SIZE
        if name not in FLOATING:
            shadow, x, y = render_shadow(resized, left, top)
            image.paste(Image.new("RGB", shadow.size), (x, y), shadow)
        image.paste(resized, (left, top), resized)
        covered.paste(255, (left, top), resized)
    return np.asarray(image), np.asarray(covered)


def render_backgrounds(config: TrainingConfig, work: Path, seed: int = 5) -> np.ndarray:
    """Backgrounds of all places, uint8 [places * n, 256, 256, 3], rendered once into `backgrounds.npy`."""
    path = work / "backgrounds.npy"
    if not path.exists():
        rng, count = Random(seed), config.backgrounds_per_place
        images = [np.asarray(render_background(name, IMAGE_SIZE, rng)) for name in BACKGROUNDS for _ in range(count)]
        np.save(path, np.stack(images))
    return np.load(path, mmap_mode="r")


class SceneSampler:
    """Samples and composes scenes that are, or are not, held out."""

    def __init__(self, sprites: SpriteSet, backgrounds: np.ndarray, seed: int, *, held_out: bool = False) -> None:
        self.sprites, self.held_out = sprites, held_out
        self.rng = Random(seed)
        self._backgrounds = backgrounds
        self._per_place = len(backgrounds) // len(BACKGROUNDS)
        self._by_style = {
            style: [concept for concept, other in sprites.index if other == style] for style in sprites.styles
        }

    def sample(self, layout: str = "", *, recoloured: float = 0.0) -> Scene:
        """A random scene, of a random layout without one; `recoloured` is the share in other colours."""
        rng = self.rng
        name = layout or rng.choices(tuple(LAYOUTS), SHARES)[0]
        count = {"pair": 2, "trio": 3, "place": 0, "empty": 0}.get(name, 1)
        while True:
            style, place = rng.choice(self.sprites.styles), rng.randrange(len(BACKGROUNDS))
            concepts = tuple(rng.sample(self._by_style[style], count))
            row = place * self._per_place + rng.randrange(self._per_place)
            scene = Scene(name, concepts, style, place, light=rng.gauss(0, 1), background=row)
            if name in SHIFTS_RIGHT and rng.random() < SHIFTED_SHARE:
                scene = replace(scene, shift=(rng.choice(SHIFTS_RIGHT[name]), rng.choice(SHIFTS_DOWN)))
            if count == 1 and rng.random() < recoloured:
                scene = replace(scene, recolour=rng.choice(tuple(RECOLOURS)))
            if not count or is_held_out(scene, self.sprites) == self.held_out:
                return scene

    def compose(self, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
        """The image of the scene [256, 256, 3] and where drawings cover it [256, 256], uint8."""
        return compose(self._backgrounds[scene.background], scene, self.sprites)

    def images(self, scenes: Sequence[Scene]) -> torch.Tensor:
        """Composed images [n, 3, 256, 256] in [-1, 1]."""
        return to_pixels(np.stack([self.compose(scene)[0] for scene in scenes]))


def to_pixels(images: np.ndarray) -> torch.Tensor:
    """uint8 [n, h, w, 3] as floats [n, 3, h, w] in [-1, 1]."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def box_targets(layout: str, first_token: int) -> torch.Tensor:
    """The token of each cell of the latents [16, 16]; -1 where no drawing is."""
    targets = torch.full((LATENT_SIZE, LATENT_SIZE), -1)
    token = first_token
    for index, box in enumerate(BOXES):
        count = box.cells**2
        if index in LAYOUTS[layout]:
            tokens = torch.arange(token, token + count).reshape(box.cells, box.cells)
            targets[box.top : box.top + box.cells, box.left : box.left + box.cells] = tokens
        token += count
    return targets
