"""The text encoder and the denoiser take turns in memory, and each prompt is encoded once."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from canvas.engine import encode_first
from canvas.engine.encode_first import EncodeFirst


class Pipeline:
    """A pipeline that notes what it encodes and what is in memory meanwhile."""

    device = "cpu"

    def __init__(self) -> None:
        self.vae = torch.nn.Identity()
        self.transformer: Any = None
        self.text_encoder: Any = None
        self.encoded: list[str] = []

    def encode_prompt(
        self,
        prompt: str,
        device: str,
        prompt_embeds: torch.Tensor | None = None,
        do_classifier_free_guidance: bool = True,
    ) -> tuple[torch.Tensor]:
        assert self.text_encoder == "encoder"
        assert self.transformer is None or self.transformer.peft_config
        assert not do_classifier_free_guidance
        self.encoded.append(prompt)
        return (torch.full((1, 2), float(len(prompt))),)


class ListPipeline:
    """One of those that take and return lists of embeddings."""

    device = "cpu"
    transformer: Any = None

    def encode_prompt(
        self, prompt: str, device: str, prompt_embeds: list[torch.Tensor] | None = None
    ) -> tuple[list[torch.Tensor]]:
        return ([torch.full((1,), float(len(prompt)))],)


def make(cache: Path | None = None) -> EncodeFirst:
    return EncodeFirst(lambda: "encoder", lambda: SimpleNamespace(peft_config={}), cache=cache)


def test_prompts_are_encoded_once_and_before_the_denoiser_is_loaded() -> None:
    pipeline, parts = Pipeline(), make()
    found = parts.arguments(pipeline, ("a fox", "rain"), guided=False)
    assert {name: value.tolist() for name, value in found.items()} == {"prompt_embeds": [[5, 5]]}
    assert pipeline.encoded == ["a fox"]
    assert pipeline.text_encoder is None
    denoiser = pipeline.transformer
    assert denoiser is not None
    parts.arguments(pipeline, ("a fox", "rain"), guided=False)
    assert pipeline.transformer is denoiser
    found = parts.arguments(pipeline, ("a fox", "rain"), guided=True)
    assert {name: value.tolist() for name, value in found.items()} == {
        "prompt_embeds": [[5, 5]],
        "negative_prompt_embeds": [[4, 4]],
    }
    assert pipeline.encoded == ["a fox", "rain"]
    assert pipeline.transformer is not denoiser, "it was freed for the encoder"


def test_a_denoiser_with_loras_stays_in_memory() -> None:
    pipeline, parts = Pipeline(), make()
    parts.load_denoiser(pipeline)
    denoiser = pipeline.transformer
    denoiser.peft_config = {"snow": 1}
    parts.prepare(pipeline, ("a fox", ""), guided=False)
    assert pipeline.transformer is denoiser
    assert pipeline.encoded == ["a fox"]


def test_pipelines_that_share_the_parts_share_and_free_the_denoiser() -> None:
    first, second, parts = Pipeline(), Pipeline(), make()
    for pipeline in (first, second):
        parts.load_denoiser(pipeline)
    assert first.transformer is second.transformer is not None
    parts.free_denoiser()
    assert first.transformer is second.transformer is None


def test_lists_of_embeddings_stay_lists() -> None:
    [found] = make().arguments(ListPipeline(), ("a fox", ""), guided=False).values()
    assert [each.tolist() for each in found] == [[5]]


def test_embeddings_on_the_disk_are_used_at_the_next_start(tmp_path: Path) -> None:
    cache = tmp_path / "models" / "prompt_embeds"
    make(cache).prepare(Pipeline(), ("a fox", "rain"), guided=True)
    pipeline = Pipeline()
    found = make(cache).arguments(pipeline, ("a fox", "rain"), guided=True)
    assert [value.tolist() for value in found.values()] == [[[5, 5]], [[4, 4]]]
    assert pipeline.encoded == []
    for path in cache.iterdir():
        path.write_bytes(b"damaged")
    pipeline = Pipeline()
    make(cache).prepare(pipeline, ("a fox", ""), guided=False)
    assert pipeline.encoded == ["a fox"]


def test_the_embeddings_used_longest_ago_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode_first, "MAX_ON_DISK", 2)
    for age, prompt in ((2, "a fox"), (3, "rain"), (1, "snow")):
        before = set(tmp_path.iterdir())
        make(tmp_path).prepare(Pipeline(), (prompt, ""), guided=False)
        for path in set(tmp_path.iterdir()) - before:
            os.utime(path, (1e9 - age, 1e9 - age))
    encoded = []
    for prompt in ("a fox", "snow", "rain"):
        pipeline = Pipeline()
        make(tmp_path).prepare(pipeline, (prompt, ""), guided=False)
        encoded += pipeline.encoded
    assert encoded == ["rain"]


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    found = make(tmp_path / "file" / "cache").arguments(Pipeline(), ("a fox", ""), guided=False)
    assert found["prompt_embeds"].tolist() == [[5, 5]]


def test_the_embeddings_made_first_leave_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode_first, "MAX_IN_MEMORY", 2)
    pipeline, parts = Pipeline(), make()
    for prompt in ("a fox", "rain", "a fox", "snow", "rain", "a fox"):
        parts.prepare(pipeline, (prompt, ""), guided=False)
    assert pipeline.encoded == ["a fox", "rain", "snow", "a fox"]


def test_pipelines_find_what_is_attached_to_their_vae() -> None:
    pipeline, parts = Pipeline(), make()
    assert encode_first.attached(pipeline) is None
    encode_first.attach(pipeline, parts)
    assert encode_first.attached(SimpleNamespace(vae=pipeline.vae)) is parts
    assert encode_first.attached(SimpleNamespace(vae=None)) is None
    assert encode_first.attached(object()) is None
