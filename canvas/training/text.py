"""Tokenizer and text encoder: a caption's padding learns to hold the drawings that it names.

A CLIPTextModel sees a caption and then padding up to 77 tokens, and each token sees all before
it. The first 29 positions are for words. The other 48 are taught, by plain regression and so
without any noise, to hold what stands before the background (`layers.py`). The denoiser's
cross-attention then has the drawing to look at, and learns the one skill of painting it into a
place rather than every drawing by heart.
"""

import json
import logging
from pathlib import Path

import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from canvas.training.backgrounds import BACKGROUNDS
from canvas.training.checkpoints import Clock, load_checkpoint, save_checkpoint
from canvas.training.layers import FIRST_LAYER_TOKEN, TOKENS, Layers
from canvas.training.packages import STYLES
from canvas.training.parallel import Team
from canvas.training.presets import Preset
from canvas.training.scenes import Scene, SceneMaker
from canvas.training.sprites import Sprites
from canvas.training.words import near_words

logger = logging.getLogger(__name__)
SUMMARY_TOKEN = FIRST_LAYER_TOKEN - 1
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
            intermediate_size=preset.text_hidden * preset.text_widening,
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

    def __init__(self, hidden: int, values: int) -> None:
        super().__init__()
        self.layer = nn.Linear(hidden, values)
        self.place = nn.Linear(hidden, len(BACKGROUNDS) + 1)
        self.layout = nn.Linear(hidden, len(LAYOUTS))
        self.style = nn.Linear(hidden, len(STYLES))


def layout_of(scene: Scene) -> int:
    """Index in LAYOUTS."""
    pair = "pair" if len(scene.things) > 1 else ""
    number = str(scene.count) if scene.count > 1 else ""
    return LAYOUTS.index(scene.size or scene.position or number or pair)


def text_loss(
    reader: Reader, hidden: torch.Tensor, scenes: list[Scene], layers: Layers
) -> tuple[torch.Tensor, torch.Tensor]:
    """The whole loss, and the unexplained share of the layers' variance."""
    device = hidden.device
    read = reader.layer(hidden[:, FIRST_LAYER_TOKEN:]).float()
    error = (read - layers.of(scenes).to(device)).square().mean() / layers.variance
    summary = hidden[:, SUMMARY_TOKEN]
    loss = 10 * error
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
    return loss, error.detach()


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
    layers = Layers.load(work, sprites)
    reader = Reader(preset.text_hidden, layers.values).to(device)
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
    clock.begin(spent)
    mean, over = 0.0, False
    while not over:
        scenes = [maker.draw(pairs=0.35) for _ in range(preset.text_batch // team.size)]
        ids = tokenize(tokenizer, [scene.caption for scene in scenes]).to(device)
        share, over = team.agree(clock.share, clock.is_over)
        rate = preset.text_learning_rate * text_rate(step, share)
        with torch.autocast(device.type, torch.bfloat16):
            loss, error = text_loss(reader, model(ids).last_hidden_state, scenes, layers)
        team.descend(optimizer, loss, rate)
        step += 1
        mean += (float(error) - mean) * max(0.02, 1 / step)
        if team.leads and clock.is_report_due(bool(over)):
            logger.info(
                "text %.0f%% step %d loss %.3f, %.1f%% of the layers not yet held",
                100 * share,
                step,
                float(loss.detach()),
                100 * mean,
            )
            save_checkpoint(work / "text.pt", **parts, step=step, spent=clock.spent)
    if team.leads:
        model.eval().save_pretrained(work / "text_encoder")


def text_rate(step: int, share: float) -> float:
    """Warm up over 100 steps, then fall to nearly zero."""
    return min(1.0, (step + 1) / 100) * max(0.002, min(1.0, (1 - share) / 0.8))
