"""Whether Balanced draws what Quality draws, by likeness and by the judge."""

import json
import logging
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from statistics import fmean

import numpy as np
import torch
from PIL import Image

from canvas.benchmark.similarity import ssim
from canvas.catalog import MODELS
from canvas.engine.device import detect_device
from canvas.engine.generate import generate
from canvas.engine.pipeline_cache import PipelineCache
from canvas.models.download import LocalModel
from canvas.request import GenerationRequest
from canvas.settings import Settings
from canvas.training.classifier import Judge
from canvas.training.evaluate import held_out_singles, judged
from canvas.training.pixels import to_tensor
from canvas.training.scenes import Scene
from canvas.training.sprites import Sprites

logger = logging.getLogger(__name__)
PROMPTS = 32
# Each prompt is drawn from so many seeds, so that one picture is less than a point.
SEEDS = 4
COMPARED = ("quality", "balanced")
LEAST_SSIM, MOST_POINTS = 0.90, 2.0


@dataclass(frozen=True)
class ModeFigures:
    """Means over all pictures of a mode, shares of 100; a median of seconds."""

    mode: str
    steps: int
    ssim: float
    thing_top1: float
    thing_top5: float
    seconds: float

    def is_close_to(self, quality: "ModeFigures") -> bool:
        """Alike enough, and what the picture shows is found as often within two points."""
        points = abs(self.thing_top1 - quality.thing_top1)
        return self.ssim >= LEAST_SSIM and points <= MOST_POINTS


def compare_modes(folder: Path, judge: Judge, sprites: Sprites) -> list[ModeFigures]:
    """Quality and Balanced of the model in that folder, made the way of the program."""
    scenes = held_out_singles(sprites, PROMPTS, Random(4242))
    drawn = {mode: _drawn(folder, mode, scenes) for mode in COMPARED}
    reference = drawn["quality"][0]
    figures = []
    for mode, (pictures, seconds, steps) in drawn.items():
        pixels = to_tensor(np.stack([np.asarray(picture) for picture in pictures]))
        found = judged(judge, pixels, scenes * SEEDS)
        pairs = zip(reference, pictures, strict=True)
        likeness = fmean(ssim(one, other) for one, other in pairs)
        top1, top5 = 100 * found["top1"], 100 * found["top5"]
        figures.append(ModeFigures(mode, steps, likeness, top1, top5, seconds))
        logger.info("%s", json.dumps(vars(figures[-1])))
    return figures


def modes_figures(quality: ModeFigures, balanced: ModeFigures) -> dict[str, float]:
    """What the card tells of the two, in shares of 1."""
    return {
        "modes_prompts": PROMPTS,
        "modes_seeds": SEEDS,
        "balanced_ssim": balanced.ssim,
        "balanced_top1": balanced.thing_top1 / 100,
        "quality_top1": quality.thing_top1 / 100,
    }


def _drawn(folder: Path, mode: str, scenes: list[Scene]) -> tuple[list[Image.Image], float, int]:
    """The pictures of all scenes, seed after seed, the seconds of one, and its steps."""
    spec = replace(MODELS["starter"], name=str(folder))
    settings = Settings.from_environment()
    device = detect_device(settings.cache_dir, settings.device, settings.dtype)
    pipeline = PipelineCache(device).get(spec, LocalModel(folder, spec.name), mode=mode)
    made = []
    for seed in range(SEEDS):
        for scene in scenes:
            request = GenerationRequest(scene.caption, seed=seed, preset=mode).with_defaults(spec)
            made += generate(
                pipeline,
                request,
                spec=spec,
                device=device,
                on_step=lambda _: None,
                cancelled=threading.Event(),
            )
    pictures = [picture.image for picture in made if picture.image is not None]
    seconds = float(torch.tensor([picture.generation_time for picture in made]).median())
    return pictures, seconds, made[0].request.num_inference_steps or 0
