"""The denoiser: a small UNet2DConditionModel, trained on cached latents."""

import copy
import logging
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import nn

from canvas.training.assets import SpriteSet
from canvas.training.attention_supervision import AttentionSupervision
from canvas.training.config import TrainingConfig
from canvas.training.dataset import make_dataset
from canvas.training.distributed import ProcessGroup
from canvas.training.latent_cache import FrozenEncoders, LatentRingBuffer
from canvas.training.time_budget import EMAMetric, TimeBudget, load_checkpoint, save_checkpoint
from canvas.training.train_step import autocast, make_train_step, memory_format

logger = logging.getLogger(__name__)
ATTENTION_LOSS_WEIGHT = 0.1
DECAY_START = 0.6  # progress from which the learning rate decays to zero
MAX_EMA_DECAY = 0.998


def build_denoiser(config: TrainingConfig) -> UNet2DConditionModel:
    """The block types of Stable Diffusion 1, with cross-attention in all up blocks."""
    levels = len(config.unet_channels)
    return UNet2DConditionModel(
        sample_size=config.latent_size,
        in_channels=config.latent_channels,
        out_channels=config.latent_channels,
        block_out_channels=config.unet_channels,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * (levels - 1)),
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        layers_per_block=config.unet_layers,
        attention_head_dim=config.unet_heads,
        cross_attention_dim=config.text_hidden_size,
    )


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's betas with zero terminal SNR, v-prediction, trailing timesteps."""
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


def stratified_timesteps(count: int, num_train_timesteps: int, generator: torch.Generator) -> torch.Tensor:
    """One random timestep from each of `count` equal intervals of the schedule."""
    device = generator.device
    positions = torch.arange(count, device=device)
    positions = positions + torch.rand(count, generator=generator, device=device)
    return (positions / count * num_train_timesteps).long().clamp(max=num_train_timesteps - 1)


def learning_rate_schedule(step: int, progress: float) -> float:
    """Warm-up over 200 steps, constant, linear decay from DECAY_START; a factor of the peak."""
    decay = (1 - progress) / (1 - DECAY_START)
    return min(1.0, (step + 1) / 200) * max(0.0, min(1.0, decay))


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, step: int) -> None:
    """Update the averaged weights; the decay grows with the steps."""
    decay = min(MAX_EMA_DECAY, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)


class DenoisingLoss:
    """Mean squared error of the velocity (Salimans and Ho 2022, arXiv 2202.00512), unweighted."""

    def __init__(self, model: UNet2DConditionModel, supervision: AttentionSupervision) -> None:
        self.model = model
        self.supervision = supervision
        self.scheduler = build_scheduler()

    def make_batch(
        self, latents: torch.Tensor, prompt_embeds: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, ...]:
        """The arguments of a call: latents, prompt embeddings, noise and timesteps."""
        total = self.scheduler.config.num_train_timesteps
        noise = torch.randn(latents.shape, generator=generator, device=latents.device)
        timesteps = stratified_timesteps(len(latents), total, generator)
        return latents, prompt_embeds, noise, timesteps

    def __call__(
        self, latents: torch.Tensor, prompt_embeds: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """The total loss, the denoising loss and the attention loss."""
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        velocity = self.scheduler.get_velocity(latents, noise, timesteps)
        noisy = noisy.contiguous(memory_format=memory_format(latents.device))
        with autocast(latents.device):
            output = self.model(noisy, timesteps, prompt_embeds).sample
        denoising_loss = (output.float() - velocity).square().mean()
        attention_loss = self.supervision.loss()
        total = denoising_loss + ATTENTION_LOSS_WEIGHT * attention_loss
        return total, denoising_loss, attention_loss


def train_denoiser(
    process_group: ProcessGroup, sprites: SpriteSet, config: TrainingConfig, work: Path, budget: TimeBudget
) -> None:
    """Train the UNet and save its averaged weights in `unet/`; resumes from a checkpoint."""
    device = budget.device
    model = build_denoiser(config).to(device, memory_format=memory_format(device)).train()
    ema = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.unet_learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    parts = {"model": model, "ema": ema, "optimizer": optimizer}
    state = load_checkpoint(work / "denoiser.pt", **parts)
    step = first_step = state.get("step", 0)
    process_group.broadcast_weights(model)
    supervision = AttentionSupervision(model, config.token_grid, config.attention_loss_every)
    loss_function = DenoisingLoss(model, supervision)
    train_step = make_train_step(process_group, optimizer, loss_function, config.cuda_graphs)
    seed = 3 + step * 10 + process_group.rank
    dataset = make_dataset("scenes", sprites, config, work, device, seed)
    encoders = FrozenEncoders(work, device)
    cache = LatentRingBuffer(dataset, encoders, config.cache_size // process_group.size)
    generator = torch.Generator(device).manual_seed(seed)
    batch_size = config.unet_batch_size // process_group.size
    new_samples = 8 * (config.new_samples_per_step // process_group.size)  # every eighth step
    for _ in range(0, config.cache_warmup // process_group.size, new_samples):
        cache.add(new_samples)
    budget.start(state.get("elapsed", 0.0))
    metric, done = EMAMetric(decay=0.99, value=state.get("mean", 0.0), count=step), False
    while not done:
        if step % 8 == 0:
            cache.add(new_samples)
        progress, done = process_group.broadcast_values(budget.progress, budget.is_exhausted)
        learning_rate = config.unet_learning_rate * learning_rate_schedule(step, progress)
        latents, prompt_embeds = cache.sample(batch_size, generator)
        batch = loss_function.make_batch(latents, prompt_embeds, generator)
        _, denoising_loss, attention_loss = train_step(learning_rate, *batch)
        if process_group.is_main:
            update_ema(ema, model, step)
        step += 1
        metric.update(denoising_loss)
        if process_group.is_main and budget.is_report_due(bool(done)):
            logger.info(
                "denoiser %.1f%% step %d samples %d (%.0f samples/s) loss %.4f attention loss %.2f learning rate %.2e",
                100 * progress,
                step,
                step * config.unet_batch_size,
                (step - first_step) * config.unet_batch_size / budget.run_seconds,
                metric.value,
                float(attention_loss.detach()),
                learning_rate,
            )
        if process_group.is_main and budget.is_save_due(bool(done)):
            numbers = {"step": step, "elapsed": budget.elapsed, "mean": metric.value}
            save_checkpoint(work / "denoiser.pt", **parts, **numbers)
            if progress < DECAY_START:  # to continue later with more minutes
                save_checkpoint(work / "denoiser-before-decay.pt", **parts, **numbers)
            ema.save_pretrained(work / "unet")
