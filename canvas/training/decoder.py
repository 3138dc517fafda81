"""Trains the decoder that turns latents into pixels."""

from pathlib import Path
from random import Random

import numpy as np
import torch

from canvas.training.assets import SpriteSet
from canvas.training.config import IMAGE_SIZE, PATCH_SIZE, TrainingConfig
from canvas.training.latents import LatentBasis, build_autoencoder, to_patches
from canvas.training.scenes import BOXES, LAYOUTS, SceneSampler, render_backgrounds, to_pixels
from canvas.training.time_budget import TimeBudget, TrainingLoop

CROP = 128  # pixels
NOISE = 0.02  # of the latents, so that the decoder tolerates what the denoiser leaves
WARMUP_STEPS = 50


def sample_crops(sampler: SceneSampler, count: int) -> torch.Tensor:
    """Crops [n, 3, 128, 128] around a drawing, aligned to the cells."""
    rng: Random = sampler.rng
    crops = []
    for _ in range(count):
        scene = sampler.sample(rng.choice(("one", "one", "pair", "two", "tiny")))
        image, _ = sampler.compose(scene)
        box = BOXES[rng.choice(LAYOUTS[scene.layout])]
        left, top = (_crop_start(start, box.cells, rng) for start in (box.left, box.top))
        crops.append(image[top : top + CROP, left : left + CROP])
    return to_pixels(np.stack(crops))


def _crop_start(start: int, cells: int, rng: Random) -> int:
    """The first pixel of a crop whose centre lies in the box."""
    centre = rng.uniform(start, start + cells) * PATCH_SIZE
    return round(min(max(centre - CROP / 2, 0), IMAGE_SIZE - CROP))


def reconstruction_loss(output: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """L1, L2 and the difference of gradients, for edges."""
    error = output - pixels
    horizontal, vertical = error[..., 1:] - error[..., :-1], error[..., 1:, :] - error[..., :-1, :]
    edges = horizontal.abs().mean() + vertical.abs().mean()
    return error.abs().mean() + 3 * error.square().mean() + 0.4 * edges


def train_decoder(sprites: SpriteSet, config: TrainingConfig, work: Path, budget: TimeBudget) -> None:
    """Train the decoder of `vae/`; resumes from `decoder.pt`."""
    device, basis = budget.device, LatentBasis.load(work)
    backgrounds = render_backgrounds(config, work)
    sampler = SceneSampler(sprites, backgrounds, seed=2)
    patches = to_patches(sampler.images([sampler.sample() for _ in range(400)]))
    vae = build_autoencoder(basis, patches, config)
    decoder = vae.decoder.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=config.decoder_learning_rate, betas=(0.9, 0.98))
    loop = TrainingLoop(work / "decoder.pt", budget, decoder, optimizer)
    sampler = SceneSampler(sprites, backgrounds, seed=2000 + loop.step)
    for step in loop.steps():
        pixels = sample_crops(sampler, config.decoder_batch_size)
        latents = basis.encode(pixels)
        latents = (latents + NOISE * torch.randn_like(latents)).contiguous(memory_format=torch.channels_last)
        loss = reconstruction_loss(decoder(latents.to(device)), pixels.to(device))
        loop.update(loss, min(1.0, (step + 1) / WARMUP_STEPS) * max(0.005, 1 - loop.progress))
    vae.cpu().save_pretrained(work / "vae")
