"""Measures an exported model on prompts with combinations held out of training."""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from statistics import median

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from canvas.benchmark.similarity import decibels, ssim_map
from canvas.prompt_reading import understand
from canvas.training.art_packages import STYLES
from canvas.training.backgrounds import COLOURS
from canvas.training.captions import DEFAULT_STYLE, WORD_LISTS, article
from canvas.training.classifier import SceneClassifier
from canvas.training.config import NUM_INFERENCE_STEPS
from canvas.training.denoiser import sample_noise
from canvas.training.recolour import name_colour
from canvas.training.scenes import OPAQUE, Scene, SceneSampler, place_phrase, to_pixels
from canvas.vocabulary import Vocabulary

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvalCounts:
    """The number of prompts of each kind."""

    singles: int = 1000
    fidelity: int = 120  # of which PSNR and SSIM are measured
    pairs: int = 150
    trios: int = 100
    colours: int = 240  # some drawings have no hue, or the colour already
    batch_size: int = 16


class Sampler:
    """Generates images for batches of prompts."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32).to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        self.device = device

    def sample(self, prompts: Sequence[str], seed: int, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Images [n, 3, h, w] in [-1, 1], without guidance; from given noise or that of the seed."""
        options = {"num_inference_steps": NUM_INFERENCE_STEPS, "guidance_scale": 1.0, "output_type": "pt"}
        generator = torch.Generator().manual_seed(seed)
        return self.pipeline(list(prompts), generator=generator, latents=noise, **options).images.cpu() * 2 - 1

    def sample_all(
        self, prompts: Sequence[str], seed: int, batch_size: int, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The same for many prompts."""
        batches = [slice(start, start + batch_size) for start in range(0, len(prompts), batch_size)]
        noises = [None if noise is None else noise[batch] for batch in batches]
        return torch.cat(
            [self.sample(prompts[batch], seed + batch.start, part) for batch, part in zip(batches, noises, strict=True)]
        )

    @torch.no_grad()
    def reconstruct(self, pixels: torch.Tensor, batch_size: int) -> torch.Tensor:
        """Images encoded and decoded by the autoencoder."""
        vae = self.pipeline.vae
        parts = [vae.decode(vae.encode(part.to(self.device)).latents).sample for part in pixels.split(batch_size)]
        return torch.cat(parts).clamp(-1, 1).cpu()


def covered_psnr(images: torch.Tensor, references: torch.Tensor, covered: torch.Tensor) -> list[float]:
    """PSNR in dB of each image on the covered pixels, [n, h, w]."""
    errors = ((images - references) / 2).square().mean(1)
    return [decibels(float(error[mask].mean())) for error, mask in zip(errors, covered, strict=True)]


def covered_ssim(images: torch.Tensor, references: torch.Tensor, covered: torch.Tensor) -> list[float]:
    """SSIM of each image, averaged over RGB and the windows whose centre is covered."""
    result = []
    for image, reference, mask in zip(images, references, covered, strict=True):
        a, b = (pixels.double().add(1).div(2)[:, None] for pixels in (image, reference))
        values = ssim_map(a, b).mean((0, 1))
        margin = (mask.shape[0] - values.shape[0]) // 2
        result.append(float(values[mask[margin:-margin, margin:-margin]].mean()))
    return result


def classify(classifier: SceneClassifier, pixels: torch.Tensor, scenes: Sequence[Scene]) -> dict[str, float]:
    """Accuracies, 0 to 1, for scenes of one layout: `top1`, `top5`, `all` concepts, `style`, `place`.

    A scene with one box may have several concepts, each of which is right.
    """
    layout = scenes[0].layout
    shifts = [scene.shift for scene in scenes]
    errors, styles = classifier.things(pixels, layout, shifts)
    places = classifier.places(pixels, layout, shifts)
    nearest = errors.argsort(2)[:, :, :5].tolist()
    results = []
    for scene, boxes, style, place in zip(scenes, nearest, styles.tolist(), places.tolist(), strict=True):
        right = [scene.concepts] if len(boxes) == 1 else [(concept,) for concept in scene.drawn]
        first = [box[0] in each for box, each in zip(boxes, right, strict=True)]
        top5 = bool({*boxes[0]} & {*right[0]})
        is_style, is_place = style == scene.style, place == scene.place
        results.append({"top1": first[0], "top5": top5, "all": all(first), "style": is_style, "place": is_place})
    return {name: float(np.mean([each[name] for each in results])) for name in results[0]}


def synonym_scenes(sampler: SceneSampler, vocabulary: Vocabulary) -> tuple[list[Scene], list[str]]:
    """A scene and prompt for each near-synonym; the scene's `concepts` are all correct answers."""
    sprites, style = sampler.sprites, STYLES.index(DEFAULT_STYLE)
    rows = {concept.name: row for row, concept in enumerate(sprites.concepts)}
    scenes, prompts = [], []
    for word, names in WORD_LISTS["near_synonyms"].items():
        correct = tuple(rows[name] for name in names.split(", ") if name in rows)
        if correct:
            scene = replace(sampler.sample("place"), layout="one", concepts=correct, style=style)
            scenes.append(scene)
            prompts.append(understand(vocabulary, f"{article(word)} {place_phrase(scene.place)}").prompt)
    return scenes, prompts


def diversity(sampler: Sampler, vocabulary: Vocabulary, prompts: Sequence[str], num_seeds: int = 4) -> float:
    """Mean absolute difference of the app's images of one prompt and different seeds, in percent of the range."""
    images = []
    for seed in range(9_000, 9_000 + num_seeds):
        read = [understand(vocabulary, prompt, seed=seed).prompt for prompt in prompts]
        images.append(sampler.sample(read, seed))
    differences = [(a - b).abs().mean() / 2 for a, b in combinations(images, 2)]
    return 100 * float(torch.stack(differences).mean())


def evaluate(
    sampler: Sampler,
    classifier: SceneClassifier,
    scenes: SceneSampler,
    codes: torch.Tensor,
    vocabulary: Vocabulary,
    counts: EvalCounts | None = None,
) -> dict[str, float]:
    """All metrics; accuracies are 0 to 1, those of composed scenes start with `reference_`.

    `codes` are the `background_codes` of the scenes' backgrounds.
    """
    counts = counts or EvalCounts()
    metrics = _fidelity(sampler, scenes, codes, counts)
    unshifted = [replace(scenes.sample("one"), shift=(0, 0)) for _ in range(counts.batch_size)]
    prompts = [scene.prompt(scenes.sprites) for scene in unshifted]
    metrics["diversity_percent"] = diversity(sampler, vocabulary, prompts)
    metrics |= _accuracies(sampler, classifier, scenes, vocabulary, counts)
    logger.info("%s", json.dumps(metrics))
    return metrics


def _accuracies(
    sampler: Sampler, classifier: SceneClassifier, scenes: SceneSampler, vocabulary: Vocabulary, counts: EvalCounts
) -> dict[str, float]:
    """How often the classifier finds what the prompts name, in generated images and in composed scenes."""
    metrics: dict[str, float] = {}
    for layout, count in (("one", counts.singles), ("pair", counts.pairs), ("trio", counts.trios)):
        chosen = [scenes.sample(layout) for _ in range(count)]
        prompts = [scene.prompt(scenes.sprites) for scene in chosen]
        generated = classify(classifier, sampler.sample_all(prompts, 1, counts.batch_size), chosen)
        reference = classify(classifier, scenes.images(chosen), chosen)
        metrics |= {f"{layout}_{name}": value for name, value in generated.items()}
        metrics |= {f"reference_{layout}_{name}": value for name, value in reference.items()}
        metrics[f"num_{layout}"] = count
    metrics |= _colours(sampler, scenes, vocabulary, counts)
    chosen, prompts = synonym_scenes(scenes, vocabulary)
    if chosen:
        images = sampler.sample_all(prompts, 3, counts.batch_size)
        metrics["synonyms_top1"] = classify(classifier, images, chosen)["top1"]
    metrics["num_synonyms"] = len(chosen)
    return metrics


def _colours(sampler: Sampler, scenes: SceneSampler, vocabulary: Vocabulary, counts: EvalCounts) -> dict[str, float]:
    """How often a thing has the colour that a prompt asks for, in generated images and in composed scenes."""
    chosen, prompts = [], []
    for _ in range(counts.colours):
        scene, colour = replace(scenes.sample("one"), shift=(0, 0)), scenes.rng.choice(list(COLOURS))
        name, style = scenes.sprites.concepts[scene.concepts[0]].name, STYLES[scene.style]
        if name in vocabulary.things and (word := vocabulary.hue_modifier(name, style, colour)):
            chosen.append((colour, replace(scene, recolour=word)))
            prompts.append(chosen[-1][1].prompt(scenes.sprites))
    images = sampler.sample_all(prompts, 4, counts.batch_size) if prompts else []
    found, references = [], []
    for (colour, scene), image in zip(chosen, images, strict=True):
        reference, covered = scenes.compose(scene)
        generated = image.add(1).mul(127.5).permute(1, 2, 0).numpy()
        found.append(name_colour(generated[covered >= OPAQUE]) == colour)
        references.append(name_colour(reference[covered >= OPAQUE]) == colour)
    accuracies = {"colour": found, "reference_colour": references} if found else {}
    return {name: float(np.mean(each)) for name, each in accuracies.items()} | {"num_colours": len(found)}


def _fidelity(sampler: Sampler, scenes: SceneSampler, codes: torch.Tensor, counts: EvalCounts) -> dict[str, float]:
    """PSNR and SSIM on the covered pixels against the composed scenes.

    The windows of SSIM at the edge of a drawing contain its background, which is another one unless the noise
    tells that of the scene.
    """
    chosen = [scenes.sample("one") for _ in range(counts.fidelity)]
    composed = [scenes.compose(scene) for scene in chosen]
    references = to_pixels(np.stack([image for image, _ in composed]))
    covered = torch.from_numpy(np.stack([mask for _, mask in composed])) >= OPAQUE
    prompts = [scene.prompt(scenes.sprites) for scene in chosen]
    lights = torch.tensor([scene.light for scene in chosen])
    channels = sampler.pipeline.unet.config.in_channels
    noise = sample_noise(lights, codes[[scene.background for scene in chosen]], channels)
    images = {
        "autoencoder": sampler.reconstruct(references, counts.batch_size),
        "generated": sampler.sample_all(prompts, 5, counts.batch_size),
        "told": sampler.sample_all(prompts, 5, counts.batch_size, noise),
    }
    metrics: dict[str, float] = {"num_fidelity": len(chosen)}
    for name, pixels in images.items():
        psnr, ssim = covered_psnr(pixels, references, covered), covered_ssim(pixels, references, covered)
        metrics[f"{name}_psnr"], metrics[f"{name}_worst_psnr"] = median(psnr), min(psnr)
        metrics[f"{name}_ssim"] = median(ssim)
    return metrics


def time_pipeline(folder: Path, prompt: str, runs: int = 5) -> dict[str, float]:
    """Seconds to load the pipeline and to generate one image with it."""
    started = time.monotonic()
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    loaded = time.monotonic()
    seconds = []
    for seed in range(runs):
        start = time.monotonic()
        generator = torch.Generator().manual_seed(seed)
        pipeline(prompt, num_inference_steps=NUM_INFERENCE_STEPS, guidance_scale=1.0, generator=generator)
        seconds.append(time.monotonic() - start)
    return {"load_seconds": loaded - started, "seconds_per_image": median(seconds)}
