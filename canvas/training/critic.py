"""A critic of sharpness: tells patches of drawn pictures from composed ones, as in VQGAN.

Mean errors alone teach a decoder to blur what it is not sure of; a critic sees blur at once.
(Esser et al., "Taming Transformers", arXiv 2012.09841; hinge loss and adaptive weight.)
"""

from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

SHARE = 0.2  # of the critic's gradient beside that of the mean errors, at the last layer


class Critic(nn.Module):
    """Scores each patch of some forty pixels; high is real."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = (3, width, 2 * width, 3 * width)
        layers: list[nn.Module] = []
        for inner, outer in pairwise(sizes):
            layers += [spectral_norm(nn.Conv2d(inner, outer, 4, stride=2, padding=1))]
            layers += [nn.LeakyReLU(0.2)]
        layers += [spectral_norm(nn.Conv2d(sizes[-1], 1, 3, padding=1))]
        self.layers = nn.Sequential(*layers)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """[n, 3, h, w] to [n, 1, h/8, w/8]."""
        return self.layers(pixels)

    def loss(self, real: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        """Its own: to be right about both by a margin."""
        wrong_of_real = torch.relu(1 - self(real).float())
        return wrong_of_real.mean() + torch.relu(1 + self(drawn.detach()).float()).mean()


def with_critic(
    errors: torch.Tensor, critic: Critic, drawn: torch.Tensor, last: nn.Parameter
) -> torch.Tensor:
    """The mean errors, and as much of the critic's opinion as SHARE says."""
    opinion = -critic(drawn).float().mean()
    by_errors, by_opinion = (
        torch.autograd.grad(part, last, retain_graph=True)[0].norm() for part in (errors, opinion)
    )
    weight = SHARE * by_errors / by_opinion.clamp(min=1e-4)
    return errors + weight.detach().clamp(max=100) * opinion
