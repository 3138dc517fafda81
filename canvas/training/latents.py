"""The latents: principal components of the patches of scenes, and the encoder that computes them.

A trained encoder of the same size kept 23 dB of a drawing, the first 48 principal components keep 28 dB
without any training, and the latents are known before the first training starts.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from torch import nn

from canvas.training.config import PATCH_SIZE, TrainingConfig

STANDARD_DEVIATION = 0.4  # of raw latents; the decoder clips at about 3
SCALING_FACTOR = 1 / STANDARD_DEVIATION
PATCH_VALUES = 3 * PATCH_SIZE**2


def to_patches(pixels: torch.Tensor) -> torch.Tensor:
    """[n, 3, h, w] as [n * h/16 * w/16, 768]."""
    tiles = pixels.unfold(2, PATCH_SIZE, PATCH_SIZE).unfold(3, PATCH_SIZE, PATCH_SIZE)
    return tiles.permute(0, 2, 3, 1, 4, 5).reshape(-1, PATCH_VALUES)


@dataclass(frozen=True)
class LatentBasis:
    """Principal components of patches in [-1, 1]: [768, channels], their mean and standard deviations.

    A raw latent is a component divided by the square root of its standard deviation, so that small
    components are not lost in the noise of diffusion and large ones keep more weight.
    """

    mean: torch.Tensor
    components: torch.Tensor
    deviations: torch.Tensor

    @classmethod
    def fit(cls, patches: torch.Tensor, channels: int) -> "LatentBasis":
        """The principal components of patches [n, 768]."""
        mean = patches.mean(0)
        covariance = ((patches - mean).T @ (patches - mean) / len(patches)).double()
        eigenvalues, vectors = torch.linalg.eigh(covariance)
        deviations = eigenvalues.flip(0)[:channels].clamp(min=1e-12).sqrt().float()
        return cls(mean, vectors.flip(1)[:, :channels].float().contiguous(), deviations)

    @classmethod
    def load(cls, work: Path) -> "LatentBasis":
        """The basis of a work folder."""
        return cls(**torch.load(work / "latents.pt", weights_only=True))

    def save(self, work: Path) -> None:
        """Write `latents.pt`."""
        torch.save(vars(self), work / "latents.pt")

    @property
    def gain(self) -> torch.Tensor:
        """The raw latents' scale by channel."""
        gain = self.deviations.rsqrt()
        return gain * STANDARD_DEVIATION / (self.deviations * gain).square().mean().sqrt()

    @property
    def loss_weights(self) -> torch.Tensor:
        """Weights of the channels, mean 1, by which an error counts for the pixels."""
        return (1 / self.gain) / (1 / self.gain).mean()

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Images [n, 3, h, w] in [-1, 1] as raw latents [n, channels, h/16, w/16]."""
        rows, columns = pixels.shape[2] // PATCH_SIZE, pixels.shape[3] // PATCH_SIZE
        latents = ((to_patches(pixels) - self.mean) @ self.components) * self.gain
        return latents.reshape(-1, rows, columns, latents.shape[-1]).permute(0, 3, 1, 2)

    def residuals(self, pixels: torch.Tensor) -> torch.Tensor:
        """The squared error [n, h/16, w/16] of each patch of images that the components leave."""
        patches = to_patches(pixels) - self.mean
        errors = patches.square().sum(1) - (patches @ self.components).square().sum(1)
        return errors.reshape(len(pixels), pixels.shape[2] // PATCH_SIZE, -1)


def build_autoencoder(basis: LatentBasis, patches: torch.Tensor, config: TrainingConfig) -> AutoencoderTiny:
    """An autoencoder whose encoder computes the basis' latents; the decoder is untrained.

    `patches` [n, 768] decide which 48 numbers of an 8×8 block the encoder keeps (relative error 1e-6).
    """
    model = AutoencoderTiny(
        encoder_block_out_channels=(config.vae_channels,) * 5,
        decoder_block_out_channels=(config.vae_channels,) * 5,
        num_encoder_blocks=(0,) * 5,
        num_decoder_blocks=config.decoder_blocks,
        latent_channels=config.latent_channels,
        scaling_factor=SCALING_FACTOR,
    )
    _set_encoder(model.encoder.layers, basis, patches)
    return model


@torch.no_grad()
def _set_encoder(layers: nn.Sequential, basis: LatentBasis, patches: torch.Tensor) -> None:
    """Strided convolutions that gather 2×2, 4×4 and 8×8 blocks, then the components."""
    for layer in layers:
        layer.weight.zero_()
        if layer.bias is not None:
            layer.bias.zero_()
    first, double, quadruple, eightfold, sixteenfold, last = layers
    channels = basis.components.shape[1]
    width = eightfold.weight.shape[0]
    for channel in range(3):  # the encoder gets pixels in [0, 1]
        first.weight[channel, channel, 1, 1] = 2
        first.bias[channel] = -1
    corners = [(y, x) for y in (0, 1) for x in (0, 1)]
    for layer, count in ((double, 3), (quadruple, 12)):
        for corner, (y, x) in enumerate(corners):
            for channel in range(count):
                layer.weight[corner * count + channel, channel, 1 + y, 1 + x] = 1
    down, up = _block_features(basis, patches, width)
    kernel = down.reshape(3, 8, 8, width)
    for corner, (y, x) in enumerate(corners):
        for channel in range(48):
            colour, row, column = _position_in_block(channel)
            eightfold.weight[:, channel, 1 + y, 1 + x] = kernel[colour, 4 * y + row, 4 * x + column]
        sixteenfold.weight[:channels, :, 1 + y, 1 + x] = up[:, corner].T
    for channel in range(channels):
        last.weight[channel, channel, 1, 1] = 1
    last.bias[:] = -(basis.mean @ basis.components * basis.gain)


def _position_in_block(channel: int) -> tuple[int, int, int]:
    """Colour, row and column of a channel after two gathering convolutions."""
    outer, rest = divmod(channel, 12)
    inner, colour = divmod(rest, 3)
    return colour, (outer // 2) * 2 + inner // 2, (outer % 2) * 2 + inner % 2


def _block_features(basis: LatentBasis, patches: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The best `width` features of an 8×8 block, and the latents as sums over four blocks' features."""
    blocks = patches.reshape(-1, 3, 2, 8, 2, 8).permute(0, 2, 4, 1, 3, 5).reshape(-1, 192)
    centred = blocks - blocks.mean(0)
    eigenvalues, vectors = torch.linalg.eigh((centred.T @ centred / len(centred)).double())
    root = (vectors * eigenvalues.clamp(min=1e-12).sqrt()) @ vectors.T
    inverse = (vectors / eigenvalues.clamp(min=1e-9).sqrt()) @ vectors.T
    weights = (basis.components * basis.gain).reshape(3, 2, 8, 2, 8, -1).permute(0, 2, 4, 1, 3, 5).reshape(192, -1)
    left, values, right = torch.linalg.svd(root @ weights.double(), full_matrices=False)
    up = torch.diag(values[:width]) @ right[:width]
    return (inverse @ left[:, :width]).float(), up.float().reshape(width, 4, -1)
