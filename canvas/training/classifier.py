"""A judge of pictures, taught on real composed scenes and never on generated ones."""

import logging
from pathlib import Path

import torch
from torch import nn

from canvas.training.backgrounds import BACKGROUNDS
from canvas.training.checkpoints import Clock, load_checkpoint, memory_format, save_checkpoint
from canvas.training.packages import STYLES
from canvas.training.parallel import Team
from canvas.training.presets import Preset
from canvas.training.rows import NONE, SceneRows
from canvas.training.source import open_source
from canvas.training.sprites import Sprites

logger = logging.getLogger(__name__)
MAP = 8  # cells across of the map on which things are looked for
PEAK_RATE = 2e-3


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
    """Says which things (several at once), which style and which background a picture shows.

    side: pixels at which it looks, halved until 8 are left.
    """

    def __init__(self, things: int, side: int = 64, width: int = 24) -> None:
        super().__init__()
        self.side = side
        halvings = (side // MAP).bit_length() - 1
        wide = width * 2 ** min(halvings, 3)
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.ReLU(),
            *(
                Block(min(wide, width * 2**level), min(wide, width * 2 ** (level + 1)))
                for level in range(halvings)
            ),
        )
        self.wide = nn.Sequential(
            nn.Conv2d(wide, wide * 4 // 3, 3, padding=1, bias=False),
            nn.BatchNorm2d(wide * 4 // 3),
            nn.ReLU(),
        )
        self.things = nn.Conv2d(wide * 4 // 3, things, 1)
        self.style = nn.Linear(wide * 2, len(STYLES))
        self.place = nn.Linear(wide * 4 * 4, len(BACKGROUNDS))

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Scores of things, styles and backgrounds for pictures of any size in -1 … 1.

        Things are scored at every place of an 8×8 map and the places summed softly, so that a
        thing is the same thing on the left and on the right.
        """
        small = nn.functional.interpolate(pixels, (self.side, self.side), mode="area")
        features = self.body(small)
        things = self.things(self.wide(features)).flatten(2).float().logsumexp(2)
        both = torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1)
        corners = nn.functional.adaptive_max_pool2d(features, 4).flatten(1)
        return things, self.style(both), self.place(corners)


def blurred(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A little blur and noise, so that the judge looks at shapes and not at sharpness."""
    soft = nn.functional.avg_pool2d(pixels, 3, stride=1, padding=1)
    amount = torch.rand(len(pixels), 1, 1, 1, generator=generator, device=pixels.device)
    noise = torch.randn(pixels.shape, generator=generator, device=pixels.device) * 0.04
    return pixels + amount * (soft - pixels) + noise


def judge_loss(
    scores: tuple[torch.Tensor, torch.Tensor, torch.Tensor], rows: SceneRows
) -> torch.Tensor:
    """Soft cross-entropy over the things shown, cross-entropy of style and background."""
    things, style, place = (score.float() for score in scores)
    present = (rows.things != NONE).float()
    target = torch.zeros_like(things)
    target.scatter_add_(1, rows.things.clamp(min=0), present / present.sum(1, keepdim=True))
    return (
        nn.functional.cross_entropy(things, target)
        + 0.5 * nn.functional.cross_entropy(style, rows.style)
        + 0.5 * nn.functional.cross_entropy(place, rows.place)
    )


def train_judge(team: Team, sprites: Sprites, preset: Preset, work: Path, clock: Clock) -> None:
    """Train until the clock ends; writes `judge.pt`."""
    device = clock.device
    model = Judge(len(sprites.things), preset.judge_side, preset.judge_width)
    model = model.to(device, memory_format=memory_format(device)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=0.01, fused=True)
    parts = {"model": model, "optimizer": optimizer}
    state = load_checkpoint(work / "judge-training.pt", **parts)
    team.share_weights(model)
    step = state.get("step", 0)
    seed = 500_000 + 10 * step + team.rank
    generator = torch.Generator(device).manual_seed(seed)
    source = open_source("pairs", sprites, preset, work, device, seed)
    clock.begin(state.get("spent", 0.0))
    over = False
    while not over:
        pictures, rows = source.batch(preset.judge_batch // team.size)
        share, over = team.agree(clock.share, clock.is_over)
        rate = PEAK_RATE * min(1.0, (step + 1) / 50) * max(0.002, 1 - share)
        with torch.autocast(device.type, torch.bfloat16):
            scores = model(blurred(pictures, generator))
        loss = judge_loss(scores, rows)
        team.descend(optimizer, loss, rate)
        step += 1
        if team.leads and clock.is_report_due(bool(over)):
            logger.info("judge %.0f%% step %d loss %.3f", 100 * share, step, float(loss.detach()))
        if team.leads and clock.is_save_due(bool(over)):
            save_checkpoint(work / "judge-training.pt", **parts, step=step, spent=clock.spent)
            weights = {name: weight.half() for name, weight in model.state_dict().items()}
            size = {"side": preset.judge_side, "width": preset.judge_width}
            torch.save({"model": weights, **size}, work / "judge.pt")


def load_judge(work: Path, things: int) -> Judge:
    """The trained judge."""
    state = torch.load(work / "judge.pt", map_location="cpu", weights_only=True)
    weights = state.pop("model")
    model = Judge(things, **state)
    model.load_state_dict(weights)
    return model.eval()
