"""Decoder fine-tuning: crops and the discriminator."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from canvas.training.autoencoder import build_autoencoder
from canvas.training.config import CPU
from canvas.training.decoder_finetune import CROP_GRID, GAN_WEIGHT, PatchDiscriminator, adaptive_gan_loss, decode_crop
from canvas.training.net2wider import widen_autoencoder

SMALL = replace(CPU, vae_channels=8, decoder_channels=12)


@pytest.mark.parametrize("corner", [[0, 0], [CROP_GRID - 1, 0], [1, 3]])
def test_decoded_crop_equals_the_window_of_the_whole_image(corner: list[int]) -> None:
    torch.manual_seed(1)
    decoder = widen_autoencoder(build_autoencoder(SMALL), SMALL).decoder
    latents = torch.randn(2, SMALL.latent_channels, 16, 16)
    with torch.no_grad():
        whole = decoder(latents)
        crop, (rows, columns) = decode_crop(decoder, latents, corner)
    assert whole.shape == (2, 3, 256, 256)
    assert 112 <= crop.shape[-1] <= 120
    assert (rows.start == 0) == (corner[0] == 0)
    assert (crop - whole[..., rows, columns]).abs().max() < 0.02 * whole.std()


def test_gan_loss_gradient_has_the_configured_weight() -> None:
    torch.manual_seed(1)
    discriminator, last_weight = PatchDiscriminator(4), nn.Parameter(torch.randn(3, 3, 1, 1))
    real = torch.rand(2, 3, 64, 64)
    generated = nn.functional.conv2d(real, last_weight)
    reconstruction = (generated - real).square().mean()
    total = adaptive_gan_loss(reconstruction, discriminator, generated, last_weight)
    reconstruction_gradient, total_gradient = (
        torch.autograd.grad(loss, last_weight, retain_graph=True)[0] for loss in (reconstruction, total)
    )
    gan_norm = (total_gradient - reconstruction_gradient).norm()
    expected = float(GAN_WEIGHT * reconstruction_gradient.norm())
    assert gan_norm == pytest.approx(expected, rel=0.01)


def test_discriminator_learns_to_detect_blur() -> None:
    torch.manual_seed(1)
    discriminator = PatchDiscriminator(8)
    optimizer = torch.optim.AdamW(discriminator.parameters(), lr=2e-3, betas=(0.5, 0.9))
    for _ in range(60):
        real = (torch.rand(8, 3, 8, 8) > 0.5).float().repeat_interleave(8, 2).repeat_interleave(8, 3)
        blurred = nn.functional.avg_pool2d(real, 5, stride=1, padding=2)
        loss = discriminator.loss(real, blurred)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 1
    assert discriminator(real).mean() > discriminator(blurred).mean() + 1
