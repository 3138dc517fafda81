"""Trains the UNet: it copies the cells that the prompt holds into a place, with light and shadow."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import nn

from canvas.training.assets import SpriteSet
from canvas.training.backgrounds import BACKGROUNDS
from canvas.training.config import LATENT_SIZE, NUM_INFERENCE_STEPS, TrainingConfig
from canvas.training.latents import SCALING_FACTOR, LatentBasis
from canvas.training.scenes import (
    BOXES,
    LAYOUTS,
    RECOLOURED_SHARE,
    Scene,
    SceneSampler,
    box_targets,
    render_backgrounds,
    to_pixels,
)
from canvas.training.text_encoder import WORD_TOKENS, DrawingCodes, PromptEmbeddings
from canvas.training.time_budget import TimeBudget, TrainingLoop, save_atomically
from canvas.training.tokenizer import NUM_QUADRANTS, WORDS

EMA_DECAY = 0.998
ATTENTION_WEIGHT = 0.2  # of the supervision in the loss
WARMUP_STEPS = 100
NUM_BACKGROUND_CODES = 16
DECAY_FROM = 0.4  # of the training; the learning rate falls linearly from there


def build_unet(config: TrainingConfig, cross_attention_dim: int) -> UNet2DConditionModel:
    """An untrained UNet with cross-attention in its middle and last block."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=config.latent_channels,
        out_channels=config.latent_channels,
        block_out_channels=config.unet_channels,
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=cross_attention_dim,
        norm_num_groups=16,
    )


def build_scheduler() -> DDIMScheduler:
    """v-prediction with zero terminal SNR, for a few steps without guidance."""
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


def prompt_tensors(scenes: Sequence[Scene], sprites: SpriteSet) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What `PromptEmbeddings` gets for scenes: words [n, WORD_TOKENS], drawings [n, boxes] and shifts [n, 2]."""
    words = [_words(scene) for scene in scenes]
    drawings = [_drawings(scene, sprites) for scene in scenes]
    return torch.tensor(words), torch.tensor(drawings), torch.tensor([scene.shift for scene in scenes])


def _words(scene: Scene) -> list[int]:
    """The words of a scene's prompt as indices of WORDS, 2 for each token of a thing."""
    place, thing = WORDS.index(BACKGROUNDS[scene.place]), [2] * NUM_QUADRANTS
    match scene.layout:
        case "empty":
            words = []
        case "place":
            words = [place]
        case "pair":
            words = [*thing, WORDS.index("and"), *thing, place]
        case "trio":
            words = [*thing, WORDS.index(","), *thing, WORDS.index("and"), *thing, place]
        case "left" | "right":
            words = [*thing, WORDS.index(scene.layout), place]
        case "one":
            words = [*thing, place]
        case _:
            words = [WORDS.index(scene.layout), *thing, place]
    words += map(WORDS.index, scene.modifiers)
    padding = [1] * (WORD_TOKENS - 1 - len(words))
    return [0, *words, *padding]


def _drawings(scene: Scene, sprites: SpriteSet) -> list[int]:
    """The drawing of each box as the prompt gives it, -1 for none."""
    concepts = [scene.concept_of(box) for box in BOXES]
    return [-1 if concept is None else sprites.index[concept, scene.style] for concept in concepts]


