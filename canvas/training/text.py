"""Tokenizer and text encoder: a caption's padding learns to hold the drawings that it names.

A CLIPTextModel sees a caption and then padding up to 77 tokens, and each token sees all before
it. The first 27 positions are for words. The others are taught, by plain regression and so
without any noise, to hold the named drawings as patches: 25 positions (5×5) for the first thing
and 25 for the second. The denoiser's cross-attention then has the drawing to look at, and learns
the one skill of placing it rather than every drawing by heart.
"""

import json
import logging
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from canvas.training.backgrounds import BACKGROUNDS
from canvas.training.checkpoints import Clock, load_checkpoint, save_checkpoint
from canvas.training.packages import STYLES
from canvas.training.parallel import Team
from canvas.training.presets import Preset
from canvas.training.scenes import Scene, SceneMaker
from canvas.training.sprites import Sprites
from canvas.training.words import near_words

logger = logging.getLogger(__name__)
TOKENS, GRID, PATCH = 77, 5, 10
SLOT = GRID * GRID
SLOTS = 2
FIRST_GRID_TOKEN = TOKENS - SLOTS * SLOT
SUMMARY_TOKEN = FIRST_GRID_TOKEN - 1
LAYOUTS = ("", "tiny", "huge", "left", "right", "2", "3", "4", "pair")


def build_tokenizer(corpus: list[str], vocabulary_size: int) -> CLIPTokenizer:
    """A byte-pair tokenizer of CLIP's kind with a vocabulary of its own."""
    from tokenizers import pre_tokenizers, trainers

    draft = CLIPTokenizer().backend_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    letters = [chr(code) for code in range(33, 127)] * 2
    draft.train_from_iterator([*corpus, *letters], trainer)
    model = json_model(draft.to_str())
    return CLIPTokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        model_max_length=TOKENS,
    )


def json_model(serialized: str) -> dict:  # type: ignore[type-arg]
    """The `model` part of a serialized tokenizer."""
    return json.loads(serialized)["model"]


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Token ids [n, 77], as StableDiffusionPipeline asks for them."""
    return tokenizer(
        captions, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
    ).input_ids


def build_text_encoder(preset: Preset, vocabulary_size: int) -> CLIPTextModel:
    """A small CLIPTextModel; its output is [n, 77, text_hidden]."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary_size,
            hidden_size=preset.text_hidden,
            intermediate_size=preset.text_hidden * 4,
            num_hidden_layers=preset.text_layers,
            num_attention_heads=preset.text_hidden // 64,
            max_position_embeddings=TOKENS,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )


class Reader(nn.Module):
    """Reads from the text encoder's output what it is taught to hold; used in training only."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.patches = nn.Linear(hidden, PATCH * PATCH * 4)
        self.place = nn.Linear(hidden, len(BACKGROUNDS) + 1)
        self.layout = nn.Linear(hidden, len(LAYOUTS))
        self.style = nn.Linear(hidden, len(STYLES))


def sprite_patches(sprites: Sprites) -> torch.Tensor:
    """Every drawing as [drawings, 25, 400] patches of premultiplied RGBA in 0 … 1."""
    side = GRID * PATCH
    rows = []
    for picture in sprites.pictures:
        scale = side / max(picture.size)
        small = picture.convert("RGBa").resize(
            (max(1, round(picture.width * scale)), max(1, round(picture.height * scale))),
            Image.Resampling.BOX,
        )
        canvas = np.zeros((side, side, 4), np.float32)
        y, x = (side - small.height) // 2, (side - small.width) // 2
        canvas[y : y + small.height, x : x + small.width] = np.asarray(small) / 255
        rows.append(canvas.reshape(GRID, PATCH, GRID, PATCH, 4).transpose(0, 2, 1, 3, 4))
    return torch.from_numpy(np.stack(rows)).reshape(len(rows), SLOT, -1)


def layout_of(scene: Scene) -> int:
    """Index in LAYOUTS."""
    pair = "pair" if len(scene.things) > 1 else ""
    number = str(scene.count) if scene.count > 1 else ""
    return LAYOUTS.index(scene.size or scene.position or number or pair)


def text_loss(
    reader: Reader,
    hidden: torch.Tensor,
    scenes: list[Scene],
    sprites: Sprites,
    patches: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The whole loss, and the mean squared error of the first slot's patches."""
    device = hidden.device
    rows = [[sprites.index[thing, scene.style] for thing in scene.things] for scene in scenes]
    first = patches[torch.tensor([row[0] for row in rows])].to(device)
    second = patches[torch.tensor([row[-1] for row in rows])].to(device)
    alone = torch.tensor([len(row) == 1 for row in rows], device=device)
    second = second.masked_fill(alone[:, None, None], 0)
    read = reader.patches(hidden[:, FIRST_GRID_TOKEN:]).float()
    error_first = (read[:, :SLOT] - first).square().mean()
    error_second = (read[:, SLOT:] - second).square().mean()
    summary = hidden[:, SUMMARY_TOKEN]
    loss = 20 * (error_first + error_second)
    for head, labels in (
        (
            reader.place,
            [scene.place if scene.named_place else len(BACKGROUNDS) for scene in scenes],
        ),
        (reader.layout, [layout_of(scene) for scene in scenes]),
        (reader.style, [scene.style for scene in scenes]),
    ):
        target = torch.tensor(labels, device=device)
        loss = loss + 0.1 * nn.functional.cross_entropy(head(summary).float(), target)
    return loss, error_first.detach()


