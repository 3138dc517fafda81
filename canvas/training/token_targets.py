"""The targets of the grid tokens: the foreground of a scene as latents.

The image is divided into square blocks (`TokenGrid`), and each grid token stands for one block.
Its target is the change of the block's latents by the sprite, and how much of each cell the sprite
covers.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny

from canvas.training.assets import SpriteSet
from canvas.training.config import TokenGrid, TrainingConfig
from canvas.training.dataset import load_array
from canvas.training.placement import PLACEMENTS, render_overlay
from canvas.training.scene_table import SceneBatch

GRAY = 128
SPRITE_BATCH_SIZE = 16


class TokenTargets:
    """The targets of every sprite in every placement."""

    def __init__(self, values: torch.Tensor) -> None:
        self.size = values.shape[-1]
        self.variance = float(values[:, 0].float().var())
        self.values = torch.cat([values, torch.zeros_like(values[:1])])  # PAD selects the last

    @classmethod
    def load(cls, work: Path, device: torch.device) -> "TokenTargets":
        """Load `token_targets.pt`: [sprites, placements, tokens, size] in half precision."""
        path = work / "token_targets.pt"
        return cls(torch.load(path, weights_only=True, map_location=device))

    def of(self, batch: SceneBatch) -> torch.Tensor:
        """[scenes, tokens, size]; the sum over the scene's sprites."""
        return self.values[batch.sprites, batch.placements].float().sum(1)


def compute_token_targets(sprites: SpriteSet, config: TrainingConfig, work: Path, device: torch.device) -> None:
    """Encode every sprite in every placement into `token_targets.pt` unless it exists."""
    if (work / "token_targets.pt").exists():
        return
    vae = AutoencoderTiny.from_pretrained(work / "vae").float().eval().to(device)
    vae.to(memory_format=torch.channels_last)
    precomputed = load_array(work, "overlays", device) if config.precomputed_scenes else None
    values = []
    for start in range(0, len(sprites.images), SPRITE_BATCH_SIZE):
        stop = min(len(sprites.images), start + SPRITE_BATCH_SIZE)
        overlays = _render_overlays(sprites, config, start, stop) if precomputed is None else precomputed[start:stop]
        values.append(_encode(vae, overlays.to(device), config.token_grid).half().cpu())
    torch.save(torch.cat(values), work / "token_targets.pt")


def _render_overlays(sprites: SpriteSet, config: TrainingConfig, start: int, stop: int) -> torch.Tensor:
    overlays = [
        [render_overlay(image, placement, config.image_size) for placement in PLACEMENTS]
        for image in sprites.images[start:stop]
    ]
    return torch.from_numpy(np.array(overlays))


@torch.no_grad()
def _encode(vae: AutoencoderTiny, overlays: torch.Tensor, grid: TokenGrid) -> torch.Tensor:
    """[sprites, placements, tokens, size] from the results of `render_overlay`."""
    colour, alpha, _ = overlays.flatten(0, 1).float().split((3, 1, 1), dim=1)
    images = GRAY * (1 - alpha / 255) + colour
    background = torch.full_like(images[:1], GRAY)
    with torch.autocast(overlays.device.type, torch.bfloat16):
        pixels = torch.cat([background, images]).div(127.5).sub(1)
        latents = vae.encoder(pixels.contiguous(memory_format=torch.channels_last))
    change = (latents[1:] - latents[:1]).float() * vae.config.scaling_factor
    coverage = torch.nn.functional.adaptive_avg_pool2d(alpha / 255, change.shape[-1])
    cells = torch.cat([change, 2 * coverage], dim=1)
    block = cells.shape[-1] // grid.columns
    blocks = cells.unfold(2, block, block).unfold(3, block, block)
    blocks = blocks[:, :, grid.first_row : grid.first_row + grid.rows]
    values = blocks.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    return values.unflatten(0, overlays.shape[:2])