class SceneCache:
    """Encoded scenes in a ring buffer: composing one costs as much as a third of a training step."""

    def __init__(self, sampler: SceneSampler, codes: torch.Tensor, basis: LatentBasis, config: TrainingConfig) -> None:
        self._sampler, self._background_codes, self._basis = sampler, codes, basis
        size = config.cache_size
        shape = (size, config.latent_channels, LATENT_SIZE, LATENT_SIZE)
        self._latents = torch.zeros(shape, dtype=torch.half)
        self._words = torch.zeros(size, WORD_TOKENS, dtype=torch.long)
        self._drawings = torch.zeros(size, len(BOXES), dtype=torch.long)
        self._shifts = torch.zeros(size, 2, dtype=torch.long)
        self._layouts = torch.zeros(size, dtype=torch.long)
        self._lights, self._codes = torch.zeros(size), torch.zeros(size, NUM_BACKGROUND_CODES)
        self._next = self._filled = 0

    def add(self, count: int) -> None:
        """Compose and encode new scenes; the oldest make room."""
        scenes = [self._sampler.sample(recoloured=RECOLOURED_SHARE) for _ in range(count)]
        latents = self._basis.encode(self._sampler.images(scenes)) * SCALING_FACTOR
        prompts = zip(*prompt_tensors(scenes, self._sampler.sprites), strict=True)
        for scene, encoded, prompt in zip(scenes, latents, prompts, strict=True):
            row = self._next
            self._latents[row] = encoded.half()
            self._words[row], self._drawings[row], self._shifts[row] = prompt
            self._layouts[row] = tuple(LAYOUTS).index(scene.layout)
            self._lights[row], self._codes[row] = scene.light, self._background_codes[scene.background]
            self._next = (row + 1) % len(self._latents)
            self._filled = max(self._filled, row + 1)

    def sample(self, count: int) -> tuple[torch.Tensor, ...]:
        """Latents, words, drawings, shifts, layouts, lights and background codes of random scenes."""
        rows = torch.randint(0, self._filled, (count,))
        others = (self._words, self._drawings, self._shifts, self._layouts, self._lights, self._codes)
        return self._latents[rows].float(), *(each[rows] for each in others)


