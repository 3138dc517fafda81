"""What is said to the model, and what it does not hear."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canvas.catalog import ASSETS, MODELS
from canvas.engine.prompts import (
    enhance_negative_prompt,
    enhance_prompt,
    estimate_tokens,
    truncate_to_limit,
)
from canvas.errors import ModelCorrupted
from canvas.models.download import LocalModel
from canvas.request import GenerationRequest
from canvas.styles import STYLES

STARTER = MODELS["starter"]
PORTRAIT = MODELS["portrait"]
LOCAL = LocalModel(ASSETS / "starter", "", "")


def test_without_style_and_trigger_the_prompt_is_left_alone() -> None:
    assert enhance_prompt(GenerationRequest("a fox"), STARTER) == "a fox"
    assert enhance_negative_prompt(GenerationRequest("a fox")) == ""


def test_style_words_follow_the_prompt() -> None:
    wish = GenerationRequest("a fox,", style="anime", negative_prompt="rain")
    assert enhance_prompt(wish, STARTER) == f"a fox, {STYLES['anime'].words}"
    assert enhance_negative_prompt(wish) == f"rain, {STYLES['anime'].negative_words}"


def test_nothing_is_said_twice() -> None:
    wish = GenerationRequest("An ANIME fox, portrait+ style", style="anime")
    said = enhance_prompt(wish, PORTRAIT)
    assert said == "An ANIME fox, portrait+ style, cel shading, clean lines, vivid colours"
    again = enhance_prompt(replace(wish, prompt=said), PORTRAIT)
    assert again == said


def test_part_of_a_word_is_not_the_word() -> None:
    said = enhance_prompt(GenerationRequest("animetronic fox", style="anime"), STARTER)
    assert said == f"animetronic fox, {STYLES['anime'].words}"


def test_trigger_words_come_first() -> None:
    assert enhance_prompt(GenerationRequest("a king"), PORTRAIT) == "portrait+ style, a king"


def test_a_short_prompt_fits() -> None:
    fit = truncate_to_limit("a fox in the snow", LOCAL, STARTER)
    assert (fit.kept, fit.truncated) == ("a fox in the snow", "")
    assert 5 <= fit.tokens <= fit.limit == 27


def test_cut_is_exactly_at_the_limit() -> None:
    assert truncate_to_limit("fox " * 27, LOCAL, STARTER).tokens == 27
    assert truncate_to_limit("fox " * 27, LOCAL, STARTER).truncated.strip() == ""
    fit = truncate_to_limit("fox " * 27 + "snow", LOCAL, STARTER)
    assert fit.tokens == 28
    assert fit.kept.split() == ["fox"] * 27
    assert fit.truncated.strip() == "snow"


@given(st.text(alphabet="ab fox,.'🦊日ö\n", max_size=200))
def test_kept_is_what_the_model_sees(text: str) -> None:
    """Tokens of `kept` are those of the whole text up to the limit, but for a half character."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(ASSETS / "starter" / "tokenizer")
    fit = truncate_to_limit(text, LOCAL, STARTER)
    assert fit.kept + fit.truncated == text
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert fit.tokens == len(whole)
    if fit.tokens <= fit.limit:
        assert fit.truncated == ""
    else:
        assert fit.truncated != ""


def test_half_a_character_is_cut_whole() -> None:
    """One fox head is several tokens; the limit falls between them."""
    heads = "🦊" * 40
    fit = truncate_to_limit("a" + heads, LOCAL, STARTER)
    assert fit.tokens > fit.limit
    assert fit.kept.encode("utf-8").decode("utf-8") == fit.kept
    assert truncate_to_limit(fit.kept, LOCAL, STARTER).tokens <= fit.limit
    assert truncate_to_limit(fit.kept + "🦊", LOCAL, STARTER).truncated == "🦊"


def test_tokenizers_of_the_old_layout_work(tiny_folder: Path) -> None:
    fit = truncate_to_limit("a fox " * 60, LocalModel(tiny_folder, "", ""), PORTRAIT)
    assert (fit.tokens, fit.limit) == (120, 75)
    assert fit.kept.split() == (["a", "fox"] * 38)[:75]


def test_a_broken_tokenizer_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text(json.dumps({"x": 1}))
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(ModelCorrupted, match="tokenizer of"):
        truncate_to_limit("a fox", LocalModel(tmp_path, "", ""), STARTER)


def test_without_a_tokenizer_it_is_estimated(tmp_path: Path) -> None:
    local = LocalModel(tmp_path, "", "")
    assert truncate_to_limit("a fox", local, STARTER) == estimate_tokens("a fox")
    fit = estimate_tokens("a " * 100)
    assert (fit.tokens, fit.limit) == (100, 75)
    assert fit.kept + fit.truncated == "a " * 100
    assert len(fit.kept.split()) == 75
    assert estimate_tokens("").tokens == 0


def test_counting_tokens_does_not_need_torch() -> None:
    program = (
        "import sys; from canvas.catalog import ASSETS, MODELS; from canvas.engine import prompts;"
        "from canvas.models.download import LocalModel;"
        "local = LocalModel(ASSETS / 'starter', '', '');"
        "prompts.split_at_limit('a fox', local, MODELS['starter']);"
        "print('torch' in sys.modules, 'diffusers' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ASSETS.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["False", "False"]