def prepare_tokenizer(sprites: Sprites, preset: Preset, work: Path) -> CLIPTokenizer:
    """The tokenizer of the work folder, made from captions and near words when missing."""
    if not (work / "tokenizer").exists():
        near = near_words(sprites.things, work)
        maker = SceneMaker(sprites, preset.image_size, seed=11, near=near)
        corpus = [maker.draw().caption for _ in range(20_000)]
        corpus += [word for words in near for word in words] * 3
        corpus += [word for words in maker.words for word in words] * 20
        build_tokenizer(corpus, preset.vocabulary_size).save_pretrained(work / "tokenizer")
    return CLIPTokenizer.from_pretrained(work / "tokenizer")


def train_text(team: Team, sprites: Sprites, preset: Preset, work: Path, clock: Clock) -> None:
    """Train until the clock ends, resuming; writes `text_encoder/`."""
    device = clock.device
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    model = build_text_encoder(preset, len(tokenizer)).to(device).train()
    reader = Reader(preset.text_hidden).to(device)
    both = nn.ModuleList((model, reader))
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
    maker = SceneMaker(
        sprites,
        preset.image_size,
        seed=2 + step * 10 + team.rank,
        near=near_words(sprites.things, work),
    )
    patches = sprite_patches(sprites)
    clock.begin(spent)
    reported, mean = time.monotonic(), 0.0
    over = False
    while not over:
        scenes = [maker.draw(pairs=0.35) for _ in range(preset.text_batch // team.size)]
        ids = tokenize(tokenizer, [scene.caption for scene in scenes]).to(device)
        share, over = team.agree(clock.share, clock.is_over)
        for group in optimizer.param_groups:
            group["lr"] = preset.text_learning_rate * text_rate(step, share)
        with torch.autocast(device.type, torch.bfloat16):
            loss, error = text_loss(reader, model(ids).last_hidden_state, scenes, sprites, patches)
        optimizer.zero_grad()
        loss.backward()
        team.average_gradients(both.parameters())
        nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        step += 1
        mean += (float(error) - mean) * max(0.02, 1 / step)
        if team.leads and (over or time.monotonic() - reported > clock.report_every):
            reported = time.monotonic()
            logger.info(
                "text %.0f%% step %d loss %.3f patch error %.5f of %.4f",
                100 * share,
                step,
                float(loss.detach()),
                mean,
                float(patches.var()),
            )
            save_checkpoint(work / "text.pt", **parts, step=step, spent=clock.spent)
    if team.leads:
        model.eval().save_pretrained(work / "text_encoder")


def text_rate(step: int, share: float) -> float:
    """Warm up over 100 steps, then fall to nearly zero."""
    return min(1.0, (step + 1) / 100) * max(0.002, min(1.0, (1 - share) / 0.8))
