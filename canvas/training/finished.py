"""The finished autoencoder, as it is before it is taught: the trained one, enlarged.

The decoder gets wider layers and another doubling, the encoder another halving, so that the
latents stay those that the denoiser knows.
"""

import torch
from diffusers import AutoencoderTiny
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from torch import nn

from canvas.training.presets import Preset


def build_finished(trained: AutoencoderTiny, preset: Preset) -> AutoencoderTiny:
    """The trained autoencoder enlarged; its decoder draws nearly the same until it is taught."""
    more = preset.enlarging.bit_length() - 1  # doublings
    blocks = trained.config.num_decoder_blocks
    finished = AutoencoderTiny(
        encoder_block_out_channels=(preset.vae_channels,) * (len(blocks) + more),
        decoder_block_out_channels=(preset.decoder_channels,) * (len(blocks) + more),
        num_encoder_blocks=(*(0,) * more, *trained.config.num_encoder_blocks),
        num_decoder_blocks=(*(2 * count for count in blocks[:-1]), blocks[-1], *(0,) * more),
        latent_channels=preset.latent_channels,
        scaling_factor=trained.config.scaling_factor,
    )
    _adopt_encoder(finished.encoder.layers, trained.encoder.layers, more)
    _adopt_decoder(finished.decoder.layers, trained.decoder.layers, more)
    return finished


@torch.no_grad()
def _adopt_encoder(layers: nn.Sequential, known: nn.Sequential, more: int) -> None:
    """All but what comes before the first known block."""
    if not more:
        layers.load_state_dict(known.state_dict())
    for layer, trained in zip(layers[1 + more :], known[1:], strict=True):
        layer.load_state_dict(trained.state_dict())
        layer.requires_grad_(False)


@torch.no_grad()
def _adopt_decoder(layers: nn.Sequential, known: nn.Sequential, more: int) -> None:
    """Known layers with channels added; added blocks change nothing, nor does what enlarges."""
    convolutions, levels = _sorted_out(layers)
    known_convolutions, known_levels = _sorted_out(known)
    for conv in convolutions[len(known_convolutions) - 1 : -1]:
        nn.init.dirac_(conv.weight)
    for conv, trained in zip(convolutions, known_convolutions[:-1], strict=False):
        _widen(conv, trained)
    _widen(convolutions[-1], known_convolutions[-1])
    for level, trained_level in zip(levels, known_levels, strict=False):
        for block, trained in zip(level, trained_level, strict=False):
            _widen(block, trained)
        for block in level[len(trained_level) :]:
            nn.init.zeros_(block.conv[-1].weight)
            nn.init.zeros_(block.conv[-1].bias)


def _sorted_out(layers: nn.Sequential) -> tuple[list[nn.Conv2d], list[list[nn.Module]]]:
    """The convolutions between the levels, and each level's blocks."""
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
    """The trained weights; what was added reads them and is not read by them."""
    for wide, known in zip(layer.parameters(), trained.parameters(), strict=True):
        if known.dim() > 1:
            wide[: len(known)] = 0
        wide[tuple(slice(size) for size in known.shape)] = known
