from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from canvas.catalog import ASSETS
from canvas.engine.prompt_weighting import (
    encode_weighted_prompt,
    parse,
    split_chunks,
    strip_weights,
    supports_weighting,
)
from canvas.errors import InvalidInput
from tests.tiny_xl import make_tiny_xl

# The examples of the notation as its authors publish them.
PUBLISHED = {
    "normal text": [("normal text", 1.0)],
    "an (important) word": [("an ", 1.0), ("important", 1.1), (" word", 1.0)],
    "(unbalanced": [("unbalanced", 1.1)],
    r"\(literal\]": [("(literal]", 1.0)],
    "(unnecessary)(parens)": [("unnecessaryparens", 1.1)],
    "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).": [
        ("a ", 1.0),
        ("house", 1.573),
        (" ", 1.1),
        ("on", 1.0),
        (" a ", 1.1),
        ("hill", 0.55),
        (", sun, ", 1.1),
        ("sky", 1.4641),
        (".", 1.1),
    ],
}


@pytest.mark.parametrize("prompt", PUBLISHED)
def test_parses_as_published(prompt: str) -> None:
    found = parse(prompt)
    assert [text for text, _ in found] == [text for text, _ in PUBLISHED[prompt]]
    assert [weight for _, weight in found] == pytest.approx([w for _, w in PUBLISHED[prompt]])


@given(st.text("ab ()[]:\\.13", max_size=40))
def test_no_prompt_breaks_it(prompt: str) -> None:
    try:
        found = parse(prompt)
    except InvalidInput as error:
        assert "weights from 0 to 10" in str(error)
        return
    assert all(weight >= 0 for _, weight in found)
    assert set("".join(text for text, _ in found)) <= set(prompt)


@given(st.text(st.characters(exclude_characters="()[]\\"), max_size=60))
def test_plain_words_stay(prompt: str) -> None:
    assert parse(prompt) == [(prompt, 1.0)]


def test_break_parts_the_prompt() -> None:
    assert split_chunks("a fox BREAK in (snow)") == [
        [("a fox", 1.0)],
        [("in ", 1.0), ("snow", 1.1)],
    ]
    assert split_chunks(" BREAK ") == [[("", 1.0)]]
    assert strip_weights("a (fox:1.3) BREAK in [snow]") == "a fox in snow"


def test_absurd_weight_is_named() -> None:
    with pytest.raises(InvalidInput, match=r"prompt: ':99\)'"):
        parse("a (fox:99)")


@pytest.fixture(scope="module", params=["starter", "tiny", "xl"])
def pipeline(
    request: pytest.FixtureRequest, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    if request.param == "xl":
        folder = make_tiny_xl(tmp_path_factory.mktemp("xl"))
        return StableDiffusionXLPipeline.from_pretrained(folder)
    folder = ASSETS / "starter" if request.param == "starter" else tiny_folder
    return StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, dtype=torch.float32)


def distance(first: torch.Tensor, second: torch.Tensor) -> float:
    return (first.float() - second.float()).norm().item()


def own(pipeline: Any, prompt: str) -> torch.Tensor:
    """What the pipeline itself makes of a prompt without weights."""
    with torch.no_grad():
        return pipeline.encode_prompt(
            prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )[0]


def test_without_weights_it_is_what_the_pipeline_makes(pipeline: Any) -> None:
    assert supports_weighting(pipeline)
    found = encode_weighted_prompt(pipeline, "a fox in the snow", "")
    assert torch.allclose(found["prompt_embeds"], own(pipeline, "a fox in the snow"), atol=1e-4)


def test_more_weight_moves_the_word_away_from_nothing(pipeline: Any) -> None:
    at = slice(2, 3)  # the token of the word, after the mark of the start and "a"
    nothing = own(pipeline, "")[:, at]
    found = [
        distance(
            encode_weighted_prompt(pipeline, f"a (fox:{weight})", "")["prompt_embeds"][:, at],
            nothing,
        )
        for weight in (1, 1.5, 2)
    ]
    assert found[1] == pytest.approx(1.5 * found[0], rel=0.02)
    assert found[2] == pytest.approx(2 * found[0], rel=0.02)


def test_less_weight_moves_towards_the_prompt_that_ignores_the_word(pipeline: Any) -> None:
    weights = (0, 0.3, 0.6, 1)
    found = [
        encode_weighted_prompt(pipeline, f"a (fox:{weight}) in the snow", "")["prompt_embeds"]
        for weight in weights
    ]
    distances = [distance(one, found[0]) for one in found]
    assert distances == sorted(distances)
    assert distances[1] < 0.8 * distances[3]
    assert distances[3] > 0


def test_square_brackets_weaken_by_what_round_ones_strengthen(pipeline: Any) -> None:
    found = [
        encode_weighted_prompt(pipeline, f"a fox in the {word}", "")["prompt_embeds"]
        for word in ("[snow]", "(snow:0.90909091)")
    ]
    assert torch.allclose(*found, atol=1e-4)


def test_long_prompts_are_read_to_their_end(pipeline: Any) -> None:
    long = ", ".join(["a fox in the snow"] * 20)
    found = encode_weighted_prompt(pipeline, f"{long}, (red:1.2) house", "picture")
    assert found["prompt_embeds"].shape[1] > 77
    assert found["prompt_embeds"].shape == found["negative_prompt_embeds"].shape
    other = encode_weighted_prompt(pipeline, f"{long}, (red:1.2) picture", "picture")
    assert distance(found["prompt_embeds"], other["prompt_embeds"]) > 0.01


def test_break_begins_a_new_chunk(pipeline: Any) -> None:
    found = encode_weighted_prompt(pipeline, "a fox BREAK the snow", "")["prompt_embeds"]
    expected = torch.cat([own(pipeline, "a fox"), own(pipeline, "the snow")], dim=1)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=1e-4)


def test_pipeline_draws_from_the_embeddings(pipeline: Any) -> None:
    words = encode_weighted_prompt(pipeline, "a (fox:1.3) BREAK in the snow", "[house]")
    picture = pipeline(
        **words,
        width=64,
        height=64,
        num_inference_steps=1,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    assert picture.size == (64, 64)
