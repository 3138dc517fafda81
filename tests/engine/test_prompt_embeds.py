"""Words are read once by the text encoder, and again where anything about them changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from canvas.engine.prompt_embeds import EmbeddingCache, encode_prompt_cached
from tests.tiny_xl import make_tiny_xl

FOX = ("a fox", "snow")


@pytest.fixture(scope="module", params=["tiny", "xl"])
def loaded(
    request: pytest.FixtureRequest, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    from diffusers import DiffusionPipeline

    xl = request.param == "xl"
    folder = make_tiny_xl(tmp_path_factory.mktemp("xl") / "xl") if xl else tiny_folder
    return DiffusionPipeline.from_pretrained(folder)


@pytest.fixture
def reads(loaded: Any) -> Iterator[list[int]]:
    """One entry for each pass through the (first) text encoder, from nothing remembered."""
    calls: list[int] = []
    vars(loaded.text_encoder).pop("_remembered_words", None)
    hook = loaded.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    yield calls
    hook.remove()


def read(pipeline: Any, prompts: tuple[str, str] = FOX, **options: Any) -> dict[str, Any]:
    return encode_prompt_cached(
        pipeline, prompts, **{"guided": True, "weighting": False, **options}
    )


def test_they_are_what_diffusers_reads(loaded: Any, reads: list[int]) -> None:
    found = read(loaded)
    expected = loaded.encode_prompt(
        prompt=FOX[0],
        device="cpu",
        num_images_per_prompt=1,
        do_classifier_free_guidance=True,
        negative_prompt=FOX[1],
    )
    names = ["prompt_embeds", "negative_prompt_embeds"]
    names += ["pooled_prompt_embeds", "negative_pooled_prompt_embeds"] if expected[2:] else []
    for name, tensor in zip(names, expected, strict=True):
        assert torch.equal(found.pop(name), tensor)
    assert not found


def test_each_text_is_read_once(loaded: Any, reads: list[int]) -> None:
    first = read(loaded)
    assert len(reads) == 2
    assert read(loaded)["prompt_embeds"] is first["prompt_embeds"]
    assert len(reads) == 2
    read(loaded, ("a house", FOX[1]))
    assert len(reads) == 3


def test_without_guidance_the_negative_prompt_is_not_read(loaded: Any, reads: list[int]) -> None:
    assert not [name for name in read(loaded, guided=False) if name.startswith("negative")]
    assert len(reads) == 1


def test_weights_are_told_apart(loaded: Any, reads: list[int]) -> None:
    plain = read(loaded, ("a (fox:1.4)", ""))["prompt_embeds"]
    weighted = read(loaded, ("a (fox:1.4)", ""), weighting=True)["prompt_embeds"]
    assert not torch.equal(plain, weighted)
    count = len(reads)
    assert read(loaded, ("a (fox:1.4)", ""), weighting=True)["prompt_embeds"] is weighted
    assert len(reads) == count


def test_a_lora_on_the_encoder_is_told_apart_by_name_and_weight(
    loaded: Any, reads: list[int]
) -> None:
    from peft import LoraConfig

    plain = read(loaded)["prompt_embeds"]
    config = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    loaded.text_encoder.add_adapter(config, "worn")
    try:
        worn = read(loaded)["prompt_embeds"]
        loaded.set_adapters(["worn"], [0.1])
        weaker = read(loaded)["prompt_embeds"]
    finally:
        loaded.unload_lora_weights()
    assert not torch.equal(plain, worn)
    assert not torch.equal(worn, weaker)
    assert read(loaded)["prompt_embeds"] is plain


def test_only_the_last_are_kept() -> None:
    words = EmbeddingCache(room=2)
    a, b, c = ({"prompt_embeds": torch.tensor(number)} for number in range(3))
    words.get(("a",), lambda: a)
    words.get(("b",), lambda: b)
    words.get(("a",), lambda: c)
    words.get(("c",), lambda: c)
    assert words.get(("a",), lambda: b) is a
    assert words.get(("b",), lambda: c) is c, "b was used least recently"


def test_other_pipelines_get_the_texts() -> None:
    assert encode_prompt_cached(object(), FOX, guided=True, weighting=False) == {
        "prompt": "a fox",
        "negative_prompt": "snow",
    }
