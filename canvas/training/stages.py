"""The stages of the recipe, one function each, and the options that all of them read."""

import json
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from canvas.training import autoencoder, classifier, decoder, denoiser, text
from canvas.training.banks import make_banks
from canvas.training.checkpoints import Clock, pick_device
from canvas.training.evaluate import Settings, evaluate, time_pipeline
from canvas.training.export import export_model, write_card
from canvas.training.layers import prepare_layers
from canvas.training.parallel import Team, run_team
from canvas.training.presets import Preset
from canvas.training.sampling import Sampler
from canvas.training.sheet import contact_sheet
from canvas.training.sprites import Sprites, build_sprites
from canvas.training.tokens import prepare_tokenizer

# Minutes of each training stage, by preset; the README says what they took.
MINUTES = {
    "cpu": {"autoencoder": 40, "text": 45, "denoiser": 75, "decoder": 50, "judge": 15},
    "gpu": {"autoencoder": 1.5, "text": 2.1, "denoiser": 2.3, "decoder": 1.0, "judge": 0.8},
}


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    stages: tuple[str, ...]
    preset: Preset
    preset_name: str
    work: Path
    packages: Path
    target: Path
    minutes: float | None
    stop_after: float | None
    until: float | None  # of the monotonic clock: when all trainings are to be done
    report_every: float
    steps: int
    guidance_scale: float
    beside: tuple[str, ...]  # stages that run in a process of their own meanwhile

    def clock(self, stage: str) -> Clock:
        """A clock for the stage's minutes."""
        minutes = self.minutes or MINUTES[self.preset_name][stage]
        deadline = None if self.until is None else time.monotonic() + self._share(stage)
        return Clock(minutes, pick_device(), self.report_every, self.stop_after, deadline)

    def _share(self, stage: str) -> float:
        """Seconds: of those left for this and later stages, in proportion to the usual minutes."""
        usual = MINUTES[self.preset_name]
        later = self.stages[self.stages.index(stage) :]
        left = max(0.0, (self.until or 0.0) - time.monotonic())
        return left * usual[stage] / sum(usual.get(name, 0) for name in later)


@cache
def load_sprites(work: Path) -> Sprites:
    """The drawings, decoded once."""
    return Sprites.load(work / "sprites")


def start_log() -> None:
    """Lines with their time."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")


def _in_team(team: Team, train: Callable[..., None], stage: str, options: Options) -> None:
    start_log()
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
    sprites = load_sprites(options.work)
    train(team, sprites, options.preset, options.work, options.clock(stage))


def _train(train: Callable[..., None], stage: str, options: Options) -> None:
    workers = 1 if torch.cuda.is_available() else options.preset.workers
    run_team(workers, options.work, _in_team, train, stage, options)


def stage_sprites(options: Options) -> None:
    """Render the drawings."""
    name = options.preset.things_file
    things_file = Path(__file__).with_name(name) if name else None
    build_sprites(options.preset, options.packages, things_file).save(options.work / "sprites")


def stage_banks(options: Options) -> None:
    """Make the near words and the tokenizer; for a GPU also scenes, backgrounds and placements."""
    sprites = load_sprites(options.work)
    prepare_tokenizer(sprites, options.preset, options.work, options.packages)
    if options.preset.table_rows:
        make_banks(sprites, options.preset, options.work)


def stage_text(options: Options) -> None:
    """Encode the drawings, train the text encoder."""
    sprites = load_sprites(options.work)
    prepare_layers(sprites, options.preset, options.work, pick_device())
    _train(text.train_text, "text", options)


def stage_evaluate(options: Options) -> None:
    """Measure the exported model and write its card."""
    sprites = load_sprites(options.work)
    judge = classifier.load_judge(options.work, len(sprites.things))
    settings = Settings(options.steps, options.guidance_scale)
    sampler = Sampler(options.target, pick_device())
    figures = evaluate(sampler, judge, sprites, options.preset.picture_size, settings)
    figures |= time_pipeline(options.target, settings)
    (options.work / "figures.json").write_text(json.dumps(figures, indent=1))
    write_card(options.work, options.target, sprites)


def stage_modes(options: Options) -> None:
    """Hold Balanced against Quality and write it into the card; fails where it is too far."""
    from canvas.training.modes import compare_modes, modes_figures

    sprites = load_sprites(options.work)
    judge = classifier.load_judge(options.work, len(sprites.things))
    quality, balanced = compare_modes(options.target, judge, sprites)
    path = options.work / "figures.json"
    figures = json.loads(path.read_text()) if path.exists() else {}
    figures |= modes_figures(quality, balanced)
    path.write_text(json.dumps(figures, indent=1))
    write_card(options.work, options.target, sprites)
    if not balanced.is_close_to(quality):
        sys.exit("Balanced is too far from Quality: see canvas/modes.py.")


def stage_sheet(options: Options) -> None:
    """Draw 64 prompts with the exported model."""
    path = options.work / "sheet.png"
    sampler = Sampler(options.target, pick_device())
    contact_sheet(sampler, path, options.steps, options.guidance_scale)


def stage_export(options: Options) -> None:
    """Write the model and its card."""
    export_model(options.work, options.target)
    write_card(options.work, options.target, load_sprites(options.work))


STAGES: dict[str, Callable[[Options], None]] = {
    "sprites": stage_sprites,
    "banks": stage_banks,
    "autoencoder": lambda o: _train(autoencoder.train_autoencoder, "autoencoder", o),
    "text": stage_text,
    "denoiser": lambda o: _train(denoiser.train_denoiser, "denoiser", o),
    "decoder": lambda o: _train(decoder.train_decoder, "decoder", o),
    "judge": lambda o: _train(classifier.train_judge, "judge", o),
    "export": stage_export,
    "sheet": stage_sheet,
    "evaluate": stage_evaluate,
    "modes": stage_modes,
}
