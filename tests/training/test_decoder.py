"""How the finished decoder is taught: on quarters of pictures, and with a critic."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from canvas.training.autoencoder import build_autoencoder
from canvas.training.critic import SHARE, Critic, with_critic
from canvas.training.decoder import CORNERS, draw_quarter
from canvas.training.finished import build_finished
from canvas.training.presets import CPU

SMALL = replace(CPU, vae_channels=8, decoder_channels=12)


@pytest.mark.parametrize("corner", [[0, 0], [CORNERS - 1, 0], [1, 3]])
def test_a_quarter_is_as_the_whole_picture_has_it(corner: list[int]) -> None:
    torch.manual_seed(1)
    decoder = build_finished(build_autoencoder(SMALL), SMALL).decoder
    latents = torch.randn(2, SMALL.latent_channels, 16, 16)
    with torch.no_grad():
        whole = decoder(latents)
        quarter, (down, across) = draw_quarter(decoder, latents, corner)
    assert whole.shape == (2, 3, 256, 256)
    assert 112 <= quarter.shape[-1] <= 120
    assert (down.start == 0) == (corner[0] == 0)
    assert (quarter - whole[..., down, across]).abs().max() < 0.02 * whole.std()


def test_the_critic_counts_as_much_as_its_share() -> None:
    torch.manual_seed(1)
    critic, last = Critic(4), nn.Parameter(torch.randn(3, 3, 1, 1))
    real = torch.rand(2, 3, 64, 64)
    drawn = nn.functional.conv2d(real, last)
    errors = (drawn - real).square().mean()
    both = with_critic(errors, critic, drawn, last)
    by_errors, by_both = (
        torch.autograd.grad(part, last, retain_graph=True)[0] for part in (errors, both)
    )
    assert (by_both - by_errors).norm() == pytest.approx(float(SHARE * by_errors.norm()), rel=0.01)


def test_the_critic_learns_to_see_blur() -> None:
    torch.manual_seed(1)
    critic = Critic(8)
    optimizer = torch.optim.AdamW(critic.parameters(), lr=2e-3, betas=(0.5, 0.9))
    for _ in range(60):
        real = (
            (torch.rand(8, 3, 8, 8) > 0.5).float().repeat_interleave(8, 2).repeat_interleave(8, 3)
        )
        soft = nn.functional.avg_pool2d(real, 5, stride=1, padding=2)
        loss = critic.loss(real, soft)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 1
    assert critic(real).mean() > critic(soft).mean() + 1
