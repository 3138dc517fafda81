"""Scenes as rows of an integer tensor: everything that losses and images need of them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from canvas.training.assets import SpriteSet
from canvas.training.backgrounds import BACKGROUNDS
from canvas.training.placement import PLACEMENTS
from canvas.training.scene_generator import Scene

PAD = -1  # stands for a missing second concept; as an index, it selects an empty last row
PLACEMENT_INDEX = {name: row for row, name in enumerate(PLACEMENTS)}
MAX_SPRITES = 2  # in a scene
NUM_FIELDS = 3 * MAX_SPRITES + 4  # columns before the token ids


@dataclass(frozen=True)
class SceneBatch:
    """One scene per row, int16 [n, NUM_FIELDS + tokens]; the token ids are of its caption."""

    table: torch.Tensor

    @classmethod
    def from_scenes(cls, scenes: list[Scene], sprites: SpriteSet, token_ids: np.ndarray | None = None) -> "SceneBatch":
        """The scenes with the token ids of their captions, if given."""
        table = np.array([list(_fields(scene, sprites)) for scene in scenes], np.int16)
        if token_ids is not None:
            table = np.concatenate([table, token_ids.astype(np.int16)], 1)
        return cls(torch.from_numpy(table))

    def __len__(self) -> int:
        return len(self.table)

    def to(self, device: torch.device) -> "SceneBatch":
        """The same scenes on the device."""
        return SceneBatch(self.table.to(device))

    def sample(self, count: int, generator: torch.Generator) -> "SceneBatch":
        """Random rows; the generator must be on the table's device."""
        device = self.table.device
        rows = torch.randint(0, len(self), (count,), generator=generator, device=device)
        return SceneBatch(self.table[rows])

    def _columns(self, start: int, stop: int | None) -> torch.Tensor:
        return self.table[:, start:stop].long()

    @property
    def concepts(self) -> torch.Tensor:
        """[n, 2], PAD if there is only one."""
        return self._columns(0, 2)

    @property
    def sprites(self) -> torch.Tensor:
        """Indices in the SpriteSet, [n, 2], PAD if there is only one."""
        return self._columns(2, 4)

    @property
    def placements(self) -> torch.Tensor:
        """Index in PLACEMENTS of each sprite, [n, 2]."""
        return self._columns(4, 6)

    @property
    def style(self) -> torch.Tensor:
        """Index in STYLES, [n]."""
        return self._columns(6, 7)[:, 0]

    @property
    def place(self) -> torch.Tensor:
        """Index in BACKGROUNDS, [n]."""
        return self._columns(7, 8)[:, 0]

    @property
    def caption_place(self) -> torch.Tensor:
        """The place if the caption names it, else the number of places, [n]."""
        return self._columns(8, 9)[:, 0]

    @property
    def layout(self) -> torch.Tensor:
        """Index in LAYOUTS, [n]."""
        return self._columns(9, 10)[:, 0]

    @property
    def token_ids(self) -> torch.Tensor:
        """[n, tokens]."""
        return self._columns(NUM_FIELDS, None)


def _fields(scene: Scene, sprites: SpriteSet) -> Iterator[int]:
    padding = (PAD,) * (MAX_SPRITES - len(scene.placements))
    yield from (*scene.concepts, *(PAD,) * (MAX_SPRITES - len(scene.concepts)))
    yield from (*(sprites.index[concept, scene.style] for concept, _ in scene.placements), *padding)
    yield from (*(PLACEMENT_INDEX[name] for _, name in scene.placements), *padding)
    yield scene.style
    yield scene.place
    yield scene.place if scene.place_in_caption else len(BACKGROUNDS)
    yield scene.layout
