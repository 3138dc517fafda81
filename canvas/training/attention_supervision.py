"""Supervises the denoiser's cross-attention during training.

The grid tokens of a prompt hold the foreground, one token for each block of the image, so some
heads are trained to attend from each cell to the token of its block. Without supervision the
denoiser learns this as well, but it takes most of the training.
"""

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from canvas.training.config import WORD_TOKENS, TokenGrid
from canvas.training.train_step import autocast

NUM_UNSUPERVISED_HEADS = 1  # the first of each layer; the others are supervised


def token_of_cells(side: int, grid: TokenGrid) -> torch.Tensor:
    """The token index of each cell of a square map, [side²]; -1 outside the rows with tokens."""
    blocks = torch.arange(side) * grid.columns // side
    rows = blocks - grid.first_row
    tokens = WORD_TOKENS + rows[:, None] * grid.columns + blocks
    return tokens.masked_fill(((rows < 0) | (rows >= grid.rows))[:, None], -1).flatten()


class AttentionSupervision:
    """Hooks the cross-attention of the upper two levels and scores its supervised heads."""

    def __init__(self, model: UNet2DConditionModel, grid: TokenGrid, every: int = 1) -> None:
        self._every = every  # scores one of so many samples, as attention scores take much memory
        device, side = model.device, model.config.sample_size
        self._tokens = {cells**2: token_of_cells(cells, grid).to(device) for cells in (side, side // 2)}
        self._inputs: list[tuple[nn.Module, torch.Tensor, torch.Tensor]] = []
        for block in model.up_blocks[-2:]:
            for transformer in block.attentions:
                attention = transformer.transformer_blocks[0].attn2
                attention.register_forward_pre_hook(self._record, with_kwargs=True)

    def _record(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        text = kwargs["encoder_hidden_states"]
        self._inputs.append((module, hidden[:: self._every], text[:: self._every]))

    def loss(self) -> torch.Tensor:
        """Cross-entropy of the attention in the last forward pass; clears the recorded inputs."""
        losses = []
        for module, hidden, text in self._inputs:
            count, cells, _ = hidden.shape
            target = self._tokens[cells].repeat(count)
            scores = _attention_scores(module, hidden, text)
            losses.extend(
                nn.functional.cross_entropy(head.flatten(0, 1), target, ignore_index=-1) for head in scores.unbind(1)
            )
        self._inputs.clear()
        return torch.stack(losses).mean()


def _attention_scores(module: Any, hidden: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Attention of the supervised heads before the softmax, [n, heads, cells, tokens]."""
    with autocast(hidden.device):
        query, key = module.to_q(hidden), module.to_k(text)
    query, key = (
        part.float().unflatten(-1, (module.heads, -1))[:, :, NUM_UNSUPERVISED_HEADS:] for part in (query, key)
    )
    return torch.einsum("nchd,nthd->nhct", query, key) * module.scale
