"""The autoencoder: AutoencoderTiny, trained on crops of scenes."""

import logging
import math
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from torch import nn

from canvas.training.assets import SpriteSet
from canvas.training.config import TrainingConfig
from canvas.training.dataset import make_dataset, to_tensor
from canvas.training.distributed import ProcessGroup
from canvas.training.scene_generator import SceneGenerator
from canvas.training.time_budget import TimeBudget, load_checkpoint, save_checkpoint
from canvas.training.train_step import memory_format

logger = logging.getLogger(__name__)
LATENT_NOISE = 0.03  # standard deviation


def build_autoencoder(config: TrainingConfig) -> AutoencoderTiny:
    """Downsamples by 8; without normalisation layers, so a high learning rate is stable."""
    channels = (config.vae_channels,) * 4
    return AutoencoderTiny(
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        num_encoder_blocks=(1, 1, 1, 2),
        num_decoder_blocks=(2, 1, 1, 1),
        latent_channels=config.latent_channels,
    )


def random_crops(images: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    """One random crop of each image, aligned to the 8-pixel grid of the latents."""
    device, steps = images.device, (images.shape[-1] - size) // 8 + 1
    corners = 8 * torch.randint(0, steps, (2, len(images)), generator=generator, device=device)
    ys, xs = corners[..., None] + torch.arange(size, device=device)
    rows = torch.arange(len(images), device=device)[:, None, None]
    crops = images.permute(0, 2, 3, 1)[rows, ys[:, :, None], xs[:, None, :]]
    return crops.permute(0, 3, 1, 2).contiguous(memory_format=memory_format(device))


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1, L2, and L1 of the horizontal and vertical gradients."""
    error = output - target
    gradients = (error[..., 1:] - error[..., :-1]).abs().mean()
    gradients = gradients + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return error.abs().mean() + 2 * error.square().mean() + 0.6 * gradients


def psnr(output: torch.Tensor, target: torch.Tensor) -> float:
    """Mean PSNR in dB of images in [-1, 1]."""
    error = (output - target).square().mean(dim=(1, 2, 3)) / 4
    return float((-10 * error.log10()).mean())


@torch.no_grad()
def measure(model: nn.Module, sprites: SpriteSet, config: TrainingConfig, count: int = 96) -> tuple[float, float]:
    """PSNR in dB on new scenes, and the standard deviation of their latents."""
    model.eval()
    device = next(model.parameters()).device
    images, _ = SceneGenerator(sprites, config.image_size, seed=987_654).sample_images(count)
    pixels = to_tensor(images).to(device)
    latents = torch.cat([model.encoder(part) for part in pixels.split(16)])
    output = torch.cat([model.decoder(part) for part in latents.split(16)]).clamp(-1, 1)
    model.train()
    return psnr(output, pixels), float(latents.std())


def train_autoencoder(
    process_group: ProcessGroup, sprites: SpriteSet, config: TrainingConfig, work: Path, budget: TimeBudget
) -> None:
    """Train `vae/`, starting from `vae-init/` if it exists; resumes from a checkpoint."""
    device = budget.device
    init = work / "vae-init"
    model = AutoencoderTiny.from_pretrained(init) if init.exists() else build_autoencoder(config)
    model = model.float().to(device, memory_format=memory_format(device)).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.vae_learning_rate, betas=(0.9, 0.98), weight_decay=0, fused=True
    )
    parts = {"model": model, "optimizer": optimizer}
    state = load_checkpoint(work / "autoencoder.pt", **parts)
    process_group.broadcast_weights(model)
    step = state.get("step", 0)
    seed = 1 + 10 * step + process_group.rank
    generator = torch.Generator(device).manual_seed(seed)
    dataset = make_dataset("scenes", sprites, config, work, device, seed)
    budget.start(state.get("elapsed", 0.0))
    done = False
    while not done:
        images, _ = dataset.sample_images(config.vae_batch_size // process_group.size)
        pixels = random_crops(images, config.image_size // 2, generator)
        progress, done = process_group.broadcast_values(budget.progress, budget.is_exhausted)
        schedule = min(1, (step + 1) / 50) * max(0.005, 1 - progress)
        with torch.autocast(device.type, torch.bfloat16):
            latents = model.encoder(pixels)
            output = model.decoder(latents + torch.randn_like(latents) * LATENT_NOISE)
        loss = reconstruction_loss(output.float(), pixels)
        process_group.backward_and_step(optimizer, loss, config.vae_learning_rate * schedule)
        step += 1
        if process_group.is_main and budget.is_report_due(bool(done)):
            decibels, std = measure(model, sprites, config)
            logger.info(
                "autoencoder %.0f%% step %d loss %.4f psnr %.2f dB latents std %.3f",
                100 * progress,
                step,
                float(loss.detach()),
                decibels,
                std,
            )
            if not math.isfinite(decibels):
                raise FloatingPointError(f"autoencoder diverged before step {step}")
            save_checkpoint(work / "autoencoder.pt", **parts, step=step, elapsed=budget.elapsed)
            model.register_to_config(scaling_factor=1 / std)
            model.save_pretrained(work / "vae")
