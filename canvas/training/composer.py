"""Puts scenes together in batches where the backgrounds and drawings lie."""

import torch

from canvas.training.backgrounds import BACKGROUNDS, FLOATING
from canvas.training.rows import PARTS, SceneRows


class Composer:
    """Does with tensors what `SceneMaker.paint` does with one picture.

    backgrounds: uint8 [places, variants, 3, h, w].
    overlays: uint8 [drawings + 1, placements, 5, h, w] of `placing.overlay`; the last is empty.
    """

    def __init__(self, backgrounds: torch.Tensor, overlays: torch.Tensor) -> None:
        self.backgrounds = backgrounds
        self.overlays = overlays
        floating = [name in FLOATING for name in BACKGROUNDS]
        self._grounded = 1 - torch.tensor(floating, device=overlays.device).float()

    def paint(self, rows: SceneRows, generator: torch.Generator) -> torch.Tensor:
        """The rows' pictures before backgrounds at random, [n, 3, h, w] in -1 … 1."""
        place, drawings, placements = rows.place, rows.drawings, rows.placements
        variants, device = self.backgrounds.shape[1], self.backgrounds.device
        variant = torch.randint(0, variants, (len(rows),), generator=generator, device=device)
        pictures = self.backgrounds[place, variant].float()
        grounded = self._grounded[place].view(-1, 1, 1, 1)
        for part in range(PARTS):
            overlay = self.overlays[drawings[:, part], placements[:, part]].float()
            colours, cover, shadow = overlay.split((3, 1, 1), dim=1)
            pictures = pictures * (1 - grounded * shadow / 255)
            pictures = pictures * (1 - cover / 255) + colours
        return pictures.div_(127.5).sub_(1)

    def cover(self, rows: SceneRows) -> torch.Tensor:
        """How much of the background the rows' drawings hide, uint8 [n, 1, h, w]."""
        return self.overlays[rows.drawings, rows.placements][:, :, 3].amax(1, keepdim=True)
