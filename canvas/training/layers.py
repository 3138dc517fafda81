"""What stands before the background, as latents: what the prompt's last tokens are to hold.

The picture is cut into square blocks (`Grid`), and each of the last tokens of a prompt stands for
one block of the rows in the middle. A token's target is its block's latents, as far as the
drawing changed them, and how much of each cell the drawing covers.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny

from canvas.training.grid import Grid
from canvas.training.placing import PLACEMENTS, overlay
from canvas.training.presets import Preset
from canvas.training.rows import SceneRows
from canvas.training.source import load_bank
from canvas.training.sprites import Sprites

GRAY = 128
DRAWINGS_AT_ONCE = 16


class Layers:
    """The layer of every drawing in every placement."""

    def __init__(self, rows: torch.Tensor) -> None:
        self.values = rows.shape[-1]
        self.variance = float(rows[:, 0].float().var())
        self.rows = torch.cat([rows, torch.zeros_like(rows[:1])])  # an empty one at the end

    @classmethod
    def load(cls, work: Path, device: torch.device) -> "Layers":
        """Those of the work folder: [drawings, placements, tokens, values] in half precision."""
        return cls(torch.load(work / "layers.pt", weights_only=True, map_location=device))

    def of(self, scenes: SceneRows) -> torch.Tensor:
        """[scenes, tokens, values]; things side by side add up."""
        return self.rows[scenes.drawings, scenes.placements].float().sum(1)


def prepare_layers(sprites: Sprites, preset: Preset, work: Path, device: torch.device) -> None:
    """Encode every drawing in every placement into `layers.pt`, when it is missing."""
    if (work / "layers.pt").exists():
        return
    vae = AutoencoderTiny.from_pretrained(work / "vae").float().eval().to(device)
    vae.to(memory_format=torch.channels_last)
    count = len(sprites.pictures)
    bank = load_bank(work, "overlays", device) if preset.table_rows else None
    rows = []
    for start in range(0, count, DRAWINGS_AT_ONCE):
        stop = min(count, start + DRAWINGS_AT_ONCE)
        overlays = _overlays(sprites, preset, start, stop) if bank is None else bank[start:stop]
        rows.append(_layers(vae, overlays.to(device), preset.grid).half().cpu())
    torch.save(torch.cat(rows), work / "layers.pt")


def _overlays(sprites: Sprites, preset: Preset, start: int, stop: int) -> torch.Tensor:
    placed = [
        [overlay(drawing, placement, preset.image_size) for placement in PLACEMENTS]
        for drawing in sprites.pictures[start:stop]
    ]
    return torch.from_numpy(np.array(placed))


@torch.no_grad()
def _layers(vae: AutoencoderTiny, overlays: torch.Tensor, grid: Grid) -> torch.Tensor:
    """[drawings, placements, tokens, values] of `placing.overlay`s."""
    colours, cover, _ = overlays.flatten(0, 1).float().split((3, 1, 1), dim=1)
    pictures = GRAY * (1 - cover / 255) + colours
    plain = torch.full_like(pictures[:1], GRAY)
    with torch.autocast(overlays.device.type, torch.bfloat16):
        pixels = torch.cat([plain, pictures]).div(127.5).sub(1)
        latents = vae.encoder(pixels.contiguous(memory_format=torch.channels_last))
    change = (latents[1:] - latents[:1]).float() * vae.config.scaling_factor
    share = torch.nn.functional.adaptive_avg_pool2d(cover / 255, change.shape[-1])
    cells = torch.cat([change, 2 * share], dim=1)
    block = cells.shape[-1] // grid.columns
    blocks = cells.unfold(2, block, block).unfold(3, block, block)
    middle = blocks[:, :, grid.first_row : grid.first_row + grid.rows]
    values = middle.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    return values.unflatten(0, overlays.shape[:2])
