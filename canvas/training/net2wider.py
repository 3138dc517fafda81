"""Widens a trained autoencoder without changing its function (Net2Net, arXiv 1511.05641).

The decoder gets wider layers and more upsampling, the encoder more downsampling, so the latents
stay those that the denoiser was trained on.
"""

import torch
from diffusers import AutoencoderTiny
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from torch import nn

from canvas.training.config import TrainingConfig


def widen_autoencoder(trained: AutoencoderTiny, config: TrainingConfig) -> AutoencoderTiny:
    """A larger autoencoder whose decoder output is nearly the same before training."""
    extra = config.decoder_upscale.bit_length() - 1  # levels
    blocks = trained.config.num_decoder_blocks
    wide = AutoencoderTiny(
        encoder_block_out_channels=(config.vae_channels,) * (len(blocks) + extra),
        decoder_block_out_channels=(config.decoder_channels,) * (len(blocks) + extra),
        num_encoder_blocks=(*(0,) * extra, *trained.config.num_encoder_blocks),
        num_decoder_blocks=(*(2 * count for count in blocks[:-1]), blocks[-1], *(0,) * extra),
        latent_channels=config.latent_channels,
        scaling_factor=trained.config.scaling_factor,
    )
    _copy_encoder(wide.encoder.layers, trained.encoder.layers, extra)
    _copy_decoder(wide.decoder.layers, trained.decoder.layers, extra)
    return wide


@torch.no_grad()
def _copy_encoder(layers: nn.Sequential, trained: nn.Sequential, extra: int) -> None:
    """Copy and freeze all layers from the first block of the trained encoder on."""
    if not extra:
        layers.load_state_dict(trained.state_dict())
    for layer, source in zip(layers[1 + extra :], trained[1:], strict=True):
        layer.load_state_dict(source.state_dict())
        layer.requires_grad_(False)


@torch.no_grad()
def _copy_decoder(layers: nn.Sequential, trained: nn.Sequential, extra: int) -> None:
    """Copy the trained layers into wider ones; added convolutions and blocks are the identity."""
    convolutions, levels = _group_layers(layers)
    trained_convolutions, trained_levels = _group_layers(trained)
    for conv in convolutions[len(trained_convolutions) - 1 : -1]:
        nn.init.dirac_(conv.weight)
    for conv, source in zip(convolutions, trained_convolutions[:-1], strict=False):
        _widen(conv, source)
    _widen(convolutions[-1], trained_convolutions[-1])
    for level, trained_level in zip(levels, trained_levels, strict=False):
        for block, source in zip(level, trained_level, strict=False):
            _widen(block, source)
        for block in level[len(trained_level) :]:
            nn.init.zeros_(block.conv[-1].weight)
            nn.init.zeros_(block.conv[-1].bias)


def _group_layers(layers: nn.Sequential) -> tuple[list[nn.Conv2d], list[list[nn.Module]]]:
    """The convolutions between the levels, and the blocks of each level."""
    convolutions, levels = [], [[]]
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            convolutions.append(layer)
        elif isinstance(layer, nn.Upsample):
            levels.append([])
        elif isinstance(layer, AutoencoderTinyBlock):
            levels[-1].append(layer)
    return convolutions, levels


def _widen(layer: nn.Module, trained: nn.Module) -> None:
    """Copy the weights; trained channels get no input from the added ones."""
    for wide, source in zip(layer.parameters(), trained.parameters(), strict=True):
        if source.dim() > 1:
            wide[: len(source)] = 0
        wide[tuple(slice(size) for size in source.shape)] = source
