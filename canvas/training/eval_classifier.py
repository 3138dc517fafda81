"""The classifier of the evaluation, trained on composited scenes, never on generated images."""

import logging
from pathlib import Path

import torch
from torch import nn

from canvas.training.art_packages import STYLES
from canvas.training.assets import SpriteSet
from canvas.training.backgrounds import BACKGROUNDS
from canvas.training.config import TrainingConfig
from canvas.training.dataset import make_dataset
from canvas.training.distributed import ProcessGroup
from canvas.training.scene_table import PAD, SceneBatch
from canvas.training.time_budget import TimeBudget, load_checkpoint, load_state, save_checkpoint
from canvas.training.train_step import memory_format

logger = logging.getLogger(__name__)
FEATURE_MAP_SIZE = 8
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

    Images are resized to `input_size` pixels, a power of two.
    """

    def __init__(self, num_concepts: int, input_size: int = 64, width: int = 24) -> None:
        super().__init__()
        self.input_size = input_size
        num_blocks = (input_size // FEATURE_MAP_SIZE).bit_length() - 1
        wide = width * 2 ** min(num_blocks, 3)
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.ReLU(),
            *(
                ResidualBlock(min(wide, width * 2**level), min(wide, width * 2 ** (level + 1)))
                for level in range(num_blocks)
            ),
        )
        self.wide = nn.Sequential(
            nn.Conv2d(wide, wide * 4 // 3, 3, padding=1, bias=False), nn.BatchNorm2d(wide * 4 // 3), nn.ReLU()
        )
        self.concepts = nn.Conv2d(wide * 4 // 3, num_concepts, 1)
        self.style = nn.Linear(wide * 2, len(STYLES))
        self.place = nn.Linear(wide * 4 * 4, len(BACKGROUNDS))

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits of concepts, styles and backgrounds for images in [-1, 1].

        Concept logits are the logsumexp over an 8×8 map, so they do not depend on the position.
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


def classifier_loss(logits: tuple[torch.Tensor, torch.Tensor, torch.Tensor], batch: SceneBatch) -> torch.Tensor:
    """Soft cross-entropy of the concepts, cross-entropy of style and background."""
    concepts, style, place = (each.float() for each in logits)
    present = (batch.concepts != PAD).float()
    target = torch.zeros_like(concepts)
    target.scatter_add_(1, batch.concepts.clamp(min=0), present / present.sum(1, keepdim=True))
    return (
        nn.functional.cross_entropy(concepts, target)
        + 0.5 * nn.functional.cross_entropy(style, batch.style)
        + 0.5 * nn.functional.cross_entropy(place, batch.place)
    )


def train_classifier(
    process_group: ProcessGroup, sprites: SpriteSet, config: TrainingConfig, work: Path, budget: TimeBudget
) -> None:
    """Train `classifier.pt`; resumes from a checkpoint."""
    device = budget.device
    size = {"input_size": config.classifier_size, "width": config.classifier_width}
    model = SceneClassifier(len(sprites.concepts), **size)
    model = model.to(device, memory_format=memory_format(device)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01, fused=True)
    parts = {"model": model, "optimizer": optimizer}
    state = load_checkpoint(work / "classifier-training.pt", **parts)
    process_group.broadcast_weights(model)
    step = state.get("step", 0)
    seed = 500_000 + 10 * step + process_group.rank
    generator = torch.Generator(device).manual_seed(seed)
    dataset = make_dataset("pairs", sprites, config, work, device, seed)
    budget.start(state.get("elapsed", 0.0))
    done = False
    while not done:
        images, batch = dataset.sample_images(config.classifier_batch_size // process_group.size)
        progress, done = process_group.broadcast_values(budget.progress, budget.is_exhausted)
        schedule = min(1.0, (step + 1) / 50) * max(0.002, 1 - progress)
        with torch.autocast(device.type, torch.bfloat16):
            logits = model(augment(images, generator))
        loss = classifier_loss(logits, batch)
        process_group.backward_and_step(optimizer, loss, LEARNING_RATE * schedule)
        step += 1
        if process_group.is_main and budget.is_report_due(bool(done)):
            message = "classifier %.0f%% step %d loss %.3f"
            logger.info(message, 100 * progress, step, float(loss.detach()))
        if process_group.is_main and budget.is_save_due(bool(done)):
            path = work / "classifier-training.pt"
            save_checkpoint(path, **parts, step=step, elapsed=budget.elapsed)
            weights = {name: weight.half() for name, weight in model.state_dict().items()}
            save_checkpoint(work / "classifier.pt", model=weights, **size)


def load_classifier(work: Path, num_concepts: int) -> SceneClassifier:
    """The trained classifier."""
    state = load_state(work / "classifier.pt")
    weights = state.pop("model")
    model = SceneClassifier(num_concepts, **state)
    model.load_state_dict(weights)
    return model.eval()
