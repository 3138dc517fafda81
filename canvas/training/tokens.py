"""The tokenizer: byte pairs of our own captions and words."""

import json
from pathlib import Path

import numpy as np
import torch
from transformers import CLIPTokenizer

from canvas.training.presets import Preset
from canvas.training.scenes import SceneMaker
from canvas.training.sprites import Sprites
from canvas.training.words import near_words


def build_tokenizer(corpus: list[str], vocabulary_size: int, tokens: int) -> CLIPTokenizer:
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
        model_max_length=tokens,
    )


def json_model(serialized: str) -> dict:  # type: ignore[type-arg]
    """The `model` part of a serialized tokenizer."""
    return json.loads(serialized)["model"]


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Token ids [n, tokens], as StableDiffusionPipeline asks for them."""
    return tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids


class QuickTokens:
    """The same ids, each word looked up once: captions of few words want no more."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        self.tokenizer = tokenizer
        self._begin, self._end = tokenizer.bos_token_id, tokenizer.eos_token_id
        self._known: dict[str, list[int]] = {}

    def _word(self, word: str) -> list[int]:
        found = self._known.get(word)
        if found is None:
            found = self.tokenizer(word, add_special_tokens=False).input_ids
            self._known[word] = found
        return found

    def __call__(self, captions: list[str]) -> np.ndarray:
        """As `tokenize`; int16 [n, tokens]."""
        tokens = self.tokenizer.model_max_length
        ids = np.full((len(captions), tokens), self._end, np.int16)
        ids[:, 0] = self._begin
        for row, caption in enumerate(captions):
            words = [token for word in caption.split() for token in self._word(word)]
            words = words[: tokens - 2]
            ids[row, 1 : 1 + len(words)] = words
        return ids


def prepare_tokenizer(
    sprites: Sprites, preset: Preset, work: Path, packages: Path | None = None
) -> None:
    """The tokenizer of the work folder, made from captions and near words when missing."""
    if (work / "tokenizer").exists():
        return
    near = near_words(sprites.things, work, packages)
    maker = SceneMaker(sprites, preset.image_size, seed=11, near=near)
    corpus = [maker.draw().caption for _ in range(20_000)]
    corpus += [word for words in near for word in words] * 3
    corpus += [word for words in maker.words for word in words] * 20
    tokenizer = build_tokenizer(corpus, preset.vocabulary_size, preset.grid.tokens)
    tokenizer.save_pretrained(work / "tokenizer")
