from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from canvas.engine.prompt_embeds import encode_weighted_prompt, supports_weighting
from tests.tiny_xl import make_tiny_xl


@pytest.fixture(scope="module", params=["tiny", "xl"])
def pipeline(request: pytest.FixtureRequest, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    if request.param == "xl":
        folder = make_tiny_xl(tmp_path_factory.mktemp("xl"))
        return StableDiffusionXLPipeline.from_pretrained(folder)
    folder = tiny_folder
    return StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, dtype=torch.float32)


def distance(first: torch.Tensor, second: torch.Tensor) -> float:
    return (first.float() - second.float()).norm().item()


def unweighted(pipeline: Any, prompt: str) -> torch.Tensor:
    """The pipeline's own embeddings of a prompt."""
    with torch.no_grad():
        return pipeline.encode_prompt(prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)[
            0
        ]


def test_embeddings_without_weights_equal_those_of_the_pipeline(pipeline: Any) -> None:
    assert supports_weighting(pipeline)
    embeds = encode_weighted_prompt(pipeline, "a fox in the snow", "")
    assert torch.allclose(embeds["prompt_embeds"], unweighted(pipeline, "a fox in the snow"), atol=1e-4)


def test_embedding_scales_with_the_weight(pipeline: Any) -> None:
    at = slice(2, 3)  # the token of the word, after the start token and "a"
    empty = unweighted(pipeline, "")[:, at]
    results = [
        distance(encode_weighted_prompt(pipeline, f"a (fox:{weight})", "")["prompt_embeds"][:, at], empty)
        for weight in (1, 1.5, 2)
    ]
    assert results[1] == pytest.approx(1.5 * results[0], rel=0.02)
    assert results[2] == pytest.approx(2 * results[0], rel=0.02)


def test_lower_weight_is_closer_to_the_prompt_without_the_word(pipeline: Any) -> None:
    weights = (0, 0.3, 0.6, 1)
    results = [
        encode_weighted_prompt(pipeline, f"a (fox:{weight}) in the snow", "")["prompt_embeds"] for weight in weights
    ]
    distances = [distance(one, results[0]) for one in results]
    assert distances == sorted(distances)
    assert distances[1] < 0.8 * distances[3]
    assert distances[3] > 0


def test_square_brackets_divide_by_the_factor_of_round_ones(pipeline: Any) -> None:
    results = [
        encode_weighted_prompt(pipeline, f"a fox in the {word}", "")["prompt_embeds"]
        for word in ("[snow]", "(snow:0.90909091)")
    ]
    assert torch.allclose(*results, atol=1e-4)


def test_long_prompts_are_encoded_completely(pipeline: Any) -> None:
    long = ", ".join(["a fox in the snow"] * 20)
    embeds = encode_weighted_prompt(pipeline, f"{long}, (red:1.2) house", "image")
    assert embeds["prompt_embeds"].shape[1] > 77
    assert embeds["prompt_embeds"].shape == embeds["negative_prompt_embeds"].shape
    other = encode_weighted_prompt(pipeline, f"{long}, (red:1.2) boat", "image")
    assert distance(embeds["prompt_embeds"], other["prompt_embeds"]) > 0.01


def test_break_starts_a_new_chunk(pipeline: Any) -> None:
    embeds = encode_weighted_prompt(pipeline, "a fox BREAK the snow", "")["prompt_embeds"]
    expected = torch.cat([unweighted(pipeline, "a fox"), unweighted(pipeline, "the snow")], dim=1)
    assert embeds.shape == expected.shape
    assert torch.allclose(embeds, expected, atol=1e-4)


def test_pipeline_accepts_the_embeddings(pipeline: Any) -> None:
    embeds = encode_weighted_prompt(pipeline, "a (fox:1.3) BREAK in the snow", "[house]")
    image = pipeline(
        **embeds, width=64, height=64, num_inference_steps=1, generator=torch.Generator().manual_seed(0)
    ).images[0]
    assert image.size == (64, 64)
