"""Fine-tunes a wider, upsampling decoder on the latents that the denoiser produces.

A decoder trained on the latents of real images renders the denoiser's uncertainty as blur. This
one is trained on the denoiser's own output; the target images are known, as scenes are generated.
A patch discriminator penalizes blur, which mean errors do not (VQGAN: Esser et al., "Taming
Transformers", arXiv 2012.09841).
"""

import logging
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from canvas.training.assets import SpriteSet
from canvas.training.autoencoder import psnr, reconstruction_loss
from canvas.training.config import TrainingConfig
from canvas.training.dataset import SceneDataset, make_dataset
from canvas.training.distributed import ProcessGroup
from canvas.training.latent_cache import FrozenEncoders
from canvas.training.net2wider import widen_autoencoder
from canvas.training.sampling import Sampler
from canvas.training.time_budget import TimeBudget, load_checkpoint, save_checkpoint
from canvas.training.train_step import memory_format

logger = logging.getLogger(__name__)
# Probability of starting the denoiser at each of its four steps, and after the last. From the
# first step it sees pure noise, so its background differs from the scene's; after the last the
# latents are those of the image.
START_STEP_WEIGHTS = (0.35, 0.35, 0.1, 0.05, 0.15)
EVAL_SIZE = 32  # images of each kind
FULL_LEVELS = 3  # of the decoder process the whole image, later ones only a crop
CROP_GRID = 5  # crop positions in each direction
BATCH_REUSE = 3  # steps per denoised batch, as denoising takes as long as a step
CROP_MARGIN = 8  # pixels invalid at the inner borders of a crop
GAN_WEIGHT = 0.2  # gradient norm of the GAN loss by that of the reconstruction loss


class PatchDiscriminator(nn.Module):
    """Scores overlapping patches of about 40 pixels; higher means real."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = (3, width, 2 * width, 3 * width)
        layers: list[nn.Module] = []
        for inner, outer in pairwise(sizes):
            layers += [spectral_norm(nn.Conv2d(inner, outer, 4, stride=2, padding=1))]
            layers += [nn.LeakyReLU(0.2)]
        layers += [spectral_norm(nn.Conv2d(sizes[-1], 1, 3, padding=1))]
        self.layers = nn.Sequential(*layers)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """[n, 3, h, w] to [n, 1, h/8, w/8]."""
        return self.layers(pixels)

    def loss(self, real: torch.Tensor, generated: torch.Tensor) -> torch.Tensor:
        """Hinge loss of the discriminator."""
        real_loss = torch.relu(1 - self(real).float()).mean()
        return real_loss + torch.relu(1 + self(generated.detach()).float()).mean()


def adaptive_gan_loss(
    reconstruction: torch.Tensor, discriminator: PatchDiscriminator, generated: torch.Tensor, last_weight: nn.Parameter
) -> torch.Tensor:
    """The reconstruction loss plus the GAN loss, weighted by their gradients at `last_weight`."""
    gan = -discriminator(generated).float().mean()
    reconstruction_norm, gan_norm = (
        torch.autograd.grad(loss, last_weight, retain_graph=True)[0].norm() for loss in (reconstruction, gan)
    )
    weight = GAN_WEIGHT * reconstruction_norm / gan_norm.clamp(min=1e-4)
    return reconstruction + weight.detach().clamp(max=100) * gan


class DenoisedPairs:
    """Pairs of denoised latents and target images."""

    def __init__(self, dataset: SceneDataset, sampler: Sampler, upscale: int) -> None:
        self.dataset = dataset
        self.sampler = sampler
        self.upscale = upscale
        sampler.scheduler.set_timesteps(len(START_STEP_WEIGHTS) - 1)

    @torch.no_grad()
    def sample(
        self, count: int, generator: torch.Generator, start_step_weights: tuple[float, ...] = START_STEP_WEIGHTS
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latents of unit variance, images, and where these are the target, bool [n, 1, h, w]."""
        pixels, batch = self.dataset.sample_images(count)
        encoders, scheduler = self.sampler.encoders, self.sampler.scheduler
        prompt_embeds = encoders.encode_token_ids(batch.token_ids)
        latents = encoders.encode_images(nn.functional.avg_pool2d(pixels, self.upscale))
        noise = torch.randn(latents.shape, generator=generator, device=pixels.device)
        weights = torch.tensor(start_step_weights, device=pixels.device)
        start = weights.multinomial(count, replacement=True, generator=generator)
        for step, timestep in enumerate(scheduler.timesteps):
            noisy = scheduler.add_noise(latents, noise, timestep.expand(count))
            latents = torch.where((start == step).view(-1, 1, 1, 1), noisy, latents)
            active = start <= step
            if active.any():
                latents[active] = self.sampler.step(latents[active], prompt_embeds[active], timestep)
        is_target = self.dataset.foreground_mask(batch) | (start > 0).view(-1, 1, 1, 1)
        return latents, pixels, is_target


