"""Measures an exported model on prompts with combinations held out of training."""

import json
import logging
import time
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from random import Random

import numpy as np
import torch

from canvas.training.art_packages import STYLES
from canvas.training.assets import SpriteSet
from canvas.training.backgrounds import BACKGROUNDS
from canvas.training.captions import COLOUR_PHRASES, NEAR_SYNONYMS, PLACE_PHRASES, article
from canvas.training.dataset import to_tensor
from canvas.training.eval_classifier import SceneClassifier
from canvas.training.sampling import Sampler
from canvas.training.scene_generator import DEFAULT_STYLE, Scene, SceneGenerator, is_held_out, is_held_out_pair

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvalConfig:
    """Sampling parameters and the number of prompts of each kind."""

    num_inference_steps: int
    guidance_scale: float
    num_singles: int = 200
    num_pairs: int = 64
    batch_size: int = 16


def plain_caption(words: list[str], style: int, place: int) -> str:
    """The simplest prompt: `a fox in the snow, 3d`."""
    name = BACKGROUNDS[place]
    where = PLACE_PHRASES[name][0] if name in PLACE_PHRASES else COLOUR_PHRASES[0].format(name)
    return f"{' and '.join(article(word) for word in words)} {where}, {STYLES[style]}"


def held_out_singles(sprites: SpriteSet, count: int, rng: Random) -> list[Scene]:
    """Random held-out combinations of concept, style and place."""
    scenes = [
        Scene((row,), style, place, plain_caption([concept.name], style, place))
        for row, concept in enumerate(sprites.concepts)
        for style in sprites.styles
        for place in range(len(BACKGROUNDS))
        if (row, style) in sprites.index and is_held_out(concept, style, place)
    ]
    rng.shuffle(scenes)
    return scenes[:count]


def held_out_pairs(sprites: SpriteSet, count: int, rng: Random) -> list[Scene]:
    """Random held-out pairs of concepts in random places."""
    scenes = []
    for first, second in combinations(range(len(sprites.concepts)), 2):
        rows = (first, second) if rng.random() < 0.5 else (second, first)
        concepts = [sprites.concepts[row] for row in rows]
        style, place = rng.choice(sprites.styles), rng.randrange(len(BACKGROUNDS))
        if is_held_out_pair(*concepts) and all((row, style) in sprites.index for row in rows):
            text = plain_caption([concept.name for concept in concepts], style, place)
            scenes.append(Scene(rows, style, place, text))
    rng.shuffle(scenes)
    return scenes[:count]


def near_synonym_scenes(sprites: SpriteSet, rng: Random) -> list[Scene]:
    """One prompt for each near-synonym; the scene's `concepts` are all correct answers."""
    rows = {concept.name: row for row, concept in enumerate(sprites.concepts)}
    scenes = []
    for word, names in NEAR_SYNONYMS.items():
        correct = tuple(rows[name] for name in names if name in rows)
        if correct:
            place = rng.randrange(len(BACKGROUNDS))
            text = plain_caption([word], DEFAULT_STYLE, place)
            scenes.append(Scene(correct, DEFAULT_STYLE, place, text))
    return scenes


@torch.no_grad()
def classify(classifier: SceneClassifier, pixels: torch.Tensor, scenes: list[Scene]) -> dict[str, float]:
    """Accuracies, 0 to 1: `top1`, `top5`, `both` concepts of a pair, `style`, `place`."""
    concepts, style, place = classifier(pixels.cpu().float())
    ranking = concepts.argsort(dim=1, descending=True).tolist()
    styles, places = style.argmax(1).tolist(), place.argmax(1).tolist()
    results = [
        {
            "top1": ranked[0] in scene.concepts,
            "top5": bool({*ranked[:5]} & {*scene.concepts}),
            "both": {*scene.concepts} <= {*ranked[: len(scene.concepts)]},
            "style": predicted_style == scene.style,
            "place": predicted_place == scene.place,
        }
        for scene, ranked, predicted_style, predicted_place in zip(scenes, ranking, styles, places, strict=True)
    ]
    return {name: float(np.mean([each[name] for each in results])) for name in results[0]}


