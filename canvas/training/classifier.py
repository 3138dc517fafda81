"""A judge of pictures, taught on real composed scenes and never on generated ones."""

import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from canvas.training.autoencoder import to_tensor
from canvas.training.backgrounds import BACKGROUNDS
from canvas.training.checkpoints import Clock, load_checkpoint, save_checkpoint
from canvas.training.packages import STYLES
from canvas.training.parallel import Team
from canvas.training.presets import Preset
from canvas.training.scenes import Scene, SceneMaker
from canvas.training.sprites import Sprites

logger = logging.getLogger(__name__)
SIDE = 64  # pixels at which the judge looks


class Block(nn.Module):
    """A residual pair of convolutions that halves the picture."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(inner, outer, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(outer),
            nn.ReLU(),
            nn.Conv2d(outer, outer, 3, padding=1, bias=False),
            nn.BatchNorm2d(outer),
        )
        self.short = nn.Conv2d(inner, outer, 1, stride=2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, inner, h, w] to [n, outer, h/2, w/2]."""
        return torch.relu(self.path(x) + self.short(x))


class Judge(nn.Module):
    """Says which things (several at once), which style and which background a picture shows."""

    def __init__(self, things: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 24, 3, padding=1),
            nn.ReLU(),
            Block(24, 48),
            Block(48, 96),
            Block(96, 192),
        )
        self.wide = nn.Sequential(
            nn.Conv2d(192, 256, 3, padding=1, bias=False), nn.BatchNorm2d(256), nn.ReLU()
        )
        self.things = nn.Conv2d(256, things, 1)
        self.style = nn.Linear(192 * 2, len(STYLES))
        self.place = nn.Linear(192 * 4 * 4, len(BACKGROUNDS))

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Scores of things, styles and backgrounds for pictures of any size in -1 … 1.

        Things are scored at every place of an 8×8 map and the places summed softly, so that a
        thing is the same thing on the left and on the right.
        """
        small = nn.functional.interpolate(pixels, (SIDE, SIDE), mode="area")
        features = self.body(small)
        things = self.things(self.wide(features)).flatten(2).float().logsumexp(2)
        both = torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1)
        corners = nn.functional.adaptive_max_pool2d(features, 4).flatten(1)
        return things, self.style(both), self.place(corners)


def blurred(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A little blur and noise, so that the judge looks at shapes and not at sharpness."""
    soft = nn.functional.avg_pool2d(pixels, 3, stride=1, padding=1)
    amount = torch.rand(len(pixels), 1, 1, 1, generator=generator)
    noise = torch.randn(pixels.shape, generator=generator) * 0.04
    return pixels + amount * (soft - pixels) + noise


def judge_loss(
    scores: tuple[torch.Tensor, torch.Tensor, torch.Tensor], scenes: list[Scene]
) -> torch.Tensor:
    """Soft cross-entropy over the things shown, cross-entropy of style and background."""
    things, style, place = (score.float() for score in scores)
    target = torch.zeros_like(things)
    for row, scene in enumerate(scenes):
        for thing in scene.things:
            target[row, thing] = 1 / len(scene.things)
    styles = torch.tensor([scene.style for scene in scenes], device=style.device)
    places = torch.tensor([scene.place for scene in scenes], device=place.device)
    return (
        nn.functional.cross_entropy(things, target)
        + 0.5 * nn.functional.cross_entropy(style, styles)
        + 0.5 * nn.functional.cross_entropy(place, places)
    )


def scene_batches(
    maker: SceneMaker, count: int, generator: torch.Generator
) -> Iterator[tuple[torch.Tensor, list[Scene]]]:
    """Endless blurred training scenes; held-out combinations do not occur."""
    while True:
        pictures, scenes = maker.batch(count, pairs=0.5)
        yield blurred(to_tensor(pictures), generator), scenes


def train_judge(team: Team, sprites: Sprites, preset: Preset, work: Path, clock: Clock) -> None:
    """Train until the clock ends; writes `judge.pt`."""
    device = clock.device
    model = Judge(len(sprites.things)).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    state = load_checkpoint(work / "judge.pt", model=model, optimizer=optimizer)
    team.share_weights(model)
    step = state.get("step", 0)
    clock.begin(state.get("spent", 0.0))
    seed = 500_000 + 10 * step + team.rank
    generator = torch.Generator().manual_seed(seed)
    batches = scene_batches(
        SceneMaker(sprites, preset.image_size, seed), 64 // team.size, generator
    )
    over = False
    while not over:
        pixels, scenes = next(batches)
        share, over = team.agree(clock.share, clock.is_over)
        rate = 2e-3 * min(1.0, (step + 1) / 50) * max(0.002, 1 - share)
        with torch.autocast(device.type, torch.bfloat16):
            scores = model(pixels.to(device))
        loss = judge_loss(scores, scenes)
        team.descend(optimizer, loss, rate)
        step += 1
        if team.leads and clock.is_report_due(bool(over)):
            logger.info("judge %.0f%% step %d loss %.3f", 100 * share, step, float(loss.detach()))
            save_checkpoint(
                work / "judge.pt", model=model, optimizer=optimizer, step=step, spent=clock.spent
            )


def load_judge(work: Path, things: int) -> Judge:
    """The trained judge."""
    model = Judge(things)
    state = torch.load(work / "judge.pt", map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    return model.eval()