def decode_crop(
    decoder: nn.Module, latents: torch.Tensor, corner: list[int]
) -> tuple[torch.Tensor, tuple[slice, slice]]:
    """Decode a crop of half the width; returns it and its rows and columns in the image.

    The last levels, which are the most expensive, process only the crop; the others the whole
    image. corner: vertical and horizontal position, 0 to CROP_GRID - 1.
    """
    half = latents.shape[-1] * 2 ** (FULL_LEVELS - 1) // 2
    starts = [position * half // (CROP_GRID - 1) for position in corner]
    features, level = torch.tanh(latents / 3) * 3, 1  # the first operation of DecoderTiny
    for layer in decoder.layers:
        if isinstance(layer, nn.Upsample):
            if level == FULL_LEVELS:
                rows, columns = (slice(start, start + half) for start in starts)
                features = features[..., rows, columns]
            level += 1
        features = layer(features)
    scale = features.shape[-1] // half
    margins = [(CROP_MARGIN * (start > 0), CROP_MARGIN * (start < half)) for start in starts]
    inner = [slice(low, half * scale - high) for low, high in margins]
    window = [
        slice(start * scale + low, (start + half) * scale - high)
        for start, (low, high) in zip(starts, margins, strict=True)
    ]
    return features[..., inner[0], inner[1]].mul(2).sub(1), (window[0], window[1])


def finetune_losses(
    model: AutoencoderTiny,
    discriminator: PatchDiscriminator,
    encoders: FrozenEncoders,
    pairs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    corner: list[int],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The losses of the decoder on a crop, of the encoder, and of the discriminator."""
    latents, pixels, is_target = pairs
    scale = model.config.scaling_factor
    encoder_batch = pixels[: max(1, len(pixels) // 4)]
    with torch.autocast(pixels.device.type, torch.bfloat16):
        output, (rows, columns) = decode_crop(model.decoder, latents / scale, corner)
        encoded = model.encoder(encoder_batch)
        real = pixels[..., rows, columns]
        discriminator_loss = discriminator.loss(real, output)
    output = output.float()
    target = torch.where(is_target[..., rows, columns], real, output.detach())
    smaller = nn.functional.adaptive_avg_pool2d(encoder_batch, 8 * latents.shape[-1])
    encoder_loss = (encoded.float() - encoders.encode_images(smaller) / scale).square().mean()
    reconstruction = reconstruction_loss(output, target)
    with torch.autocast(pixels.device.type, torch.bfloat16):
        last_weight = model.decoder.layers[-1].weight
        decoder_loss = adaptive_gan_loss(reconstruction, discriminator, output, last_weight)
    return decoder_loss, encoder_loss, discriminator_loss


class FixedEvalSet:
    """The same pairs at each report: of encoded images, and of images denoised from step 2."""

    def __init__(self, pairs: DenoisedPairs, device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(1)
        weights = ((0.0, 0.0, 0.0, 0.0, 1.0), (0.0, 1.0, 0.0, 0.0, 0.0))
        self._sets = [pairs.sample(EVAL_SIZE, generator, each) for each in weights]

    @torch.no_grad()
    def measure(self, model: AutoencoderTiny) -> list[float]:
        """PSNR in dB of both kinds."""
        results = []
        for latents, pixels, _ in self._sets:
            parts = (latents / model.config.scaling_factor).split(4)
            output = torch.cat([model.decoder(part) for part in parts]).clamp(-1, 1)
            results.append(psnr(output, pixels))
        return results


def finetune_decoder(
    process_group: ProcessGroup, sprites: SpriteSet, config: TrainingConfig, work: Path, budget: TimeBudget
) -> None:
    """Train `vae-finetuned/`; resumes from a checkpoint."""
    device = budget.device
    sampler = Sampler(work, device)
    model = widen_autoencoder(sampler.encoders.vae, config)
    model = model.to(device, memory_format=memory_format(device)).train()
    optimizer = torch.optim.AdamW(
        [weights for weights in model.parameters() if weights.requires_grad],
        lr=config.decoder_learning_rate,
        betas=(0.9, 0.98),
        weight_decay=0,
        fused=True,
    )
    discriminator = PatchDiscriminator(config.discriminator_width).to(device).train()
    discriminator_optimizer = torch.optim.AdamW(discriminator.parameters(), betas=(0.5, 0.9), weight_decay=0)
    parts = {
        "model": model,
        "optimizer": optimizer,
        "discriminator": discriminator,
        "discriminator_optimizer": discriminator_optimizer,
    }
    state = load_checkpoint(work / "decoder.pt", **parts)
    process_group.broadcast_weights(model)
    process_group.broadcast_weights(discriminator)
    step = first_step = state.get("step", 0)
    seed = 700_000 + 10 * step + process_group.rank
    generator = torch.Generator(device).manual_seed(seed)
    output_config = replace(config, image_size=config.output_size)
    train_pairs, eval_pairs = (
        DenoisedPairs(
            make_dataset("scenes", sprites, output_config, work, device, each), sampler, config.decoder_upscale
        )
        for each in (seed, 987_654)
    )
    eval_set = FixedEvalSet(eval_pairs, device) if process_group.is_main else None
    budget.start(state.get("elapsed", 0.0))
    done = False
    while not done:
        if (step - first_step) % BATCH_REUSE == 0:
            pairs = train_pairs.sample(config.decoder_batch_size // process_group.size, generator)
        progress, done = process_group.broadcast_values(budget.progress, budget.is_exhausted)
        schedule = min(1, (step + 1) / 50) * max(0.005, 1 - progress)
        learning_rate = config.decoder_learning_rate * schedule
        corner = torch.randint(0, CROP_GRID, (2,), generator=generator, device=device).tolist()
        decoder_loss, encoder_loss, discriminator_loss = finetune_losses(
            model, discriminator, sampler.encoders, pairs, corner
        )
        process_group.backward_and_step(optimizer, decoder_loss + encoder_loss, learning_rate)
        process_group.backward_and_step(discriminator_optimizer, discriminator_loss, 2 * learning_rate)
        step += 1
        if eval_set and budget.is_report_due(bool(done)):
            encoded_psnr, denoised_psnr = eval_set.measure(model)
            logger.info(
                "decoder %.0f%% step %d discriminator loss %.3f encoder loss %.5f"
                " psnr %.2f dB, of denoised latents %.2f dB",
                100 * progress,
                step,
                float(discriminator_loss.detach()),
                float(encoder_loss.detach()),
                encoded_psnr,
                denoised_psnr,
            )
            save_checkpoint(work / "decoder.pt", **parts, step=step, elapsed=budget.elapsed)
            model.save_pretrained(work / "vae-finetuned")
