"""Where the trainings take their scenes from: drawn fresh one by one, or put together on a GPU."""

import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from transformers import CLIPTokenizer

from canvas.training.composer import Composer
from canvas.training.pixels import to_tensor
from canvas.training.placing import PLACEMENTS, overlay
from canvas.training.presets import Preset
from canvas.training.rows import NONE, PARTS, SceneRows
from canvas.training.scenes import SceneMaker
from canvas.training.sprites import Sprites
from canvas.training.tokens import tokenize
from canvas.training.words import near_words

WAIT_FOR_BANKS = 90.0  # seconds
HIDING = 250  # of 255, from which a drawing's cover lets no background through


@dataclass(frozen=True)
class Telling:
    """What kind of scenes a training wants: the share of pairs, and whether near words occur."""

    pairs: float
    near: bool = False


TELLINGS = {
    "scenes": Telling(0.22),
    "words": Telling(0.35, near=True),
    "pairs": Telling(0.5),
}


class SceneSource(Protocol):
    """Endless training scenes; held-out combinations do not occur."""

    def rows(self, count: int) -> SceneRows:
        """Captions alone."""

    def batch(self, count: int) -> tuple[torch.Tensor, SceneRows]:
        """Pictures [n, 3, h, w] in -1 … 1, and their scenes."""

    def covered(self, rows: SceneRows) -> torch.Tensor:
        """Where drawings hide the background, bool [n, 1, h, w]."""


class FreshScenes:
    """Draws each scene anew; one process paints a thousand a second."""

    def __init__(
        self, maker: SceneMaker, telling: Telling, device: torch.device, tokenizer: CLIPTokenizer
    ) -> None:
        self.maker = maker
        self.telling = telling
        self.device = device
        self.tokenizer = tokenizer

    def rows(self, count: int) -> SceneRows:
        """Captions alone."""
        scenes = [self.maker.draw(pairs=self.telling.pairs) for _ in range(count)]
        ids = tokenize(self.tokenizer, [scene.caption for scene in scenes]).numpy()
        return SceneRows.of(scenes, self.maker.sprites, ids).to(self.device)

    def batch(self, count: int) -> tuple[torch.Tensor, SceneRows]:
        """Pictures [n, 3, h, w] in -1 … 1, and their scenes."""
        pictures, scenes = self.maker.batch(count, pairs=self.telling.pairs)
        ids = tokenize(self.tokenizer, [scene.caption for scene in scenes]).numpy()
        rows = SceneRows.of(scenes, self.maker.sprites, ids)
        return to_tensor(pictures).to(self.device), rows.to(self.device)

    def covered(self, rows: SceneRows) -> torch.Tensor:
        """Where drawings hide the background, bool [n, 1, h, w]."""
        size, pictures, names = self.maker.size, self.maker.sprites.pictures, list(PLACEMENTS)
        covers = np.zeros((len(rows), 1, size, size), np.uint8)
        placed = torch.stack([rows.drawings, rows.placements], 2).tolist()
        for row, part in product(range(len(rows)), range(PARTS)):
            drawing, placement = placed[row][part]
            if drawing != NONE:
                covers[row] |= overlay(pictures[drawing], names[placement], size)[3]
        return torch.from_numpy(covers >= HIDING).to(self.device)


class BankedScenes:
    """Takes scenes from a table made beforehand, and puts their pictures together on the device."""

    def __init__(self, table: SceneRows, composer: Composer | None, seed: int) -> None:
        self.table = table
        self.composer = composer
        self.generator = torch.Generator(table.table.device).manual_seed(seed)

    def rows(self, count: int) -> SceneRows:
        """Captions alone."""
        return self.table.sample(count, self.generator)

    def batch(self, count: int) -> tuple[torch.Tensor, SceneRows]:
        """Pictures [n, 3, h, w] in -1 … 1, and their scenes."""
        if self.composer is None:
            raise ValueError("this source was opened for captions alone")
        rows = self.rows(count)
        return self.composer.paint(rows, self.generator), rows

    def covered(self, rows: SceneRows) -> torch.Tensor:
        """Where drawings hide the background, bool [n, 1, h, w]."""
        if self.composer is None:
            raise ValueError("this source was opened for captions alone")
        return self.composer.cover(rows) >= HIDING


def bank_file(work: Path, name: str) -> Path:
    """Where the array of that name lies (`banks.py`)."""
    return work / f"{name}.npy"


def failed_banks(work: Path) -> Path:
    """A file that is there when the banks could not be made, and says why."""
    return work / "banks-failed.txt"


def load_bank(work: Path, name: str, device: torch.device) -> torch.Tensor:
    """The array of that name, on the device; waits for one that is being made."""
    waited_until = time.monotonic() + WAIT_FOR_BANKS
    while not bank_file(work, name).exists():
        if failed_banks(work).exists():
            raise RuntimeError(failed_banks(work).read_text())
        if time.monotonic() > waited_until:
            raise TimeoutError(f"{bank_file(work, name)} is not there: run the stage `banks`")
        time.sleep(0.05)
    return torch.from_numpy(np.load(bank_file(work, name), mmap_mode="c")).to(device)


def scene_maker(
    sprites: Sprites, preset: Preset, telling: Telling, seed: int, work: Path
) -> SceneMaker:
    """The maker of such scenes."""
    near = near_words(sprites.things, work) if telling.near else None
    return SceneMaker(sprites, preset.image_size, seed, near, preset.near_share)


def open_source(
    name: str, sprites: Sprites, preset: Preset, work: Path, device: torch.device, seed: int
) -> SceneSource:
    """The source of the kind named in TELLINGS; pictures of `words` are not wanted on a GPU."""
    if not preset.table_rows:
        maker = scene_maker(sprites, preset, TELLINGS[name], seed, work)
        tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
        return FreshScenes(maker, TELLINGS[name], device, tokenizer)
    table = SceneRows(load_bank(work, name, device))
    if name == "words":
        return BankedScenes(table, None, seed)
    backgrounds, overlays = (load_bank(work, bank, device) for bank in ("backgrounds", "overlays"))
    return BankedScenes(table, Composer(backgrounds, overlays), seed)
