"""The text encoder: its last tokens learn to hold the sprites that the caption names.

A CLIPTextModel processes a caption padded to its full length, and each token attends to all
earlier ones. The first 29 positions are for words. The others are trained, by regression and
without noise, to hold the foreground (`token_targets.py`). The denoiser's cross-attention then
reads the sprites from there, and learns only to render them onto a background.
"""

import logging
from pathlib import Path

import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from canvas.training.art_packages import STYLES
from canvas.training.assets import SpriteSet
from canvas.training.backgrounds import BACKGROUNDS
from canvas.training.config import WORD_TOKENS, TrainingConfig
from canvas.training.dataset import make_dataset
from canvas.training.distributed import ProcessGroup
from canvas.training.scene_generator import LAYOUTS
from canvas.training.scene_table import SceneBatch
from canvas.training.time_budget import EMAMetric, TimeBudget, load_checkpoint, save_checkpoint
from canvas.training.token_targets import TokenTargets
from canvas.training.train_step import autocast, make_train_step

logger = logging.getLogger(__name__)
SUMMARY_TOKEN = WORD_TOKENS - 1


def build_text_encoder(config: TrainingConfig, vocabulary_size: int) -> CLIPTextModel:
    """A small CLIPTextModel; its output is [n, tokens, hidden size]."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary_size,
            hidden_size=config.text_hidden_size,
            intermediate_size=config.text_hidden_size * config.text_mlp_ratio,
            num_hidden_layers=config.text_layers,
            num_attention_heads=config.text_hidden_size // 64,
            max_position_embeddings=config.token_grid.num_tokens,
            hidden_act="gelu",  # one operation; CLIP's quick_gelu takes three
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )


class ProbeHeads(nn.Module):
    """Linear heads on the text encoder's output, used in training only."""

    def __init__(self, hidden_size: int, target_size: int) -> None:
        super().__init__()
        self.tokens = nn.Linear(hidden_size, target_size)
        self.place = nn.Linear(hidden_size, len(BACKGROUNDS) + 1)
        self.layout = nn.Linear(hidden_size, len(LAYOUTS))
        self.style = nn.Linear(hidden_size, len(STYLES))


def text_loss(
    heads: ProbeHeads, hidden: torch.Tensor, batch: SceneBatch, targets: TokenTargets
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss, and the unexplained fraction of the token targets' variance."""
    prediction = heads.tokens(hidden[:, WORD_TOKENS:]).float()
    unexplained = (prediction - targets.of(batch)).square().mean() / targets.variance
    summary = hidden[:, SUMMARY_TOKEN]
    loss = 10 * unexplained
    for head, labels in ((heads.place, batch.caption_place), (heads.layout, batch.layout), (heads.style, batch.style)):
        loss = loss + 0.1 * nn.functional.cross_entropy(head(summary).float(), labels)
    return loss, unexplained.detach()


def learning_rate_schedule(step: int, progress: float) -> float:
    """Warm-up over 100 steps, then linear decay to nearly zero; a factor of the peak."""
    return min(1.0, (step + 1) / 100) * max(0.002, min(1.0, (1 - progress) / 0.8))


def train_text_encoder(
    process_group: ProcessGroup, sprites: SpriteSet, config: TrainingConfig, work: Path, budget: TimeBudget
) -> None:
    """Train `text_encoder/`; resumes from a checkpoint."""
    device = budget.device
    targets = TokenTargets.load(work, device)
    vocabulary_size = len(CLIPTokenizer.from_pretrained(work / "tokenizer"))
    model = build_text_encoder(config, vocabulary_size)
    heads = ProbeHeads(config.text_hidden_size, targets.size)
    modules = nn.ModuleList((model.train(), heads)).to(device)
    optimizer = torch.optim.AdamW(
        modules.parameters(), lr=config.text_learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    parts = {"model": model, "probe_heads": heads, "optimizer": optimizer}
    state = load_checkpoint(work / "text.pt", **parts)
    process_group.broadcast_weights(modules)
    step = first_step = state.get("step", 0)
    seed = 2 + step * 10 + process_group.rank
    dataset = make_dataset("synonyms", sprites, config, work, device, seed)
    budget.start(state.get("elapsed", 0.0))

    def loss_function(table: torch.Tensor) -> tuple[torch.Tensor, ...]:
        batch = SceneBatch(table)
        with autocast(device):
            hidden = model(batch.token_ids).last_hidden_state
            return text_loss(heads, hidden, batch, targets)

    train_step = make_train_step(process_group, optimizer, loss_function, config.cuda_graphs)
    metric, done = EMAMetric(decay=0.98), False
    while not done:
        batch = dataset.sample_captions(config.text_batch_size // process_group.size)
        progress, done = process_group.broadcast_values(budget.progress, budget.is_exhausted)
        learning_rate = config.text_learning_rate * learning_rate_schedule(step, progress)
        loss, unexplained = train_step(learning_rate, batch.table)
        step += 1
        metric.update(unexplained)
        if process_group.is_main and budget.is_report_due(bool(done)):
            logger.info(
                "text %.0f%% step %d (%.0f samples/s) loss %.3f, unexplained variance %.1f%%",
                100 * progress,
                step,
                (step - first_step) * config.text_batch_size / budget.run_seconds,
                float(loss.detach()),
                100 * metric.value,
            )
        if process_group.is_main and budget.is_save_due(bool(done)):
            save_checkpoint(work / "text.pt", **parts, step=step, elapsed=budget.elapsed)
    if process_group.is_main:
        model.eval().save_pretrained(work / "text_encoder")
