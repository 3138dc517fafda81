"""Prompts are encoded once, and again when anything that matters has changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from canvas.engine.prompt_embeds import EmbeddingCache, clear_cache, encode_prompt_cached
from tests.tiny_xl import make_tiny_xl

FOX = ("a fox", "snow")


@pytest.fixture(scope="module", params=["tiny", "xl"])
def pipeline(request: pytest.FixtureRequest, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from diffusers import DiffusionPipeline

    xl = request.param == "xl"
    folder = make_tiny_xl(tmp_path_factory.mktemp("xl") / "xl") if xl else tiny_folder
    return DiffusionPipeline.from_pretrained(folder)


@pytest.fixture
def passes(pipeline: Any) -> Iterator[list[int]]:
    """One entry per forward pass of the (first) text encoder, with an empty cache."""
    calls: list[int] = []
    clear_cache(pipeline)
    hook = pipeline.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    yield calls
    hook.remove()


def encode(pipeline: Any, prompts: tuple[str, str] = FOX, **options: Any) -> dict[str, Any]:
    return encode_prompt_cached(pipeline, prompts, **{"guided": True, "weighting": False, **options})


def test_embeddings_equal_those_of_diffusers(pipeline: Any, passes: list[int]) -> None:
    embeds = encode(pipeline)
    expected = pipeline.encode_prompt(
        prompt=FOX[0], device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True, negative_prompt=FOX[1]
    )
    names = ["prompt_embeds", "negative_prompt_embeds"]
    names += ["pooled_prompt_embeds", "negative_pooled_prompt_embeds"] if expected[2:] else []
    for name, tensor in zip(names, expected, strict=True):
        assert torch.equal(embeds.pop(name), tensor)
    assert not embeds


def test_each_prompt_is_encoded_once(pipeline: Any, passes: list[int]) -> None:
    first = encode(pipeline)
    assert len(passes) == 2
    assert encode(pipeline)["prompt_embeds"] is first["prompt_embeds"]
    assert len(passes) == 2
    encode(pipeline, ("a house", FOX[1]))
    assert len(passes) == 3


def test_negative_prompt_is_not_encoded_without_guidance(pipeline: Any, passes: list[int]) -> None:
    assert not [name for name in encode(pipeline, guided=False) if name.startswith("negative")]
    assert len(passes) == 1


def test_weighted_prompt_has_its_own_entry(pipeline: Any, passes: list[int]) -> None:
    plain = encode(pipeline, ("a (fox:1.4)", ""))["prompt_embeds"]
    weighted = encode(pipeline, ("a (fox:1.4)", ""), weighting=True)["prompt_embeds"]
    assert not torch.equal(plain, weighted)
    count = len(passes)
    assert encode(pipeline, ("a (fox:1.4)", ""), weighting=True)["prompt_embeds"] is weighted
    assert len(passes) == count


def test_weights_of_1_share_the_entry_of_the_plain_prompt(pipeline: Any, passes: list[int]) -> None:
    plain = encode(pipeline)["prompt_embeds"]
    assert encode(pipeline, ("a (fox:1)", "snow"), weighting=True)["prompt_embeds"] is plain
    assert len(passes) == 2


def test_lora_on_the_encoder_has_its_own_entry(pipeline: Any, passes: list[int]) -> None:
    from peft import LoraConfig

    plain = encode(pipeline)["prompt_embeds"]
    config = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    pipeline.text_encoder.add_adapter(config, "style")
    try:
        with_lora = encode(pipeline)["prompt_embeds"]
        pipeline.set_adapters(["style"], [0.1])
        weaker = encode(pipeline)["prompt_embeds"]
    finally:
        pipeline.unload_lora_weights()
    assert not torch.equal(plain, with_lora)
    assert not torch.equal(with_lora, weaker)
    assert encode(pipeline)["prompt_embeds"] is plain


def test_least_recently_used_entry_is_evicted() -> None:
    cache = EmbeddingCache(max_entries=2)
    a, b, c = ({"prompt_embeds": torch.tensor(number)} for number in range(3))
    cache.get(("a",), lambda: a)
    cache.get(("b",), lambda: b)
    cache.get(("a",), lambda: c)
    cache.get(("c",), lambda: c)
    assert cache.get(("a",), lambda: b) is a
    assert cache.get(("b",), lambda: c) is c


def test_other_pipelines_get_the_prompts() -> None:
    assert encode_prompt_cached(object(), FOX, guided=True, weighting=False) == {
        "prompt": "a fox",
        "negative_prompt": "snow",
    }
