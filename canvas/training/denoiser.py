"""The denoiser: a small UNet2DConditionModel that learns to paint the named drawings in place."""

import copy
import logging
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import nn

from canvas.training.attention import AttentionGuide
from canvas.training.cache import Encoders, SceneCache
from canvas.training.checkpoints import (
    Clock,
    Mean,
    autocast,
    load_checkpoint,
    memory_format,
    save_checkpoint,
)
from canvas.training.parallel import Team
from canvas.training.presets import Preset
from canvas.training.source import open_source
from canvas.training.sprites import Sprites
from canvas.training.steps import open_steps

logger = logging.getLogger(__name__)
GUIDE_WEIGHT = 0.1  # of the loss that tells the cross-attention where to look
DECAY_FROM = 0.6  # share of the training after which the learning rate falls to zero


def build_denoiser(preset: Preset) -> UNet2DConditionModel:
    """The block types of Stable Diffusion 1, cross-attention everywhere on the way up."""
    levels = len(preset.unet_channels)
    return UNet2DConditionModel(
        sample_size=preset.latent_size,
        in_channels=preset.latent_channels,
        out_channels=preset.latent_channels,
        block_out_channels=preset.unet_channels,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * (levels - 1)),
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        layers_per_block=preset.unet_layers,
        attention_head_dim=preset.unet_heads,
        cross_attention_dim=preset.text_hidden,
    )


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise, rescaled to end in pure noise; v-prediction; trailing steps."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        steps_offset=1,
    )


def spread_timesteps(count: int, steps: int, generator: torch.Generator) -> torch.Tensor:
    """One timestep from each of `count` equal parts of the schedule, at random within it."""
    device = generator.device
    parts = torch.arange(count, device=device)
    parts = parts + torch.rand(count, generator=generator, device=device)
    return (parts / count * steps).long().clamp(max=steps - 1)


def learning_rate(peak: float, step: int, share: float) -> float:
    """Warm up over 200 steps, hold, and fall to zero from DECAY_FROM to the end."""
    falling = (1 - share) / (1 - DECAY_FROM)
    return peak * min(1.0, (step + 1) / 200) * max(0.0, min(1.0, falling))


@torch.no_grad()
def follow(ema: nn.Module, model: nn.Module, step: int) -> None:
    """Move the running average of the weights a little towards them."""
    amount = 1 - min(0.998, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), amount)


class DenoisingLoss:
    """Mean squared error of the velocity (Salimans and Ho 2022), all timesteps alike."""

    def __init__(self, model: UNet2DConditionModel, guide: AttentionGuide) -> None:
        self.model = model
        self.guide = guide
        self.scheduler = build_scheduler()

    def batch(
        self, latents: torch.Tensor, hidden: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, ...]:
        """What a call wants: latents, text, noise and timesteps."""
        total = self.scheduler.config.num_train_timesteps
        noise = torch.randn(latents.shape, generator=generator, device=latents.device)
        return latents, hidden, noise, spread_timesteps(len(latents), total, generator)

    def __call__(
        self,
        latents: torch.Tensor,
        hidden: torch.Tensor,
        noise: torch.Tensor,
        timesteps: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """The whole loss, the error alone, and how far the guided heads are from their tokens."""
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        velocity = self.scheduler.get_velocity(latents, noise, timesteps)
        noisy = noisy.contiguous(memory_format=memory_format(latents.device))
        with autocast(latents.device):
            output = self.model(noisy, timesteps, hidden).sample
        error = (output.float() - velocity).square().mean()
        looking = self.guide.loss()
        return error + GUIDE_WEIGHT * looking, error, looking


def train_denoiser(team: Team, sprites: Sprites, preset: Preset, work: Path, clock: Clock) -> None:
    """Train until the clock ends, resuming exactly; writes the averaged weights to `unet/`."""
    device = clock.device
    model = build_denoiser(preset).to(device, memory_format=memory_format(device)).train()
    ema = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=preset.unet_learning_rate,
        betas=(0.9, 0.99),
        weight_decay=0.01,
        fused=True,
    )
    parts = {"model": model, "ema": ema, "optimizer": optimizer}
    state = load_checkpoint(work / "denoiser.pt", **parts)
    step, spent = state.get("step", 0), state.get("spent", 0.0)
    team.share_weights(model)
    losses = DenoisingLoss(model, AttentionGuide(model, preset.grid, preset.guide_every))
    steps = open_steps(team, optimizer, losses, preset.graphs)
    seed = 3 + step * 10 + team.rank
    source = open_source("scenes", sprites, preset, work, device, seed)
    cache = SceneCache(source, Encoders(work, device), preset.cache_size // team.size)
    generator = torch.Generator(device).manual_seed(seed)
    batch, fresh = preset.unet_batch // team.size, preset.fresh_per_step // team.size
    for _ in range(0, preset.first_scenes // team.size, 8 * fresh):
        cache.add(8 * fresh)
    clock.begin(spent)
    mean, over, first = Mean(0.01, state.get("mean", 0.0), step), False, step
    while not over:
        if step % 8 == 0:
            cache.add(8 * fresh)
        share, over = team.agree(clock.share, clock.is_over)
        rate = learning_rate(preset.unet_learning_rate, step, share)
        latents, hidden = cache.draw(batch, generator)
        _, error, looking = steps(rate, *losses.batch(latents, hidden, generator))
        if team.leads:
            follow(ema, model, step)
        step += 1
        mean.add(error)
        if team.leads and clock.is_report_due(bool(over)):
            logger.info(
                "denoiser %.1f%% step %d samples %d (%.0f /s) loss %.4f rate %.2e, look %.2f",
                100 * share,
                step,
                step * preset.unet_batch,
                (step - first) * preset.unet_batch / clock.run_seconds,
                mean.value,
                rate,
                float(looking.detach()),
            )
        if team.leads and clock.is_save_due(bool(over)):
            rest = {"step": step, "spent": clock.spent, "mean": mean.value}
            save_checkpoint(work / "denoiser.pt", **parts, **rest)
            if share < DECAY_FROM:  # to go on from with more minutes later
                save_checkpoint(work / "denoiser-before-decay.pt", **parts, **rest)
            ema.save_pretrained(work / "unet")
