"""The text encoder: a caption's padding learns to hold the drawings that it names.

A CLIPTextModel sees a caption and then padding up to its full length, and each token sees all
before it. The first 29 positions are for words. The others are taught, by plain regression and
so without any noise, to hold what stands before the background (`layers.py`). The denoiser's
cross-attention then has the drawing to look at, and learns the one skill of painting it into a
place rather than every drawing by heart.
"""

import logging
from pathlib import Path

import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from canvas.training.backgrounds import BACKGROUNDS
from canvas.training.checkpoints import Clock, Mean, autocast, load_checkpoint, save_checkpoint
from canvas.training.grid import WORD_TOKENS
from canvas.training.layers import Layers
from canvas.training.packages import STYLES
from canvas.training.parallel import Team
from canvas.training.presets import Preset
from canvas.training.rows import SceneRows
from canvas.training.scenes import LAYOUTS
from canvas.training.source import open_source
from canvas.training.sprites import Sprites
from canvas.training.steps import open_steps

logger = logging.getLogger(__name__)
SUMMARY_TOKEN = WORD_TOKENS - 1


def build_text_encoder(preset: Preset, vocabulary_size: int) -> CLIPTextModel:
    """A small CLIPTextModel; its output is [n, tokens, text_hidden]."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary_size,
            hidden_size=preset.text_hidden,
            intermediate_size=preset.text_hidden * preset.text_widening,
            num_hidden_layers=preset.text_layers,
            num_attention_heads=preset.text_hidden // 64,
            max_position_embeddings=preset.grid.tokens,
            hidden_act="gelu",  # a single operation, where CLIP's own is three
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )


class Reader(nn.Module):
    """Reads from the text encoder's output what it is taught to hold; used in training only."""

    def __init__(self, hidden: int, values: int) -> None:
        super().__init__()
        self.layer = nn.Linear(hidden, values)
        self.place = nn.Linear(hidden, len(BACKGROUNDS) + 1)
        self.layout = nn.Linear(hidden, len(LAYOUTS))
        self.style = nn.Linear(hidden, len(STYLES))


def text_loss(
    reader: Reader, hidden: torch.Tensor, rows: SceneRows, layers: Layers
) -> tuple[torch.Tensor, torch.Tensor]:
    """The whole loss, and the unexplained share of the layers' variance."""
    read = reader.layer(hidden[:, WORD_TOKENS:]).float()
    error = (read - layers.of(rows)).square().mean() / layers.variance
    summary = hidden[:, SUMMARY_TOKEN]
    loss = 10 * error
    for head, target in (
        (reader.place, rows.told_place),
        (reader.layout, rows.layout),
        (reader.style, rows.style),
    ):
        loss = loss + 0.1 * nn.functional.cross_entropy(head(summary).float(), target)
    return loss, error.detach()


def train_text(team: Team, sprites: Sprites, preset: Preset, work: Path, clock: Clock) -> None:
    """Train until the clock ends, resuming; writes `text_encoder/`."""
    device = clock.device
    layers = Layers.load(work, device)
    model = build_text_encoder(preset, len(CLIPTokenizer.from_pretrained(work / "tokenizer")))
    reader = Reader(preset.text_hidden, layers.values)
    both = nn.ModuleList((model.train(), reader)).to(device)
    optimizer = torch.optim.AdamW(
        both.parameters(),
        lr=preset.text_learning_rate,
        betas=(0.9, 0.98),
        weight_decay=0.01,
        fused=True,
    )
    parts = {"model": model, "reader": reader, "optimizer": optimizer}
    state = load_checkpoint(work / "text.pt", **parts)
    team.share_weights(both)
    step, spent = state.get("step", 0), state.get("spent", 0.0)
    source = open_source("words", sprites, preset, work, device, seed=2 + step * 10 + team.rank)
    clock.begin(spent)
    mean, over, first = Mean(0.02), False, step

    def losses(table: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rows = SceneRows(table)
        with autocast(device):
            hidden = model(rows.ids).last_hidden_state
            return text_loss(reader, hidden, rows, layers)

    steps = open_steps(team, optimizer, losses, preset.graphs)
    while not over:
        rows = source.rows(preset.text_batch // team.size)
        share, over = team.agree(clock.share, clock.is_over)
        rate = preset.text_learning_rate * text_rate(step, share)
        loss, error = steps(rate, rows.table)
        step += 1
        mean.add(error)
        if team.leads and clock.is_report_due(bool(over)):
            logger.info(
                "text %.0f%% step %d (%.0f /s) loss %.3f, %.1f%% of the layers not yet held",
                100 * share,
                step,
                (step - first) * preset.text_batch / clock.run_seconds,
                float(loss.detach()),
                100 * mean.value,
            )
        if team.leads and clock.is_save_due(bool(over)):
            save_checkpoint(work / "text.pt", **parts, step=step, spent=clock.spent)
    if team.leads:
        model.eval().save_pretrained(work / "text_encoder")


def text_rate(step: int, share: float) -> float:
    """Warm up over 100 steps, then fall to nearly zero."""
    return min(1.0, (step + 1) / 100) * max(0.002, min(1.0, (1 - share) / 0.8))
