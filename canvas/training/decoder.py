"""Trains the decoder that turns latents into pixels, those of the denoiser as well as those of the encoder."""

import logging
from collections import defaultdict
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from random import Random

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from torch.nn.functional import avg_pool2d

from canvas.benchmark.similarity import ssim_map
from canvas.training.assets import SpriteSet
from canvas.training.config import GRAY, IMAGE_SIZE, NUM_INFERENCE_STEPS, PATCH_SIZE, TrainingConfig
from canvas.training.denoiser import background_codes, build_scheduler, prompt_tensors, sample_noise
from canvas.training.latents import SCALING_FACTOR, LatentBasis, build_autoencoder, to_patches
from canvas.training.scenes import (
    BOX_CELLS,
    BOXES,
    LAYOUTS,
    OPAQUE,
    RECOLOURED_SHARE,
    SceneSampler,
    render_backgrounds,
    resize_to_box,
    to_pixels,
)
from canvas.training.text_encoder import DrawingCodes, PromptEmbeddings
from canvas.training.time_budget import TimeBudget, TrainingLoop, save_atomically

logger = logging.getLogger(__name__)
CROP = 128  # pixels
NOISE = 0.02  # of the encoder's latents, so that the decoder tolerates small errors
WARMUP_STEPS = 50
GENERATION_BATCH_SIZE = 24
NUM_ADDED_DRAWINGS = 4
SSIM_WEIGHT = 0.6  # flat areas keep few decibels, but look spotted


