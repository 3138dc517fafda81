"""What stands before the background, as latents: what the prompt's last tokens are to hold.

The picture is cut into 8×8 blocks; each of the last 48 tokens of a prompt stands for one block of
the six rows in the middle. A token's target is its block's latents, as far as the drawing changed
them, and how much of each cell the drawing covers.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from PIL import Image

from canvas.training.autoencoder import to_tensor
from canvas.training.presets import Preset
from canvas.training.scenes import PLACEMENTS, Scene, placed
from canvas.training.sprites import Sprites

TOKENS = 77
COLUMNS, ROWS, FIRST_ROW = 8, 6, 1
FIRST_LAYER_TOKEN = TOKENS - ROWS * COLUMNS
GRAY = (128, 128, 128)


class Layers:
    """The layer of every drawing in every placement."""

    def __init__(self, sprites: Sprites, rows: torch.Tensor) -> None:
        self.sprites = sprites
        self.rows = rows  # [drawings, placements, tokens, values] in half precision
        self.values = rows.shape[-1]
        self.variance = float(rows[:, 0].float().var())
        self._placements = {name: row for row, name in enumerate(PLACEMENTS)}

    @classmethod
    def load(cls, work: Path, sprites: Sprites) -> "Layers":
        """Those of the work folder."""
        return cls(sprites, torch.load(work / "layers.pt", weights_only=True))

    def of(self, scenes: list[Scene]) -> torch.Tensor:
        """[scenes, tokens, values]; things side by side add up."""
        found = [
            sum(
                self.rows[self.sprites.index[thing, scene.style], self._placements[name]].float()
                for thing, name in scene.parts
            )
            for scene in scenes
        ]
        return torch.stack(found)  # type: ignore[arg-type]


def prepare_layers(sprites: Sprites, preset: Preset, work: Path) -> None:
    """Encode every drawing in every placement into `layers.pt`, when it is missing."""
    if (work / "layers.pt").exists():
        return
    vae = AutoencoderTiny.from_pretrained(work / "vae").float().eval()
    size = preset.image_size
    rows = [_layers(vae, drawing, size) for drawing in sprites.pictures]
    torch.save(torch.stack(rows).half(), work / "layers.pt")


@torch.no_grad()
def _layers(vae: AutoencoderTiny, drawing: Image.Image, size: int) -> torch.Tensor:
    """[placements, tokens, values] of one drawing."""
    plain = Image.new("RGB", (size, size), GRAY)
    pictures, covers = [plain], []
    for placement in PLACEMENTS:
        picture, cover = plain.copy(), Image.new("L", (size, size))
        for sprite, left, top in placed(drawing, placement, size):
            picture.paste(sprite, (left, top), sprite)
            cover.paste(255, (left, top), sprite)
        pictures.append(picture)
        covers.append(np.asarray(cover, np.float32) / 255)
    with torch.autocast("cpu", torch.bfloat16):
        latents = vae.encoder(to_tensor(np.stack([np.asarray(picture) for picture in pictures])))
    change = (latents[1:] - latents[:1]).float() * vae.config.scaling_factor
    cover = torch.from_numpy(np.stack(covers))[:, None]
    share = torch.nn.functional.adaptive_avg_pool2d(cover, change.shape[-1])
    cells = torch.cat([change, 2 * share], dim=1)
    block = cells.shape[-1] // COLUMNS
    blocks = cells.unfold(2, block, block).unfold(3, block, block)
    middle = blocks[:, :, FIRST_ROW : FIRST_ROW + ROWS]
    return middle.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
