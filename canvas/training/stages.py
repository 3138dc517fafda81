"""The stages of the recipe, and the options that they share."""

import json
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from canvas.training.assets import SpriteSet, build_sprites
from canvas.training.autoencoder import train_autoencoder
from canvas.training.config import TrainingConfig
from canvas.training.contact_sheet import write_contact_sheet
from canvas.training.decoder_finetune import finetune_decoder
from canvas.training.denoiser import train_denoiser
from canvas.training.distributed import ProcessGroup, launch
from canvas.training.eval_classifier import load_classifier, train_classifier
from canvas.training.evaluate import EvalConfig, evaluate, time_pipeline
from canvas.training.export import export_model, load_metrics, write_card
from canvas.training.precompute import build_precomputed_arrays
from canvas.training.sampling import Sampler
from canvas.training.text_encoder import train_text_encoder
from canvas.training.time_budget import TimeBudget
from canvas.training.token_targets import compute_token_targets
from canvas.training.tokenizer import prepare_tokenizer
from canvas.training.train_step import pick_device

# Minutes of each training stage, by preset.
MINUTES = {
    "cpu": {"autoencoder": 40, "text": 45, "denoiser": 75, "decoder": 50, "classifier": 15},
    "gpu": {"autoencoder": 1.5, "text": 2.1, "denoiser": 2.3, "decoder": 1.0, "classifier": 0.8},
}
# Names in the work folders of earlier versions.
OLD_FILES = {
    "judge.pt": "classifier.pt",
    "judge-training.pt": "classifier-training.pt",
    "near.json": "synonyms.json",
    "layers.pt": "token_targets.pt",
    "words.npy": "synonyms.npy",
    "vae-start": "vae-init",
    "vae-finished": "vae-finetuned",
}


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
    deadline: float | None  # for all trainings, in seconds of the monotonic clock
    report_every: float
    num_inference_steps: int
    guidance_scale: float
    parallel_stages: tuple[str, ...]  # run in separate processes meanwhile

    def budget(self, stage: str) -> TimeBudget:
        """The time budget of a training stage."""
        minutes = self.minutes or MINUTES[self.preset][stage]
        deadline = None if self.deadline is None else time.monotonic() + self._seconds_left(stage)
        return TimeBudget(minutes, pick_device(), self.report_every, self.stop_after, deadline)

    def _seconds_left(self, stage: str) -> float:
        """The stage's part of the time until the deadline, in proportion to MINUTES."""
        minutes = MINUTES[self.preset]
        remaining = self.stages[self.stages.index(stage) :]
        left = max(0.0, (self.deadline or 0.0) - time.monotonic())
        return left * minutes[stage] / sum(minutes.get(name, 0) for name in remaining)

    @property
    def eval_config(self) -> EvalConfig:
        """The sampling parameters for the evaluation."""
        return EvalConfig(self.num_inference_steps, self.guidance_scale)


@cache
def load_sprites(work: Path) -> SpriteSet:
    """The sprites, decoded once per process."""
    return SpriteSet.load(work / "sprites")


def rename_old_files(work: Path) -> None:
    """Give the files of earlier versions their current names."""
    for old, new in OLD_FILES.items():
        if (work / old).exists() and not (work / new).exists():
            (work / old).rename(work / new)


def configure_logging() -> None:
    """Log with timestamps."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")


def _train_process(process_group: ProcessGroup, train: Callable[..., None], stage: str, options: Options) -> None:
    configure_logging()
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
    sprites = load_sprites(options.work)
    train(process_group, sprites, options.config, options.work, options.budget(stage))


def _train(train: Callable[..., None], stage: str, options: Options) -> None:
    num_processes = 1 if torch.cuda.is_available() else options.config.workers
    launch(num_processes, options.work, _train_process, train, stage, options)


def stage_sprites(options: Options) -> None:
    """Render the sprites."""
    name = options.config.concepts_file
    concepts_file = Path(__file__).with_name(name) if name else None
    build_sprites(options.config, options.packages, concepts_file).save(options.work / "sprites")


def stage_precompute(options: Options) -> None:
    """Build synonyms and tokenizer; for a GPU also scenes, backgrounds and overlays."""
    sprites = load_sprites(options.work)
    prepare_tokenizer(sprites, options.config, options.work, options.packages)
    if options.config.precomputed_scenes:
        build_precomputed_arrays(sprites, options.config, options.work)


def stage_text(options: Options) -> None:
    """Compute the token targets and train the text encoder."""
    sprites = load_sprites(options.work)
    compute_token_targets(sprites, options.config, options.work, pick_device())
    _train(train_text_encoder, "text", options)


def stage_evaluate(options: Options) -> None:
    """Measure the exported model and write its card."""
    sprites = load_sprites(options.work)
    classifier = load_classifier(options.work, len(sprites.concepts))
    sampler = Sampler(options.target, pick_device())
    size, config = options.config.output_size, options.eval_config
    metrics = evaluate(sampler, classifier, sprites, size, config)
    metrics |= time_pipeline(options.target, config)
    (options.work / "metrics.json").write_text(json.dumps(metrics, indent=1))
    write_card(options.work, options.target, sprites)


def stage_preset_regression(options: Options) -> None:
    """Compare Balanced with Quality and write the card; exits with an error if they differ."""
    from canvas.training.preset_regression import compare_presets, preset_metrics

    sprites = load_sprites(options.work)
    classifier = load_classifier(options.work, len(sprites.concepts))
    quality, balanced = compare_presets(options.target, classifier, sprites)
    metrics = load_metrics(options.work) | preset_metrics(quality, balanced)
    (options.work / "metrics.json").write_text(json.dumps(metrics, indent=1))
    write_card(options.work, options.target, sprites)
    if not balanced.is_close_to(quality):
        sys.exit("Balanced differs too much from Quality; adjust it in canvas/presets.py.")


def stage_contact_sheet(options: Options) -> None:
    """Generate images of 64 prompts with the exported model."""
    path = options.work / "contact-sheet.png"
    sampler = Sampler(options.target, pick_device())
    write_contact_sheet(sampler, path, options.num_inference_steps, options.guidance_scale)


def stage_export(options: Options) -> None:
    """Write the pipeline and its card."""
    export_model(options.work, options.target)
    write_card(options.work, options.target, load_sprites(options.work))


STAGES: dict[str, Callable[[Options], None]] = {
    "sprites": stage_sprites,
    "precompute": stage_precompute,
    "autoencoder": lambda options: _train(train_autoencoder, "autoencoder", options),
    "text": stage_text,
    "denoiser": lambda options: _train(train_denoiser, "denoiser", options),
    "decoder": lambda options: _train(finetune_decoder, "decoder", options),
    "classifier": lambda options: _train(train_classifier, "classifier", options),
    "export": stage_export,
    "contact-sheet": stage_contact_sheet,
    "evaluate": stage_evaluate,
    "preset-regression": stage_preset_regression,
}
# Former names that the command line still accepts.
OLD_STAGES = {"banks": "precompute", "judge": "classifier", "sheet": "contact-sheet", "modes": "preset-regression"}