@dataclass(frozen=True)
class GeneratedScenes:
    """Composed scenes with a drawing each, and what the denoiser generates from their prompts and light."""

    images: torch.Tensor  # [n, 256, 256, 3], uint8
    covered: torch.Tensor  # [n, 256, 256], bool: where a drawing hides the background
    latents: torch.Tensor  # [n, channels, 16, 16], raw, half precision
    boxes: torch.Tensor  # [n, 3]: left, top and cells per side of a drawing
    difficulties: torch.Tensor  # [n]: the squared error that the components leave of the drawings

    @classmethod
    def load(
        cls, sampler: SceneSampler, basis: LatentBasis, config: TrainingConfig, work: Path, device: torch.device
    ) -> "GeneratedScenes":
        """Those of a work folder; generated there once, with its `unet/`."""
        path = work / "generated.pt"
        if not path.exists():
            save_atomically(_generate(sampler, basis, config, work, device), path)
        return cls(**torch.load(path, weights_only=True, mmap=True))

    def sample(
        self, basis: LatentBasis, drawings: "DifficultDrawings", count: int, rng: Random
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latents, pixels [n, 3, 128, 128] and what of them counts, for crops around drawings.

        Every other crop has the latents of the encoder. In the others only the drawing counts: the prompt does
        not tell more than the kind of the background. Difficult drawings are sampled more often, and three of
        four of the encoder's crops have others on top: fine detail is rare, and the decoder would blur it more
        than the components do.
        """
        latents, pixels, counts = [], [], []
        for index, row in enumerate(rng.choices(range(len(self.images)), self.difficulties.tolist(), k=count)):
            *corner, cells = self.boxes[row].tolist()
            is_encoded = index % 2 == 0
            left, top = (_crop_start(start, cells, rng, aligned=not is_encoded) for start in corner)
            rows, columns = slice(top, top + CROP), slice(left, left + CROP)
            crop = self.images[row, rows, columns].numpy()
            has_more = is_encoded and index % 8 != 0
            pixels.append(to_pixels((drawings.paste(crop, rng) if has_more else crop)[None]))
            if is_encoded:
                encoded = basis.encode(pixels[-1])
                latents.append(encoded + NOISE * torch.randn_like(encoded))
                counts.append(torch.ones(1, 1, CROP, CROP, dtype=torch.bool))
            else:
                parts = (slice(part.start // PATCH_SIZE, part.stop // PATCH_SIZE) for part in (rows, columns))
                latents.append(self.latents[row, :, *parts][None].float())
                counts.append(self.covered[row, rows, columns][None, None])
        return torch.cat(latents), torch.cat(pixels), torch.cat(counts)


@torch.no_grad()
def _generate(
    sampler: SceneSampler, basis: LatentBasis, config: TrainingConfig, work: Path, device: torch.device
) -> dict[str, torch.Tensor]:
    unet = UNet2DConditionModel.from_pretrained(work / "unet").to(device, memory_format=torch.channels_last)
    codes, scheduler = DrawingCodes.load(work), build_scheduler()
    embeddings = PromptEmbeddings(codes, codes.cells())
    backgrounds = background_codes(render_backgrounds(config, work), basis, work)
    scheduler.set_timesteps(NUM_INFERENCE_STEPS)
    parts: dict[str, list[torch.Tensor]] = defaultdict(list)
    for start in range(0, config.generated_scenes, GENERATION_BATCH_SIZE):
        count = min(GENERATION_BATCH_SIZE, config.generated_scenes - start)
        layouts = sampler.rng.choices(("one", "pair", "two", "tiny", "trio"), (6, 2, 1, 1, 1), k=count)
        scenes = [sampler.sample(layout, recoloured=RECOLOURED_SHARE) for layout in layouts]
        images, masks = (np.stack(each) for each in zip(*map(sampler.compose, scenes), strict=True))
        context = embeddings(*prompt_tensors(scenes, sampler.sprites)).to(device)
        lights = torch.tensor([scene.light for scene in scenes])
        codes_of_scenes = backgrounds[[scene.background for scene in scenes]]
        latents = sample_noise(lights, codes_of_scenes, config.latent_channels).to(device)
        for timestep in scheduler.timesteps:
            output = unet(latents.contiguous(memory_format=torch.channels_last), timestep, context).sample
            latents = scheduler.step(output, timestep, latents).prev_sample
        parts["images"].append(torch.from_numpy(images))
        covered = torch.from_numpy(masks) >= OPAQUE
        coverage = avg_pool2d(covered.float(), PATCH_SIZE)
        parts["covered"].append(covered)
        parts["difficulties"].append((basis.residuals(to_pixels(images)) * coverage).sum((1, 2)))
        parts["latents"].append((latents / SCALING_FACTOR).half().cpu())
        boxes = [BOXES[sampler.rng.choice(LAYOUTS[layout])] for layout in layouts]
        corners = [
            (box.left + scene.shift[0], box.top + scene.shift[1], box.cells)
            for box, scene in zip(boxes, scenes, strict=True)
        ]
        parts["boxes"].append(torch.tensor(corners))
        if start % (20 * GENERATION_BATCH_SIZE) == 0:
            logger.info("generated %d of %d scenes", start + count, config.generated_scenes)
    return {name: torch.cat(part) for name, part in parts.items()}


class DifficultDrawings:
    """All drawings, each chosen in proportion to the squared error that the components leave of it."""

    def __init__(self, sprites: SpriteSet, basis: LatentBasis) -> None:
        self._images, self._weights = sprites.images, []
        side = BOX_CELLS["large"] * PATCH_SIZE
        for image in self._images:
            canvas = Image.new("RGB", (side, side), (GRAY,) * 3)
            resized, left, top = resize_to_box(image, BOX_CELLS["large"])
            canvas.paste(resized, (left, top), resized)
            self._weights.append(float(basis.residuals(to_pixels(np.asarray(canvas)[None])).sum()))

    def paste(self, pixels: np.ndarray, rng: Random) -> np.ndarray:
        """A crop with drawings on top, at random places, sizes and angles."""
        image = Image.fromarray(pixels)
        for sprite in rng.choices(self._images, self._weights, k=NUM_ADDED_DRAWINGS):
            factor = rng.uniform(32, 160) / max(sprite.size)
            size = (ceil(sprite.width * factor), ceil(sprite.height * factor))
            drawing = sprite.resize(size, Image.Resampling.LANCZOS)
            drawing = drawing.rotate(rng.uniform(0, 360), Image.Resampling.BICUBIC, expand=True)
            image.paste(drawing, (rng.randrange(-48, CROP - 16), rng.randrange(-48, CROP - 16)), drawing)
        return np.asarray(image)


def _crop_start(start: int, cells: int, rng: Random, *, aligned: bool) -> int:
    """The first pixel of a crop whose centre lies in the box; `aligned` to the cells."""
    centre = rng.uniform(start, start + cells) * PATCH_SIZE
    first = round(min(max(centre - CROP / 2, 0), IMAGE_SIZE - CROP))
    return round(first / PATCH_SIZE) * PATCH_SIZE if aligned else first


def reconstruction_loss(output: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """L1, L2, the difference of gradients, for edges, and SSIM."""
    error = output - pixels
    horizontal, vertical = error[..., 1:] - error[..., :-1], error[..., 1:, :] - error[..., :-1, :]
    edges = horizontal.abs().mean() + vertical.abs().mean()
    similarity = ssim_map(*(each.add(1).div(2).flatten(0, 1)[:, None] for each in (output, pixels))).mean()
    return error.abs().mean() + 3 * error.square().mean() + 0.4 * edges + SSIM_WEIGHT * (1 - similarity)


def train_decoder(sprites: SpriteSet, config: TrainingConfig, work: Path, budget: TimeBudget) -> None:
    """Train the decoder of `vae/` with the `unet/` of the work folder; resumes from `decoder.pt`."""
    device, basis = budget.device, LatentBasis.load(work)
    sampler = SceneSampler(sprites, render_backgrounds(config, work), seed=2)
    patches = to_patches(sampler.images([sampler.sample() for _ in range(400)]))
    vae = build_autoencoder(basis, patches, config)
    decoder = vae.decoder.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=config.decoder_learning_rate, betas=(0.9, 0.98))
    generated = GeneratedScenes.load(sampler, basis, config, work, device)
    loop = TrainingLoop(work / "decoder.pt", budget, decoder, optimizer)
    drawings, rng = DifficultDrawings(sprites, basis), Random(2000 + loop.step)
    for step in loop.steps():
        latents, pixels, counts = generated.sample(basis, drawings, config.decoder_batch_size, rng)
        output = decoder(latents.to(device, memory_format=torch.channels_last))
        pixels = pixels.to(device)
        loss = reconstruction_loss(torch.where(counts.to(device), output, pixels), pixels)
        loop.update(loss, min(1.0, (step + 1) / WARMUP_STEPS) * max(0.005, 1 - loop.progress))
    vae.cpu().save_pretrained(work / "vae")
