"""Teaches the finished decoder: it draws cleanly, and larger, what the denoiser leaves soft.

A decoder that has seen the latents of pictures only shows a denoiser's doubts as blur. This one is
taught on what the denoiser itself paints: which picture was meant is known, as scenes are composed.
"""

import logging
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from torch import nn

from canvas.training.autoencoder import psnr, reconstruction_loss
from canvas.training.cache import Encoders
from canvas.training.checkpoints import Clock, load_checkpoint, memory_format, save_checkpoint
from canvas.training.critic import Critic, with_critic
from canvas.training.finished import build_finished
from canvas.training.parallel import Team
from canvas.training.presets import Preset
from canvas.training.sampling import Sampler
from canvas.training.source import SceneSource, open_source
from canvas.training.sprites import Sprites

logger = logging.getLogger(__name__)
# How often the denoiser paints from which of its four steps. From the first one it sees nothing
# of the scene and paints a background of its own; from the one after the last it paints nothing.
STARTS = (0.35, 0.35, 0.1, 0.05, 0.15)
MEASURED = 32  # pictures of each kind
WHOLE_LEVELS = 3  # of the decoder see all of a picture, those beyond a quarter
CORNERS = 5  # places of a quarter in each direction
USES = 3  # of a painted batch, as painting takes as long as learning
RIM = 8  # pixels of a quarter that its border spoils


