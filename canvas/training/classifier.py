"""The classifier of the evaluation, trained on composited scenes, never on generated images."""

from pathlib import Path

import torch
from torch import nn

from canvas.training.art_packages import STYLES
from canvas.training.assets import SpriteSet
from canvas.training.backgrounds import BACKGROUNDS
from canvas.training.config import TrainingConfig
from canvas.training.scenes import LAYOUTS, Scene, SceneSampler, render_backgrounds
from canvas.training.time_budget import TimeBudget, TrainingLoop, save_atomically

NUM_BLOCKS = 3
LEARNING_RATE = 2e-3


class ResidualBlock(nn.Module):
    """Two convolutions with a shortcut; halves the resolution."""

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


class SceneClassifier(nn.Module):
    """Predicts the concepts (several at once), the style and the background of an image.

    Images are resized to `input_size` pixels.
    """

    def __init__(self, num_concepts: int, input_size: int = 64, width: int = 24) -> None:
        super().__init__()
        self.input_size = input_size
        wide = width * 2**NUM_BLOCKS
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.ReLU(),
            *(ResidualBlock(width * 2**level, width * 2 ** (level + 1)) for level in range(NUM_BLOCKS)),
        )
        self.wide = nn.Sequential(
            nn.Conv2d(wide, wide * 4 // 3, 3, padding=1, bias=False), nn.BatchNorm2d(wide * 4 // 3), nn.ReLU()
        )
        self.concepts = nn.Conv2d(wide * 4 // 3, num_concepts, 1)
        self.style = nn.Linear(wide * 2, len(STYLES))
        self.place = nn.Linear(wide * 4 * 4, len(BACKGROUNDS))

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits of concepts, styles and backgrounds for images in [-1, 1].

        Concept logits are the logsumexp over the last map, so they do not depend on the position.
        """
        size = (self.input_size, self.input_size)
        features = self.body(nn.functional.interpolate(pixels, size, mode="area"))
        concepts = self.concepts(self.wide(features)).flatten(2).float().logsumexp(2)
        pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1)
        grid = nn.functional.adaptive_max_pool2d(features, 4).flatten(1)
        return concepts, self.style(pooled), self.place(grid)


def augment(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random blur and noise, so that the classifier relies on shapes rather than sharpness."""
    blurred = nn.functional.avg_pool2d(pixels, 3, stride=1, padding=1)
    amount = torch.rand(len(pixels), 1, 1, 1, generator=generator, device=pixels.device)
    noise = torch.randn(pixels.shape, generator=generator, device=pixels.device) * 0.04
    return pixels + amount * (blurred - pixels) + noise


def classifier_loss(logits: tuple[torch.Tensor, torch.Tensor, torch.Tensor], scenes: list[Scene]) -> torch.Tensor:
    """Soft cross-entropy of the concepts, cross-entropy of style and background."""
    concepts, style, place = (each.float() for each in logits)
    target = torch.zeros_like(concepts)
    for row, scene in enumerate(scenes):
        target[row, list(scene.concepts)] = 1 / len(scene.concepts)
    styles = torch.tensor([scene.style for scene in scenes], device=style.device)
    places = torch.tensor([scene.place for scene in scenes], device=style.device)
    return (
        nn.functional.cross_entropy(concepts, target)
        + 0.5 * nn.functional.cross_entropy(style, styles)
        + 0.5 * nn.functional.cross_entropy(place, places)
    )


def train_classifier(sprites: SpriteSet, config: TrainingConfig, work: Path, budget: TimeBudget) -> None:
    """Train `classifier.pt`; resumes from a checkpoint."""
    device = budget.device
    size = {"input_size": config.classifier_size, "width": config.classifier_width}
    model = SceneClassifier(len(sprites.concepts), **size).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    loop = TrainingLoop(work / "classifier-training.pt", budget, model, optimizer)
    sampler = SceneSampler(sprites, render_backgrounds(config, work), seed=3000 + loop.step)
    generator = torch.Generator(device).manual_seed(loop.step)
    layouts = [name for name in LAYOUTS if name not in ("place", "empty")]
    for step in loop.steps():
        scenes = [sampler.sample(sampler.rng.choice(layouts)) for _ in range(config.classifier_batch_size)]
        pixels = sampler.images(scenes).to(device)
        loss = classifier_loss(model(augment(pixels, generator)), scenes)
        loop.update(loss, min(1.0, (step + 1) / 50) * max(0.002, 1 - loop.progress), max_norm=None)
    weights = {name: weight.half() for name, weight in model.state_dict().items()}
    save_atomically({"model": weights, **size}, work / "classifier.pt")


def load_classifier(work: Path, num_concepts: int) -> SceneClassifier:
    """The trained classifier."""
    state = torch.load(work / "classifier.pt", weights_only=True)
    weights = state.pop("model")
    model = SceneClassifier(num_concepts, **state)
    model.load_state_dict(weights)
    return model.eval()
