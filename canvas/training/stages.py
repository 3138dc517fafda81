"""The stages of the recipe, and the options that they share."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from canvas.training.assets import SpriteSet, build_sprites
from canvas.training.classifier import SceneClassifier
from canvas.training.config import TrainingConfig
from canvas.training.contact_sheet import write_newcomers_sheet
from canvas.training.decoder import train_decoder
from canvas.training.denoiser import background_codes, train_denoiser
from canvas.training.evaluate import Sampler, evaluate, time_pipeline
from canvas.training.export import export_model, write_card
from canvas.training.latents import LatentBasis, to_patches
from canvas.training.scenes import SceneSampler, render_backgrounds
from canvas.training.text_encoder import LENGTH, build_text_encoder, drawing_cells, encode_drawings
from canvas.training.time_budget import TimeBudget
from canvas.training.tokenizer import TokenTable, save_tokenizer
from canvas.training.word_table import write_words
from canvas.vocabulary import load_vocabulary

logger = logging.getLogger(__name__)
# Minutes of each training stage, by preset.
MINUTES = {"cpu": {"denoiser": 120, "decoder": 90}, "gpu": {"denoiser": 6, "decoder": 3}}
NUM_SCENES_OF_BASIS = 4000


@dataclass(frozen=True)
class Options:
    """The options of the command line."""

    stages: tuple[str, ...]
    config: TrainingConfig
    preset: str
    work: Path
    packages: Path
    target: Path
    minutes: float | None
    stop_after: float | None

    def budget(self, stage: str) -> TimeBudget:
        """The time budget of a training stage."""
        minutes = self.minutes or MINUTES[self.preset][stage]
        return TimeBudget(minutes, pick_device(), self.stop_after)


def pick_device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@cache
def load_sprites(work: Path) -> SpriteSet:
    """The sprites, decoded once per process."""
    return SpriteSet.load(work / "sprites")


def stage_sprites(options: Options) -> None:
    """Render the sprites."""
    build_sprites(options.config, options.packages).save(options.work / "sprites")


def stage_latents(options: Options) -> None:
    """Compute the principal components of patches."""
    sampler = SceneSampler(load_sprites(options.work), render_backgrounds(options.config, options.work), seed=1)
    torch.manual_seed(1)
    parts = []
    for _ in range(0, NUM_SCENES_OF_BASIS, 200):
        patches = to_patches(sampler.images([sampler.sample() for _ in range(200)]))
        parts.append(patches[torch.rand(len(patches)) < 0.5])  # keeps the memory small
    LatentBasis.fit(torch.cat(parts), options.config.latent_channels).save(options.work)


def stage_text(options: Options) -> None:
    """Construct the tokenizer and the text encoder."""
    sprites, work = load_sprites(options.work), options.work
    basis, table = LatentBasis.load(work), TokenTable.build(sprites)
    codes = encode_drawings(drawing_cells(sprites, basis), basis, options.config.code_size)
    logger.info("the codes explain %.1f %% of the drawings' variance", 100 * codes.explained)
    codes.save(work)
    save_tokenizer(table, LENGTH, work / "tokenizer")
    build_text_encoder(codes, table).save_pretrained(work / "text_encoder")


def stage_evaluate(options: Options) -> None:
    """Measure the exported model and write its card."""
    work, sprites = options.work, load_sprites(options.work)
    backgrounds = render_backgrounds(options.config, work)
    classifier = SceneClassifier(sprites, backgrounds)
    scenes = SceneSampler(sprites, backgrounds, seed=4242, held_out=True)
    codes = background_codes(backgrounds, LatentBasis.load(work), work)
    vocabulary = load_vocabulary(options.target)
    metrics = evaluate(Sampler(options.target, pick_device()), classifier, scenes, codes, vocabulary)
    metrics |= time_pipeline(options.target, scenes.sample("one").prompt(sprites))
    (work / "metrics.json").write_text(json.dumps(metrics, indent=1))
    write_card(work, options.target, sprites)


def stage_contact_sheet(options: Options) -> None:
    """Generate images of prompts of newcomers, as the app gives them to the exported model."""
    write_newcomers_sheet(Sampler(options.target, pick_device()), options.target)


def stage_export(options: Options) -> None:
    """Write the pipeline and its card."""
    export_model(options.work, options.target)
    write_card(options.work, options.target, load_sprites(options.work))


def stage_words(options: Options) -> None:
    """Write what the app knows of the model's words."""
    write_words(load_sprites(options.work), options.packages, options.target)


def _train(train: Callable[..., None], stage: str, options: Options) -> None:
    train(load_sprites(options.work), options.config, options.work, options.budget(stage))


STAGES: dict[str, Callable[[Options], None]] = {
    "sprites": stage_sprites,
    "latents": stage_latents,
    "text": stage_text,
    "denoiser": lambda options: _train(train_denoiser, "denoiser", options),
    "decoder": lambda options: _train(train_decoder, "decoder", options),
    "export": stage_export,
    "words": stage_words,
    "evaluate": stage_evaluate,
    "contact-sheet": stage_contact_sheet,
}
