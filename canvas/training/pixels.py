"""Pictures as tensors and back."""

import numpy as np
import torch

from canvas.training.checkpoints import memory_format


def to_tensor(pictures: np.ndarray) -> torch.Tensor:
    """uint8 [n, h, w, 3] to float in -1 … 1, [n, 3, h, w]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def random_crops(pictures: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    """One crop of each picture at a place that the 8× grid allows."""
    device, steps = pictures.device, (pictures.shape[-1] - size) // 8 + 1
    corners = 8 * torch.randint(0, steps, (2, len(pictures)), generator=generator, device=device)
    down, across = corners[..., None] + torch.arange(size, device=device)
    each = torch.arange(len(pictures), device=device)[:, None, None]
    crops = pictures.permute(0, 2, 3, 1)[each, down[:, :, None], across[:, None, :]]
    return crops.permute(0, 3, 1, 2).contiguous(memory_format=memory_format(device))
