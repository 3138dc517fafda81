"""The widened autoencoder before and during training."""

from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderTiny

from canvas.training.autoencoder import build_autoencoder
from canvas.training.config import CPU
from canvas.training.net2wider import widen_autoencoder

SMALL = replace(CPU, vae_channels=8, decoder_channels=12)


@pytest.fixture(scope="module")
def trained() -> AutoencoderTiny:
    torch.manual_seed(1)
    return build_autoencoder(SMALL).requires_grad_(False)


def test_without_upscaling_the_function_is_unchanged(trained: AutoencoderTiny) -> None:
    wide = widen_autoencoder(trained, replace(SMALL, decoder_upscale=1))
    pixels = torch.rand(1, 3, 64, 64) * 2 - 1
    latents = trained.encoder(pixels)
    assert torch.equal(wide.encoder(pixels), latents)
    torch.testing.assert_close(wide.decoder(latents), trained.decoder(latents))


def test_with_upscaling_the_decoder_gives_a_larger_version_of_the_image(trained: AutoencoderTiny) -> None:
    wide = widen_autoencoder(trained, SMALL)
    latents = trained.encoder(torch.rand(1, 3, 64, 64) * 2 - 1)
    image, larger = trained.decoder(latents), wide.decoder(latents)
    assert larger.shape == (1, 3, 128, 128)
    smaller = torch.nn.functional.avg_pool2d(larger, 2)
    inner = (..., slice(1, -1), slice(1, -1))  # without the border, where padding differs
    difference = (smaller - image)[inner].square().mean()
    assert difference < 0.05 * image[inner].var(), "not equal: upsamples features, not pixels"
    assert wide.encoder(torch.rand(1, 3, 128, 128)).shape == latents.shape


def test_added_layers_are_trainable(trained: AutoencoderTiny) -> None:
    wide = widen_autoencoder(trained, SMALL)
    wide.decoder(torch.randn(1, SMALL.latent_channels, 4, 4)).square().mean().backward()
    for name, weights in wide.decoder.named_parameters():
        assert weights.grad is not None, name
    trainable = [name for name, weights in wide.encoder.named_parameters() if weights.requires_grad]
    assert trainable == ["layers.0.weight", "layers.0.bias", "layers.1.weight"]
