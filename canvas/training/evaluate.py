"""Figures of the finished model on prompts whose combinations never occurred in training."""

import json
import logging
import time
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from random import Random

import numpy as np
import torch

from canvas.training.backgrounds import BACKGROUNDS
from canvas.training.captions import COLOUR_PHRASES, PLACE_PHRASES, article
from canvas.training.classifier import Judge
from canvas.training.packages import STYLES
from canvas.training.pixels import to_tensor
from canvas.training.sampling import Sampler
from canvas.training.scenes import DEFAULT_STYLE, Scene, SceneMaker, is_held_out, is_held_out_pair
from canvas.training.sprites import Sprites
from canvas.training.synonyms import NEAR_SYNONYMS

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """How pictures are made, and how many of each kind."""

    steps: int
    guidance_scale: float
    single: int = 200
    pairs: int = 64
    batch: int = 16


def plain_caption(words: list[str], style: int, place: int) -> str:
    """The plainest prompt: `a fox in the snow, 3d`."""
    name = BACKGROUNDS[place]
    where = PLACE_PHRASES[name][0] if name in PLACE_PHRASES else COLOUR_PHRASES[0].format(name)
    return f"{' and '.join(article(word) for word in words)} {where}, {STYLES[style]}"


def _all_styles(sprites: Sprites) -> list[int]:
    return sorted(set(sprites.style_of.tolist()))


def held_out_singles(sprites: Sprites, count: int, rng: Random) -> list[Scene]:
    """Held-out combinations of thing, style and place, as evenly over things as they fall."""
    found = [
        Scene((row,), style, place, plain_caption([thing.name], style, place))
        for row, thing in enumerate(sprites.things)
        for style in _all_styles(sprites)
        for place in range(len(BACKGROUNDS))
        if (row, style) in sprites.index and is_held_out(thing, style, place)
    ]
    rng.shuffle(found)
    return found[:count]


def held_out_pairs(sprites: Sprites, count: int, rng: Random) -> list[Scene]:
    """Pairs of things that training never saw together, at random places."""
    found = []
    for first, second in combinations(range(len(sprites.things)), 2):
        things = (first, second) if rng.random() < 0.5 else (second, first)
        named = [sprites.things[row] for row in things]
        style, place = rng.choice(_all_styles(sprites)), rng.randrange(len(BACKGROUNDS))
        if is_held_out_pair(*named) and all((row, style) in sprites.index for row in things):
            text = plain_caption([thing.name for thing in named], style, place)
            found.append(Scene(things, style, place, text))
    rng.shuffle(found)
    return found[:count]


def near_synonym_scenes(sprites: Sprites, rng: Random) -> list[Scene]:
    """One prompt for each near-synonym with a thing that is drawn; its `things` are all right."""
    rows = {thing.name: row for row, thing in enumerate(sprites.things)}
    scenes = []
    for word, names in NEAR_SYNONYMS.items():
        right = tuple(rows[name] for name in names if name in rows)
        if right:
            place = rng.randrange(len(BACKGROUNDS))
            text = plain_caption([word], DEFAULT_STYLE, place)
            scenes.append(Scene(right, DEFAULT_STYLE, place, text))
    return scenes


@torch.no_grad()
def judged(judge: Judge, pixels: torch.Tensor, scenes: list[Scene]) -> dict[str, float]:
    """Shares of pictures with the thing, the style, the place and both things right."""
    things, style, place = judge(pixels.cpu().float())
    order = things.argsort(dim=1, descending=True).tolist()
    styles, places = style.argmax(1).tolist(), place.argmax(1).tolist()
    rows = range(len(scenes))
    return {
        "top1": float(np.mean([order[i][0] in scenes[i].things for i in rows])),
        "top5": float(np.mean([bool({*order[i][:5]} & {*scenes[i].things}) for i in rows])),
        "both": float(
            np.mean([{*scenes[i].things} <= {*order[i][: len(scenes[i].things)]} for i in rows])
        ),
        "style": float(np.mean([styles[i] == scenes[i].style for i in rows])),
        "place": float(np.mean([places[i] == scenes[i].place for i in rows])),
    }


def drawn(sampler: Sampler, scenes: list[Scene], settings: Settings, seed: int) -> torch.Tensor:
    """The sampler's pictures of the scenes' captions."""
    parts = [
        sampler.sample(
            [scene.caption for scene in scenes[start : start + settings.batch]],
            settings.steps,
            settings.guidance_scale,
            seed + start,
        ).cpu()
        for start in range(0, len(scenes), settings.batch)
    ]
    return torch.cat(parts)


def real(sprites: Sprites, size: int, scenes: list[Scene]) -> torch.Tensor:
    """The same scenes composed of the drawings: what the judge says of the best possible."""
    maker = SceneMaker(sprites, size, seed=777_777)
    return to_tensor(np.stack([np.asarray(maker.paint(scene)) for scene in scenes]))


def variety(sampler: Sampler, scenes: list[Scene], settings: Settings, seeds: int = 4) -> float:
    """Mean absolute difference of pictures of one prompt and different seeds, in % of range."""
    pictures = [drawn(sampler, scenes, settings, seed=9_000 + 1_000 * i) for i in range(seeds)]
    differences = [(a - b).abs().mean() / 2 for a, b in combinations(pictures, 2)]
    return 100 * float(torch.stack(differences).mean())


def evaluate(
    sampler: Sampler, judge: Judge, sprites: Sprites, size: int, settings: Settings
) -> dict[str, float]:
    """All figures in shares of 1, variety in %; `real_` ones are of composed scenes."""
    rng = Random(4242)
    single = held_out_singles(sprites, settings.single, rng)
    pairs = held_out_pairs(sprites, settings.pairs, rng)
    near = near_synonym_scenes(sprites, rng)
    started = time.monotonic()
    of_single = judged(judge, drawn(sampler, single, settings, seed=1), single)
    seconds = (time.monotonic() - started) / len(single)
    of_pairs = judged(judge, drawn(sampler, pairs, settings, seed=2), pairs)
    of_near = judged(judge, drawn(sampler, near, settings, seed=3), near) if near else {}
    best = judged(judge, real(sprites, size, single), single)
    best_pairs = judged(judge, real(sprites, size, pairs), pairs)
    figures = {
        "thing_top1": of_single["top1"],
        "thing_top5": of_single["top5"],
        "style": of_single["style"],
        "place": of_single["place"],
        "pairs_both": of_pairs["both"],
        "near_synonyms": of_near.get("top1", float("nan")),
        "near_synonyms_top5": of_near.get("top5", float("nan")),
        "variety_percent": variety(sampler, single[: settings.batch], settings),
        "seconds_in_batches": seconds,
        "steps": settings.steps,
        "guidance_scale": settings.guidance_scale,
        "prompts": len(single),
        "pair_prompts": len(pairs),
        "near_prompts": len(near),
        "real_top1": best["top1"],
        "real_top5": best["top5"],
        "real_style": best["style"],
        "real_place": best["place"],
        "real_both": best_pairs["both"],
    }
    logger.info("%s", json.dumps(figures))
    return figures


def time_pipeline(folder: Path, settings: Settings, runs: int = 3) -> dict[str, float]:
    """Seconds to load the folder and to make one picture as the app does."""
    from diffusers import StableDiffusionPipeline

    started = time.monotonic()
    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    loaded = time.monotonic()
    for seed in range(runs):
        pipeline(
            "a fox in the snow, 3d",
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance_scale,
            generator=torch.Generator().manual_seed(seed),
        )
    return {
        "load_seconds": loaded - started,
        "seconds_a_picture": (time.monotonic() - loaded) / runs,
    }