class AttentionSupervision:
    """Cross-entropy of the last block's cross-attention against the token of each cell.

    All heads but the first are supervised. Without it, heads find their tokens too late.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self._calls: list[tuple[Attention, torch.Tensor, torch.Tensor]] = []
        self._targets = torch.stack([box_targets(layout, WORD_TOKENS) for layout in LAYOUTS])
        for block in unet.up_blocks[-1].attentions:
            block.transformer_blocks[0].attn2.register_forward_pre_hook(self._record, with_kwargs=True)

    def _record(self, module: Attention, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> None:
        self._calls.append((module, args[0], kwargs["encoder_hidden_states"]))

    def loss(self, layouts: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
        """The mean over the calls since the last one."""
        scenes = zip(self._targets[layouts], shifts.tolist(), strict=True)
        targets = [cells.roll((down, right), (0, 1)) for cells, (right, down) in scenes]
        expected = torch.stack(targets).flatten(1).to(self._calls[0][1].device)
        losses = []
        for module, hidden, context in self._calls:
            query, key = (
                part.unflatten(-1, (module.heads, -1))[:, :, 1:] for part in (module.to_q(hidden), module.to_k(context))
            )
            logits = torch.einsum("nchd,nthd->ncht", query, key) * module.scale
            tokens = expected[:, :, None].expand(-1, -1, logits.shape[2])
            losses.append(nn.functional.cross_entropy(logits.flatten(0, 2), tokens.flatten(), ignore_index=-1))
        self._calls.clear()
        return torch.stack(losses).mean()


def train_denoiser(sprites: SpriteSet, config: TrainingConfig, work: Path, budget: TimeBudget) -> None:
    """Train `unet/`; resumes from `denoiser.pt`."""
    device = budget.device
    basis, codes = LatentBasis.load(work), DrawingCodes.load(work)
    embeddings = PromptEmbeddings(codes, codes.cells())
    unet = build_unet(config, codes.dimensions.total).to(device, memory_format=torch.channels_last).train()
    average = deepcopy(unet).requires_grad_(False)
    supervision = AttentionSupervision(unet)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=config.unet_learning_rate, betas=(0.9, 0.99))
    loop = TrainingLoop(work / "denoiser.pt", budget, unet, optimizer, average=average)
    backgrounds = render_backgrounds(config, work)
    sampler = SceneSampler(sprites, backgrounds, seed=1000 + loop.step)
    cache = SceneCache(sampler, background_codes(backgrounds, basis, work), basis, config)
    cache.add(32 * config.unet_batch_size)
    scheduler, weights = build_scheduler(), basis.loss_weights[None, :, None, None].to(device)
    for step in loop.steps():
        cache.add(config.new_scenes_per_step)
        latents, words, drawings, shifts, layouts, lights, background = cache.sample(config.unet_batch_size)
        latents, context = latents.to(device), embeddings(words, drawings, shifts).to(device)
        noise = sample_noise(lights, background, latents.shape[1]).to(device)
        timesteps = sample_timesteps(len(latents), scheduler).to(device)
        noisy = scheduler.add_noise(latents, noise, timesteps).contiguous(memory_format=torch.channels_last)
        output = unet(noisy, timesteps, context).sample
        error = ((output - scheduler.get_velocity(latents, noise, timesteps)).square() * weights).mean()
        misplaced = supervision.loss(layouts, shifts)
        schedule = learning_rate_schedule(step, loop.progress)
        loop.update(error + ATTENTION_WEIGHT * misplaced, schedule, loss=error, attention=misplaced)
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(unet.parameters()), 1 - decay)
    average.save_pretrained(work / "unet")


def background_codes(backgrounds: np.ndarray, basis: LatentBasis, work: Path) -> torch.Tensor:
    """What tells a background from others of its place, as standard normal variables [backgrounds, n].

    They are the ranks by the first principal components of the place's; written once, as a model is trained on them.
    """
    path = work / "background_codes.pt"
    if not path.exists():
        codes = []
        for images in np.split(backgrounds, len(BACKGROUNDS)):
            latents = (basis.encode(to_pixels(images)) / basis.gain[:, None, None]).flatten(1)
            left, values, _ = torch.linalg.svd(latents - latents.mean(0), full_matrices=False)
            scores = (left * values * left[0].sign())[:, :NUM_BACKGROUND_CODES]  # the first background's are positive
            ranks = scores.argsort(0).argsort(0)
            missing = NUM_BACKGROUND_CODES - ranks.shape[1]
            codes.append(nn.functional.pad(torch.special.ndtri((ranks + 0.5) / len(ranks)), (0, missing)))
        save_atomically({"codes": torch.cat(codes)}, path)
    return torch.load(path, weights_only=True)["codes"]


def sample_noise(lights: torch.Tensor, codes: torch.Tensor, channels: int) -> torch.Tensor:
    """Normal noise [n, channels, 16, 16] whose channels have means that tell the light and the background's code.

    Few steps from independent noise give all images the mean of what their prompts leave open; so the seed decides
    it at the first step.
    """
    noise = torch.randn(len(lights), channels, LATENT_SIZE, LATENT_SIZE)
    means = torch.cat([lights[:, None], codes], 1)[:, :channels] / LATENT_SIZE
    told = noise[:, : means.shape[1]]
    told += (means - told.mean((2, 3)))[:, :, None, None]
    return noise


def sample_timesteps(count: int, scheduler: DDIMScheduler) -> torch.Tensor:
    """A random timestep in each of `count` equal ranges, but three of four are those that the pipeline uses."""
    total = scheduler.config.num_train_timesteps
    timesteps = ((torch.arange(count) + torch.rand(count)) / count * total).long().clamp(max=total - 1)
    scheduler.set_timesteps(NUM_INFERENCE_STEPS)
    used = scheduler.timesteps.repeat(count)[:count]
    is_used = torch.arange(count) % 4 != 3
    timesteps[is_used] = used[torch.randperm(count)][is_used]
    return timesteps


def learning_rate_schedule(step: int, progress: float) -> float:
    """A short warm-up, constant, then linear to nearly zero; `progress` is 0 to 1."""
    decay = min(1.0, (1 - progress) / (1 - DECAY_FROM))
    return min(1.0, (step + 1) / WARMUP_STEPS) * max(0.003, decay)
