"""Tells the denoiser's cross-attention where to look while it learns.

The prompt's last tokens hold what stands before the background, a token for each block of the
picture, so some heads are taught to look from each cell at its block's token. Left to itself the
denoiser finds this out too, but it takes most of its training.
"""

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from canvas.training.checkpoints import autocast
from canvas.training.grid import WORD_TOKENS, Grid

GUIDED_HEADS = (1, 2, 3)  # to the last


def token_of_cells(side: int, grid: Grid) -> torch.Tensor:
    """For each cell of a square map the token that holds its block; -1 above and below them."""
    blocks = torch.arange(side) * grid.columns // side
    rows = blocks - grid.first_row
    tokens = WORD_TOKENS + rows[:, None] * grid.columns + blocks
    return tokens.masked_fill(((rows < 0) | (rows >= grid.rows))[:, None], -1).flatten()


class AttentionGuide:
    """Watches the upper two cross-attention levels and scores where some of their heads look."""

    def __init__(self, model: UNet2DConditionModel, grid: Grid, every: int = 1) -> None:
        self._every = every  # of so many scenes one is scored: scores take much memory
        device, side = model.device, model.config.sample_size
        self._tokens = {
            cells**2: token_of_cells(cells, grid).to(device) for cells in (side, side // 2)
        }
        self._seen: list[tuple[nn.Module, torch.Tensor, torch.Tensor]] = []
        for block in model.up_blocks[-2:]:
            for transformer in block.attentions:
                attention = transformer.transformer_blocks[0].attn2
                attention.register_forward_pre_hook(self._watch, with_kwargs=True)

    def _watch(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        text = kwargs["encoder_hidden_states"]
        self._seen.append((module, hidden[:: self._every], text[:: self._every]))

    def loss(self) -> torch.Tensor:
        """Cross-entropy of the guided heads' looks in the last forward pass; forgets the pass."""
        losses = []
        for module, hidden, text in self._seen:
            count, cells, _ = hidden.shape
            wanted = self._tokens[cells].repeat(count)
            scores = _scores(module, hidden, text)
            losses.extend(
                nn.functional.cross_entropy(scores[:, head].flatten(0, 1), wanted, ignore_index=-1)
                for head in range(len(GUIDED_HEADS))
            )
        self._seen.clear()
        return torch.stack(losses).mean()


def _scores(module: Any, hidden: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """The guided heads' attention before the softmax, [n, guided heads, cells, tokens]."""
    with autocast(hidden.device):
        query, key = module.to_q(hidden), module.to_k(text)
    query, key = (
        part.float().unflatten(-1, (module.heads, -1))[:, :, GUIDED_HEADS[0] :]
        for part in (query, key)
    )
    return torch.einsum("nchd,nthd->nhct", query, key) * module.scale
