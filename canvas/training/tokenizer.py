"""The tokenizer: CLIP's byte-pair encoding with a vocabulary of the captions."""

import json
from pathlib import Path

import numpy as np
import torch
from transformers import CLIPTokenizer

from canvas.training.assets import SpriteSet
from canvas.training.config import TrainingConfig
from canvas.training.scene_generator import SceneGenerator
from canvas.training.word_expansion import load_or_build_synonyms


def train_tokenizer(corpus: list[str], vocabulary_size: int, max_length: int) -> CLIPTokenizer:
    """A byte-pair tokenizer trained on the corpus."""
    from tokenizers import pre_tokenizers, trainers

    backend = CLIPTokenizer().backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    characters = [chr(code) for code in range(33, 127)] * 2
    backend.train_from_iterator([*corpus, *characters], trainer)
    model = json.loads(backend.to_str())["model"]
    return CLIPTokenizer(
        vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]], model_max_length=max_length
    )


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Token ids [n, tokens], padded and truncated as in StableDiffusionPipeline."""
    return tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids


class FastBatchTokenizer:
    """Gives the same ids as `tokenize`, faster: tokenizes each distinct word once."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        self.tokenizer = tokenizer
        self._bos, self._eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self._word_ids: dict[str, list[int]] = {}

    def _tokenize_word(self, word: str) -> list[int]:
        ids = self._word_ids.get(word)
        if ids is None:
            ids = self.tokenizer(word, add_special_tokens=False).input_ids
            self._word_ids[word] = ids
        return ids

    def __call__(self, captions: list[str]) -> np.ndarray:
        """int16 [n, tokens]."""
        max_length = self.tokenizer.model_max_length
        ids = np.full((len(captions), max_length), self._eos, np.int16)
        ids[:, 0] = self._bos
        for row, caption in enumerate(captions):
            tokens = [token for word in caption.split() for token in self._tokenize_word(word)]
            tokens = tokens[: max_length - 2]
            ids[row, 1 : 1 + len(tokens)] = tokens
        return ids


def prepare_tokenizer(sprites: SpriteSet, config: TrainingConfig, work: Path, packages: Path | None = None) -> None:
    """Train `tokenizer/` on captions and synonyms unless it exists."""
    if (work / "tokenizer").exists():
        return
    synonyms = load_or_build_synonyms(sprites.concepts, work, packages)
    scenes = SceneGenerator(sprites, config.image_size, seed=11, synonyms=synonyms)
    corpus = [scenes.sample().caption for _ in range(20_000)]
    corpus += [word for words in synonyms for word in words] * 3
    corpus += [word for words in scenes.words for word in words] * 20
    tokenizer = train_tokenizer(corpus, config.vocabulary_size, config.token_grid.num_tokens)
    tokenizer.save_pretrained(work / "tokenizer")
