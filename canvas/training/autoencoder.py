"""The autoencoder: a tiny convolutional one without normalisation, taught on crops of scenes."""

import logging
import math
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from torch import nn

from canvas.training.checkpoints import Clock, load_checkpoint, memory_format, save_checkpoint
from canvas.training.parallel import Team
from canvas.training.pixels import random_crops, to_tensor
from canvas.training.presets import Preset
from canvas.training.scenes import SceneMaker
from canvas.training.source import open_source
from canvas.training.sprites import Sprites

logger = logging.getLogger(__name__)


def build_autoencoder(preset: Preset) -> AutoencoderTiny:
    """Eight times down in each direction; norm-free, so that a high learning rate is stable."""
    channels = (preset.vae_channels,) * 4
    return AutoencoderTiny(
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        num_encoder_blocks=(1, 1, 1, 2),
        num_decoder_blocks=(2, 1, 1, 1),
        latent_channels=preset.latent_channels,
    )


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 and L2, and L1 of the horizontal and vertical differences (edges)."""
    error = output - target
    edges = (error[..., 1:] - error[..., :-1]).abs().mean()
    edges = edges + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return error.abs().mean() + 2 * error.square().mean() + 0.6 * edges


def psnr(output: torch.Tensor, target: torch.Tensor) -> float:
    """Mean in dB over pictures in -1 … 1."""
    error = (output - target).square().mean(dim=(1, 2, 3)) / 4
    return float((-10 * error.log10()).mean())


@torch.no_grad()
def measure(
    model: nn.Module, sprites: Sprites, preset: Preset, count: int = 96
) -> tuple[float, float]:
    """PSNR in dB on fresh scenes, and the standard deviation of the latents."""
    model.eval()
    device = next(model.parameters()).device
    pictures, _ = SceneMaker(sprites, preset.image_size, seed=987_654).batch(count)
    pixels = to_tensor(pictures).to(device)
    latents = torch.cat([model.encoder(part) for part in pixels.split(16)])
    output = torch.cat([model.decoder(part) for part in latents.split(16)]).clamp(-1, 1)
    model.train()
    return psnr(output, pixels), float(latents.std())


def train_autoencoder(
    team: Team, sprites: Sprites, preset: Preset, work: Path, clock: Clock
) -> None:
    """Train until the clock ends, resuming; a trained one in `vae-start/` is gone on from."""
    device = clock.device
    start = work / "vae-start"
    model = AutoencoderTiny.from_pretrained(start) if start.exists() else build_autoencoder(preset)
    model = model.float().to(device, memory_format=memory_format(device)).train()
    peak = preset.vae_learning_rate
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0, fused=True
    )
    parts = {"model": model, "optimizer": optimizer}
    state = load_checkpoint(work / "autoencoder.pt", **parts)
    team.share_weights(model)
    step, spent = state.get("step", 0), state.get("spent", 0.0)
    seed = 1 + 10 * step + team.rank
    generator = torch.Generator(device).manual_seed(seed)
    source = open_source("scenes", sprites, preset, work, device, seed)
    clock.begin(spent)
    over = False
    while not over:
        pictures, _ = source.batch(preset.vae_batch // team.size)
        pixels = random_crops(pictures, preset.image_size // 2, generator)
        share, over = team.agree(clock.share, clock.is_over)
        rate = peak * min(1, (step + 1) / 50) * max(0.005, 1 - share)
        with torch.autocast(device.type, torch.bfloat16):
            latents = model.encoder(pixels)
            output = model.decoder(latents + torch.randn_like(latents) * 0.03)
        loss = reconstruction_loss(output.float(), pixels)
        team.descend(optimizer, loss, rate)
        step += 1
        if team.leads and clock.is_report_due(bool(over)):
            psnr, spread = measure(model, sprites, preset)
            logger.info(
                "autoencoder %.0f%% step %d loss %.4f psnr %.2f dB latents std %.3f",
                100 * share,
                step,
                float(loss.detach()),
                psnr,
                spread,
            )
            if not math.isfinite(psnr):
                raise FloatingPointError(f"autoencoder diverged before step {step}")
            save_checkpoint(work / "autoencoder.pt", **parts, step=step, spent=clock.spent)
            model.register_to_config(scaling_factor=1 / spread)
            model.save_pretrained(work / "vae")
