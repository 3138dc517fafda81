"""The classifier of the evaluation: which drawings and which background come nearest to an image.

It knows the drawings and backgrounds themselves and is not trained.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import avg_pool2d

from canvas.training.assets import SpriteSet
from canvas.training.backgrounds import BACKGROUNDS, relight
from canvas.training.config import LATENT_SIZE, PATCH_SIZE
from canvas.training.scenes import BOX_CELLS, BOXES, LAYOUTS, resize_to_box, to_pixels

PIXELS_PER_CELL = {"large": 4, "medium": 8, "small": 8}  # at which drawings are compared
HOURS = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the light, at which backgrounds are compared


# How many cells each image's boxes are shifted to the right and down
Shifts = Sequence[tuple[int, int]]


class SceneClassifier:
    """Names the drawing in a box, and the place, by the smallest squared error."""

    def __init__(self, sprites: SpriteSet, backgrounds: np.ndarray) -> None:
        self._concepts = torch.tensor([concept for concept, _ in sprites.pairs])
        self._styles = torch.tensor([style for _, style in sprites.pairs])
        self._num_concepts = len(sprites.concepts)
        self._drawings = {size: _drawings_at(sprites.images, size) for size in BOX_CELLS}
        per_place = len(backgrounds) // len(BACKGROUNDS)
        lit = [
            relight(image, BACKGROUNDS[row // per_place], hour)
            for row, image in enumerate(backgrounds)
            for hour in HOURS
        ]
        parts = [_reduced(to_pixels(np.stack(lit[start : start + 500])), 1) for start in range(0, len(lit), 500)]
        self._backgrounds = torch.cat(parts)  # [n, 3, 16, 16]
        self._places = torch.arange(len(lit)) // (per_place * len(HOURS))

    def things(self, pixels: torch.Tensor, layout: str, shifts: Shifts) -> tuple[torch.Tensor, torch.Tensor]:
        """Errors of each concept in each box of a layout [n, boxes, concepts], and the style that comes nearest [n]."""
        back = [(-PATCH_SIZE * down, -PATCH_SIZE * right) for right, down in shifts]
        pixels = torch.stack([image.roll(shift, (1, 2)) for image, shift in zip(pixels, back, strict=True)])
        errors = torch.stack([self._errors(pixels, layout, index) for index in LAYOUTS[layout]], 1)
        by_concept = torch.full((*errors.shape[:2], self._num_concepts), torch.inf)
        by_concept.scatter_reduce_(2, self._concepts.expand_as(errors), errors, "amin")
        return by_concept, self._styles[errors[:, 0].argmin(1)]

    def _errors(self, pixels: torch.Tensor, layout: str, index: int) -> torch.Tensor:
        """Squared errors [n, drawings] in a box of each drawing on the mean colour of each row beside the boxes."""
        box = BOXES[index]
        scale = PIXELS_PER_CELL[box.size]
        image = _reduced(pixels, scale)
        beside = _beside(layout)[box.top : box.top + box.cells].repeat_interleave(scale, 0).repeat_interleave(scale, 1)
        rows, columns = (slice(start * scale, (start + box.cells) * scale) for start in (box.top, box.left))
        ground = (image[:, :, rows] * beside).sum(3, keepdim=True) / beside.sum(1)[:, None]
        ground = ground.expand(-1, -1, -1, box.cells * scale).flatten(2)
        shown = image[:, :, rows, columns].flatten(2)
        colours, clear = self._drawings[box.size]
        # The square of `shown - colours - clear * ground`, multiplied out
        return (
            shown.square().sum((1, 2))[:, None]
            + colours.square().sum((1, 2))
            - 2 * shown.flatten(1) @ colours.flatten(1).T
            - 2 * (shown * ground).sum(1) @ clear.T
            + 2 * ground.flatten(1) @ (colours * clear[:, None]).flatten(1).T
            + ground.square().sum(1) @ clear.square().T
        )

    def places(self, pixels: torch.Tensor, layout: str, shifts: Shifts) -> torch.Tensor:
        """The place [n] whose background comes nearest beside the boxes of a layout."""
        places = []
        for image, (right, down) in zip(_reduced(pixels, 1), shifts, strict=True):
            beside = _beside(layout).roll((down, right), (0, 1)).bool()
            shown, known = image[:, beside].flatten(), self._backgrounds[:, :, beside].flatten(1)
            places.append(self._places[(known - shown).square().sum(1).argmin()])
        return torch.stack(places)


def _reduced(pixels: torch.Tensor, pixels_per_cell: int) -> torch.Tensor:
    return avg_pool2d(pixels, PATCH_SIZE // pixels_per_cell)


def _drawings_at(images: Sequence[Image.Image], size: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Colours times opacity [drawings, 3, pixels] and transparency [drawings, pixels] in a box."""
    side = BOX_CELLS[size] * PATCH_SIZE
    factor = PATCH_SIZE // PIXELS_PER_CELL[size]
    colours, clear = [], []
    for sprite in images:
        resized, left, top = resize_to_box(sprite, BOX_CELLS[size])
        image = Image.new("RGBA", (side, side))
        image.paste(resized, (left, top))
        values = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
        opacity = values[3:] / 255
        colours.append(avg_pool2d((values[:3] / 127.5 - 1) * opacity, factor).flatten(1))
        clear.append(1 - avg_pool2d(opacity, factor).flatten())
    return torch.stack(colours), torch.stack(clear)


def _beside(layout: str) -> torch.Tensor:
    """1 for the cells [16, 16] beside the boxes of a layout and the shadows below them."""
    cells = torch.ones(LATENT_SIZE, LATENT_SIZE)
    for box in (BOXES[index] for index in LAYOUTS[layout]):
        cells[box.top : box.top + box.cells + 1, box.left : box.left + box.cells] = 0
    return cells
