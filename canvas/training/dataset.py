"""Training data: scenes generated on the fly, or composited on a GPU from precomputed arrays."""

import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from transformers import CLIPTokenizer

from canvas.training.assets import SpriteSet
from canvas.training.backgrounds import BACKGROUNDS, FLOATING
from canvas.training.config import TrainingConfig
from canvas.training.placement import PLACEMENTS, render_overlay
from canvas.training.scene_generator import SceneGenerator
from canvas.training.scene_table import MAX_SPRITES, PAD, SceneBatch
from canvas.training.tokenizer import tokenize
from canvas.training.word_expansion import load_or_build_synonyms

ARRAY_TIMEOUT = 90.0  # seconds
OPAQUE = 250  # of 255, the alpha from which the background does not show through


@dataclass(frozen=True)
class CaptionMode:
    """The fraction of scenes with two concepts, and whether captions use synonyms."""

    pair_ratio: float
    synonyms: bool = False


CAPTION_MODES = {"scenes": CaptionMode(0.22), "synonyms": CaptionMode(0.35, synonyms=True), "pairs": CaptionMode(0.5)}


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """uint8 [n, h, w, 3] to float [n, 3, h, w] in [-1, 1]."""
    return torch.tensor(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


class SceneDataset(Protocol):
    """An endless stream of scenes without held-out combinations."""

    def sample_captions(self, count: int) -> SceneBatch:
        """Scenes without their images."""

    def sample_images(self, count: int) -> tuple[torch.Tensor, SceneBatch]:
        """Images [n, 3, h, w] in [-1, 1], and their scenes."""

    def foreground_mask(self, batch: SceneBatch) -> torch.Tensor:
        """Where sprites hide the background, bool [n, 1, h, w]."""


class OnTheFlyDataset:
    """Generates every scene on the CPU, about a thousand per second and process."""

    def __init__(
        self, scenes: SceneGenerator, mode: CaptionMode, device: torch.device, tokenizer: CLIPTokenizer
    ) -> None:
        self.scenes = scenes
        self.mode = mode
        self.device = device
        self.tokenizer = tokenizer

    def sample_captions(self, count: int) -> SceneBatch:
        """Scenes without their images."""
        scenes = [self.scenes.sample(self.mode.pair_ratio) for _ in range(count)]
        token_ids = tokenize(self.tokenizer, [scene.caption for scene in scenes]).numpy()
        return SceneBatch.from_scenes(scenes, self.scenes.sprites, token_ids).to(self.device)

    def sample_images(self, count: int) -> tuple[torch.Tensor, SceneBatch]:
        """Images [n, 3, h, w] in [-1, 1], and their scenes."""
        images, scenes = self.scenes.sample_images(count, self.mode.pair_ratio)
        token_ids = tokenize(self.tokenizer, [scene.caption for scene in scenes]).numpy()
        batch = SceneBatch.from_scenes(scenes, self.scenes.sprites, token_ids)
        return to_tensor(images).to(self.device), batch.to(self.device)

    def foreground_mask(self, batch: SceneBatch) -> torch.Tensor:
        """Where sprites hide the background, bool [n, 1, h, w]."""
        size, images = self.scenes.image_size, self.scenes.sprites.images
        names = list(PLACEMENTS)
        alpha = np.zeros((len(batch), 1, size, size), np.uint8)
        placed = torch.stack([batch.sprites, batch.placements], 2).tolist()
        for row, part in product(range(len(batch)), range(MAX_SPRITES)):
            sprite, placement = placed[row][part]
            if sprite != PAD:
                alpha[row] |= render_overlay(images[sprite], names[placement], size)[3]
        return torch.from_numpy(alpha >= OPAQUE).to(self.device)


class BatchCompositor:
    """Does with tensors what `SceneGenerator.render` does with one image.

    backgrounds: uint8 [places, variants, 3, h, w].
    overlays: uint8 [sprites + 1, placements, 5, h, w] of `render_overlay`; the last is empty.
    """

    def __init__(self, backgrounds: torch.Tensor, overlays: torch.Tensor) -> None:
        self.backgrounds = backgrounds
        self.overlays = overlays
        floating = [name in FLOATING for name in BACKGROUNDS]
        self._has_ground = 1 - torch.tensor(floating, device=overlays.device).float()

    def render(self, batch: SceneBatch, generator: torch.Generator) -> torch.Tensor:
        """Images of the scenes with random backgrounds, [n, 3, h, w] in [-1, 1]."""
        place, variants = batch.place, self.backgrounds.shape[1]
        variant = torch.randint(0, variants, (len(batch),), generator=generator, device=self.backgrounds.device)
        images = self.backgrounds[place, variant].float()
        has_ground = self._has_ground[place].view(-1, 1, 1, 1)
        sprites, placements = batch.sprites, batch.placements
        for part in range(MAX_SPRITES):
            overlay = self.overlays[sprites[:, part], placements[:, part]].float()
            colour, alpha, shadow = overlay.split((3, 1, 1), dim=1)
            images = images * (1 - has_ground * shadow / 255)
            images = images * (1 - alpha / 255) + colour
        return images.div_(127.5).sub_(1)

    def alpha(self, batch: SceneBatch) -> torch.Tensor:
        """The maximum alpha of the scenes' sprites, uint8 [n, 1, h, w]."""
        return self.overlays[batch.sprites, batch.placements][:, :, 3].amax(1, keepdim=True)


class PrecomputedDataset:
    """Samples precomputed scenes and composites their images on the device."""

    def __init__(self, table: SceneBatch, compositor: BatchCompositor | None, seed: int) -> None:
        self.table = table
        self._compositor = compositor
        self.generator = torch.Generator(table.table.device).manual_seed(seed)

    @property
    def compositor(self) -> BatchCompositor:
        """Raises ValueError for a dataset of captions only."""
        if self._compositor is None:
            raise ValueError("the dataset was opened for captions only")
        return self._compositor

    def sample_captions(self, count: int) -> SceneBatch:
        """Scenes without their images."""
        return self.table.sample(count, self.generator)

    def sample_images(self, count: int) -> tuple[torch.Tensor, SceneBatch]:
        """Images [n, 3, h, w] in [-1, 1], and their scenes."""
        compositor, batch = self.compositor, self.sample_captions(count)
        return compositor.render(batch, self.generator), batch

    def foreground_mask(self, batch: SceneBatch) -> torch.Tensor:
        """Where sprites hide the background, bool [n, 1, h, w]."""
        return self.compositor.alpha(batch) >= OPAQUE


def array_path(work: Path, name: str) -> Path:
    """The file of a precomputed array."""
    return work / f"{name}.npy"


def precompute_error_path(work: Path) -> Path:
    """A file with the error message if precomputing failed."""
    return work / "precompute-error.txt"


def load_array(work: Path, name: str, device: torch.device) -> torch.Tensor:
    """A precomputed array on the device; waits while it is being computed.

    Raises RuntimeError if precomputing failed, TimeoutError if the array does not appear.
    """
    path, error_path = array_path(work, name), precompute_error_path(work)
    deadline = time.monotonic() + ARRAY_TIMEOUT
    while not path.exists():
        if error_path.exists():
            raise RuntimeError(error_path.read_text())
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path} does not exist: run the stage `precompute`")
        time.sleep(0.05)
    return torch.from_numpy(np.load(path, mmap_mode="c")).to(device)


def make_scene_generator(
    sprites: SpriteSet, config: TrainingConfig, mode: CaptionMode, seed: int, work: Path
) -> SceneGenerator:
    """The scene generator of a caption mode."""
    synonyms = load_or_build_synonyms(sprites.concepts, work) if mode.synonyms else None
    return SceneGenerator(sprites, config.image_size, seed, synonyms, config.synonym_ratio)


def make_dataset(
    mode: str, sprites: SpriteSet, config: TrainingConfig, work: Path, device: torch.device, seed: int
) -> SceneDataset:
    """The dataset of a mode in CAPTION_MODES; precomputed ones of `synonyms` have no images."""
    if not config.precomputed_scenes:
        scenes = make_scene_generator(sprites, config, CAPTION_MODES[mode], seed, work)
        tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
        return OnTheFlyDataset(scenes, CAPTION_MODES[mode], device, tokenizer)
    table = SceneBatch(load_array(work, mode, device))
    if mode == "synonyms":
        return PrecomputedDataset(table, None, seed)
    backgrounds, overlays = (load_array(work, name, device) for name in ("backgrounds", "overlays"))
    return PrecomputedDataset(table, BatchCompositor(backgrounds, overlays), seed)
