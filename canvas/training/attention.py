"""Tells the denoiser's cross-attention where to look while it learns.

The prompt's last tokens hold the drawings as patches. Composed scenes know which patch belongs
to which cell of the latents, so some heads are taught to look at it. Left to itself the denoiser
finds this out too, but it takes most of its training: after 40,000 scenes one head in sixteen
followed the rows, and none the columns.
"""

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from canvas.training.scenes import Layout, Scene
from canvas.training.text import FIRST_GRID_TOKEN, GRID, SLOT

GUIDED_HEADS = (1, 2)


def target_cells(side: int) -> int:
    """Cells of both maps of a scene: at the latents' size and at half of it."""
    return side * side + (side // 2) ** 2


def _token_map(scene: Scene, layout: Layout, side: int) -> torch.Tensor:
    tokens = torch.full((side, side), -1, dtype=torch.int8)
    middles = (torch.arange(side) + 0.5) / side
    for order, (_, x, y, width) in enumerate(layout):
        slot = order if len(scene.things) > 1 else 0
        columns = ((middles - x) / width + 0.5) * GRID
        rows = ((middles - y) / width + 0.5) * GRID
        inside = ((rows >= 0) & (rows < GRID))[:, None] & ((columns >= 0) & (columns < GRID))
        token = rows.long()[:, None] * GRID + columns.long() + FIRST_GRID_TOKEN + slot * SLOT
        tokens[inside] = token[inside].to(torch.int8)
    return tokens.flatten()


def token_targets(scene: Scene, layout: Layout, side: int) -> torch.Tensor:
    """For each cell the token that holds its patch, -1 beside the drawings; both maps in a row."""
    maps = [_token_map(scene, layout, size) for size in (side, side // 2)]
    return torch.cat(maps)


class AttentionGuide:
    """Watches the upper two cross-attention levels and scores where some of their heads look."""

    def __init__(self, model: UNet2DConditionModel) -> None:
        self._seen: list[tuple[nn.Module, torch.Tensor, torch.Tensor]] = []
        for block in model.up_blocks[-2:]:
            for transformer in block.attentions:
                attention = transformer.transformer_blocks[0].attn2
                attention.register_forward_pre_hook(self._watch, with_kwargs=True)

    def _watch(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        self._seen.append((module, hidden, kwargs["encoder_hidden_states"]))

    def loss(self, targets: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of the guided heads' looks in the last forward pass; forgets the pass.

        `targets` is [n, cells] as `token_targets` gives them.
        """
        finest = max(hidden.shape[1] for _, hidden, _ in self._seen)
        losses = []
        for module, hidden, text in self._seen:
            cells = hidden.shape[1]
            wanted = targets[:, :finest] if cells == finest else targets[:, finest:]
            scores = _scores(module, hidden, text)
            losses.extend(
                nn.functional.cross_entropy(
                    scores[:, head].flatten(0, 1), wanted.flatten(), ignore_index=-1
                )
                for head in GUIDED_HEADS
            )
        self._seen.clear()
        return torch.stack(losses).mean()


def _scores(module: Any, hidden: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Attention before the softmax, [n, heads, cells, tokens]."""
    with torch.autocast(hidden.device.type, torch.bfloat16):
        query, key = module.to_q(hidden), module.to_k(text)
    query, key = (part.float().unflatten(-1, (module.heads, -1)) for part in (query, key))
    return torch.einsum("nchd,nthd->nhct", query, key) * module.scale
