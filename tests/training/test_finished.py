"""The finished autoencoder before and while it is taught."""

from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderTiny

from canvas.training.autoencoder import build_autoencoder
from canvas.training.finished import build_finished
from canvas.training.presets import CPU

SMALL = replace(CPU, vae_channels=8, decoder_channels=12)


@pytest.fixture(scope="module")
def trained() -> AutoencoderTiny:
    torch.manual_seed(1)
    return build_autoencoder(SMALL).requires_grad_(False)


def test_of_the_same_size_it_begins_as_the_trained_one(trained: AutoencoderTiny) -> None:
    finished = build_finished(trained, replace(SMALL, enlarging=1))
    pixels = torch.rand(1, 3, 64, 64) * 2 - 1
    latents = trained.encoder(pixels)
    assert torch.equal(finished.encoder(pixels), latents)
    torch.testing.assert_close(finished.decoder(latents), trained.decoder(latents))


def test_larger_it_knows_the_latents_and_draws_the_same_picture(trained: AutoencoderTiny) -> None:
    finished = build_finished(trained, SMALL)
    latents = trained.encoder(torch.rand(1, 3, 64, 64) * 2 - 1)
    known, larger = trained.decoder(latents), finished.decoder(latents)
    assert larger.shape == (1, 3, 128, 128)
    smaller = torch.nn.functional.avg_pool2d(larger, 2)
    inner = (..., slice(1, -1), slice(1, -1))  # at the border zeros stand beside pixels
    difference = (smaller - known)[inner].square().mean()
    assert difference < 0.05 * known[inner].var(), "features, and not pixels, are enlarged"
    assert finished.encoder(torch.rand(1, 3, 128, 128)).shape == latents.shape


def test_what_was_added_can_learn(trained: AutoencoderTiny) -> None:
    finished = build_finished(trained, SMALL)
    finished.decoder(torch.randn(1, SMALL.latent_channels, 4, 4)).square().mean().backward()
    for name, weights in finished.decoder.named_parameters():
        assert weights.grad is not None, name
    taught = [
        name for name, weights in finished.encoder.named_parameters() if weights.requires_grad
    ]
    assert taught == ["layers.0.weight", "layers.0.bias", "layers.1.weight"]