class Painted:
    """Latents as the denoiser leaves them, and the pictures that were meant."""

    def __init__(self, source: SceneSource, sampler: Sampler, enlarging: int) -> None:
        self.source = source
        self.sampler = sampler
        self.enlarging = enlarging
        sampler.scheduler.set_timesteps(len(STARTS) - 1)

    @torch.no_grad()
    def batch(
        self, count: int, generator: torch.Generator, starts: tuple[float, ...] = STARTS
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latents of unit spread, pictures, and where those are known, bool [n, 1, h, w]."""
        pixels, rows = self.source.batch(count)
        encoders, scheduler = self.sampler.encoders, self.sampler.scheduler
        hidden = encoders.encode_ids(rows.ids)
        latents = encoders.encode_pictures(nn.functional.avg_pool2d(pixels, self.enlarging))
        noise = torch.randn(latents.shape, generator=generator, device=pixels.device)
        chances = torch.tensor(starts, device=pixels.device)
        start = chances.multinomial(count, replacement=True, generator=generator)
        for number, timestep in enumerate(scheduler.timesteps):
            begins, paints = start == number, start <= number
            noisy = scheduler.add_noise(latents, noise, timestep.expand(count))
            latents = torch.where(begins.view(-1, 1, 1, 1), noisy, latents)
            if paints.any():
                latents[paints] = self.sampler.step(latents[paints], hidden[paints], timestep)
        known = self.source.covered(rows) | (start > 0).view(-1, 1, 1, 1)
        return latents, pixels, known


def draw_quarter(
    decoder: nn.Module, latents: torch.Tensor, corner: list[int]
) -> tuple[torch.Tensor, tuple[slice, slice]]:
    """What the decoder draws in a window of half the width, and where the window is.

    The levels at which pixels cost most have but a quarter to do, the others see everything.
    corner: top and left of the window, 0 to CORNERS - 1.
    """
    half = latents.shape[-1] * 2 ** (WHOLE_LEVELS - 1) // 2
    starts = [place * half // (CORNERS - 1) for place in corner]
    features, level = torch.tanh(latents / 3) * 3, 1  # as DecoderTiny begins
    for layer in decoder.layers:
        if isinstance(layer, nn.Upsample):
            if level == WHOLE_LEVELS:
                down, across = (slice(start, start + half) for start in starts)
                features = features[..., down, across]
            level += 1
        features = layer(features)
    scale = features.shape[-1] // half
    rims = [(RIM * (start > 0), RIM * (start < half)) for start in starts]
    inner = [slice(low, half * scale - high) for low, high in rims]
    window = [
        slice(start * scale + low, (start + half) * scale - high)
        for start, (low, high) in zip(starts, rims, strict=True)
    ]
    return features[..., inner[0], inner[1]].mul(2).sub(1), (window[0], window[1])


def losses(
    model: AutoencoderTiny,
    critic: Critic,
    encoders: Encoders,
    lesson: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    corner: list[int],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of the decoder in a quarter where the picture is known, the encoder, and the critic."""
    latents, pixels, known = lesson
    scale = model.config.scaling_factor
    few = pixels[: max(1, len(pixels) // 4)]
    with torch.autocast(pixels.device.type, torch.bfloat16):
        output, (down, across) = draw_quarter(model.decoder, latents / scale, corner)
        encoded = model.encoder(few)
        real = pixels[..., down, across]
        judging = critic.loss(real, output)
    output = output.float()
    meant = torch.where(known[..., down, across], real, output.detach())
    smaller = nn.functional.adaptive_avg_pool2d(few, 8 * latents.shape[-1])
    encoding = (encoded.float() - encoders.encode_pictures(smaller) / scale).square().mean()
    errors = reconstruction_loss(output, meant)
    with torch.autocast(pixels.device.type, torch.bfloat16):
        drawing = with_critic(errors, critic, output, model.decoder.layers[-1].weight)
    return drawing, encoding, judging


class Yardstick:
    """The same pictures at each report: as they are, and as the denoiser paints them."""

    def __init__(self, painted: Painted, device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(1)
        kinds = ((0.0, 0.0, 0.0, 0.0, 1.0), (0.0, 1.0, 0.0, 0.0, 0.0))
        self._kinds = [painted.batch(MEASURED, generator, starts) for starts in kinds]

    @torch.no_grad()
    def measure(self, model: AutoencoderTiny) -> list[float]:
        """PSNR in dB of both kinds."""
        found = []
        for latents, pixels, _ in self._kinds:
            parts = (latents / model.config.scaling_factor).split(4)
            output = torch.cat([model.decoder(part) for part in parts]).clamp(-1, 1)
            found.append(psnr(output, pixels))
        return found


def train_decoder(team: Team, sprites: Sprites, preset: Preset, work: Path, clock: Clock) -> None:
    """Train until the clock ends, resuming; writes `vae-finished/`."""
    device = clock.device
    sampler = Sampler(work, device)
    model = build_finished(sampler.encoders.vae, preset)
    model = model.to(device, memory_format=memory_format(device)).train()
    optimizer = torch.optim.AdamW(
        [weights for weights in model.parameters() if weights.requires_grad],
        lr=preset.decoder_learning_rate,
        betas=(0.9, 0.98),
        weight_decay=0,
        fused=True,
    )
    critic = Critic(preset.critic_width).to(device).train()
    critics = torch.optim.AdamW(critic.parameters(), betas=(0.5, 0.9), weight_decay=0)
    parts = {"model": model, "optimizer": optimizer, "critic": critic, "critics": critics}
    state = load_checkpoint(work / "decoder.pt", **parts)
    team.share_weights(model)
    team.share_weights(critic)
    step = state.get("step", 0)
    seed = 700_000 + 10 * step + team.rank
    generator = torch.Generator(device).manual_seed(seed)
    large = replace(preset, image_size=preset.picture_size)
    painted, measured = (
        Painted(open_source("scenes", sprites, large, work, device, of), sampler, preset.enlarging)
        for of in (seed, 987_654)
    )
    yardstick = Yardstick(measured, device) if team.leads else None
    clock.begin(state.get("spent", 0.0))
    over, first = False, step
    while not over:
        if (step - first) % USES == 0:
            lesson = painted.batch(preset.decoder_batch // team.size, generator)
        share, over = team.agree(clock.share, clock.is_over)
        rate = preset.decoder_learning_rate * min(1, (step + 1) / 50) * max(0.005, 1 - share)
        corner = torch.randint(0, CORNERS, (2,), generator=generator, device=device).tolist()
        drawing, encoding, judging = losses(model, critic, sampler.encoders, lesson, corner)
        team.descend(optimizer, drawing + encoding, rate)
        team.descend(critics, judging, 2 * rate)
        step += 1
        if yardstick and clock.is_report_due(bool(over)):
            plain, from_noise = yardstick.measure(model)
            logger.info(
                "decoder %.0f%% step %d critic %.3f, encoder %.5f; psnr %.2f dB, painted %.2f dB",
                100 * share,
                step,
                float(judging.detach()),
                float(encoding.detach()),
                plain,
                from_noise,
            )
            save_checkpoint(work / "decoder.pt", **parts, step=step, spent=clock.spent)
            model.save_pretrained(work / "vae-finished")
