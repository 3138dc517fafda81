"""Scenes as rows of small integers: all that losses and pictures need of them, in one tensor."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from canvas.training.backgrounds import BACKGROUNDS
from canvas.training.placing import PLACEMENTS
from canvas.training.scenes import Scene
from canvas.training.sprites import Sprites

NONE = -1  # where there is no second thing; as an index, the empty row at the end
PLACEMENT_ROWS = {name: row for row, name in enumerate(PLACEMENTS)}
PARTS = 2  # at most so many drawings in a scene
FIELDS = 3 * PARTS + 4  # numbers before the token ids


@dataclass(frozen=True)
class SceneRows:
    """A scene a row, int16 [n, FIELDS + tokens]; the token ids are those of its caption."""

    table: torch.Tensor

    @classmethod
    def of(
        cls, scenes: list[Scene], sprites: Sprites, ids: np.ndarray | None = None
    ) -> "SceneRows":
        """The scenes with the token ids of their captions, if any."""
        fields = np.array([list(_fields(scene, sprites)) for scene in scenes], np.int16)
        table = fields if ids is None else np.concatenate([fields, ids.astype(np.int16)], 1)
        return cls(torch.from_numpy(table))

    def __len__(self) -> int:
        return len(self.table)

    def to(self, device: torch.device) -> "SceneRows":
        """The same rows there."""
        return SceneRows(self.table.to(device))

    def sample(self, count: int, generator: torch.Generator) -> "SceneRows":
        """Rows at random, drawn on the table's own device."""
        device = self.table.device
        picked = torch.randint(0, len(self), (count,), generator=generator, device=device)
        return SceneRows(self.table[picked])

    def _field(self, start: int, stop: int) -> torch.Tensor:
        return self.table[:, start:stop].long()

    @property
    def things(self) -> torch.Tensor:
        """[n, 2], NONE where there is but one."""
        return self._field(0, 2)

    @property
    def drawings(self) -> torch.Tensor:
        """Rows of the drawings, [n, 2], NONE where there is but one."""
        return self._field(2, 4)

    @property
    def placements(self) -> torch.Tensor:
        """Index in PLACEMENTS of each drawing, [n, 2]."""
        return self._field(4, 6)

    @property
    def style(self) -> torch.Tensor:
        """Index in STYLES, [n]."""
        return self._field(6, 7)[:, 0]

    @property
    def place(self) -> torch.Tensor:
        """Index in BACKGROUNDS, [n]."""
        return self._field(7, 8)[:, 0]

    @property
    def told_place(self) -> torch.Tensor:
        """The place if the caption names it, else the number of places, [n]."""
        return self._field(8, 9)[:, 0]

    @property
    def layout(self) -> torch.Tensor:
        """Index in LAYOUTS, [n]."""
        return self._field(9, 10)[:, 0]

    @property
    def ids(self) -> torch.Tensor:
        """Token ids, [n, tokens]."""
        return self.table[:, FIELDS:].long()


def _fields(scene: Scene, sprites: Sprites) -> Iterable[int]:
    missing = (NONE,) * (PARTS - len(scene.parts))
    yield from (*scene.things, *(NONE,) * (PARTS - len(scene.things)))
    yield from (*(sprites.index[thing, scene.style] for thing, _ in scene.parts), *missing)
    yield from (*(PLACEMENT_ROWS[name] for _, name in scene.parts), *missing)
    yield scene.style
    yield scene.place
    yield scene.place if scene.named_place else len(BACKGROUNDS)
    yield scene.layout