def sample(sampler: Sampler, scenes: list[Scene], config: EvalConfig, seed: int) -> torch.Tensor:
    """Images generated from the scenes' captions."""
    parts = [
        sampler.sample(
            [scene.caption for scene in scenes[start : start + config.batch_size]],
            config.num_inference_steps,
            config.guidance_scale,
            seed + start,
        ).cpu()
        for start in range(0, len(scenes), config.batch_size)
    ]
    return torch.cat(parts)


def composite_reference(sprites: SpriteSet, size: int, scenes: list[Scene]) -> torch.Tensor:
    """The same scenes composited from sprites: the upper bound of the accuracies."""
    generator = SceneGenerator(sprites, size, seed=777_777)
    return to_tensor(np.stack([np.asarray(generator.render(scene)) for scene in scenes]))


def diversity(sampler: Sampler, scenes: list[Scene], config: EvalConfig, num_seeds: int = 4) -> float:
    """Mean absolute difference of images of one prompt and different seeds, in % of the range."""
    images = [sample(sampler, scenes, config, seed=9_000 + 1_000 * i) for i in range(num_seeds)]
    differences = [(a - b).abs().mean() / 2 for a, b in combinations(images, 2)]
    return 100 * float(torch.stack(differences).mean())


def evaluate(
    sampler: Sampler, classifier: SceneClassifier, sprites: SpriteSet, size: int, config: EvalConfig
) -> dict[str, float]:
    """All metrics; accuracies are 0 to 1, those of composited scenes start with `reference_`."""
    rng = Random(4242)
    singles = held_out_singles(sprites, config.num_singles, rng)
    pairs = held_out_pairs(sprites, config.num_pairs, rng)
    synonyms = near_synonym_scenes(sprites, rng)
    started = time.monotonic()
    on_singles = classify(classifier, sample(sampler, singles, config, seed=1), singles)
    seconds = (time.monotonic() - started) / len(singles)
    on_pairs = classify(classifier, sample(sampler, pairs, config, seed=2), pairs)
    on_synonyms = classify(classifier, sample(sampler, synonyms, config, seed=3), synonyms) if synonyms else {}
    reference = classify(classifier, composite_reference(sprites, size, singles), singles)
    pair_reference = classify(classifier, composite_reference(sprites, size, pairs), pairs)
    metrics = {
        "concept_top1": on_singles["top1"],
        "concept_top5": on_singles["top5"],
        "style": on_singles["style"],
        "place": on_singles["place"],
        "pairs_both": on_pairs["both"],
        "near_synonyms_top1": on_synonyms.get("top1", float("nan")),
        "near_synonyms_top5": on_synonyms.get("top5", float("nan")),
        "diversity_percent": diversity(sampler, singles[: config.batch_size], config),
        "batched_seconds_per_image": seconds,
        "num_inference_steps": config.num_inference_steps,
        "guidance_scale": config.guidance_scale,
        "num_singles": len(singles),
        "num_pairs": len(pairs),
        "num_near_synonyms": len(synonyms),
        "reference_top1": reference["top1"],
        "reference_top5": reference["top5"],
        "reference_style": reference["style"],
        "reference_place": reference["place"],
        "reference_both": pair_reference["both"],
    }
    logger.info("%s", json.dumps(metrics))
    return metrics


def time_pipeline(folder: Path, config: EvalConfig, runs: int = 3) -> dict[str, float]:
    """Seconds to load the pipeline and to generate one image with it."""
    from diffusers import StableDiffusionPipeline

    started = time.monotonic()
    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    loaded = time.monotonic()
    for seed in range(runs):
        pipeline(
            "a fox in the snow, 3d",
            num_inference_steps=config.num_inference_steps,
            guidance_scale=config.guidance_scale,
            generator=torch.Generator().manual_seed(seed),
        )
    return {"load_seconds": loaded - started, "seconds_per_image": (time.monotonic() - loaded) / runs}
