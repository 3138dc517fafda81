"""Enhancing prompts, counting tokens and truncating."""

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
from canvas.engine.prompts import enhance_negative_prompt, enhance_prompt, estimate_tokens, truncate_to_limit
from canvas.models.download import LocalModel
from canvas.request import GenerationRequest
from canvas.styles import STYLES

STARTER = MODELS["starter"]
PORTRAIT = MODELS["portrait"]
LOCAL = LocalModel(ASSETS / "starter", "", "")
LIMIT = STARTER.prompt_tokens


def test_prompt_without_style_and_trigger_is_unchanged() -> None:
    assert enhance_prompt(GenerationRequest("a fox"), STARTER) == "a fox"
    assert enhance_negative_prompt(GenerationRequest("a fox")) == ""


def test_style_words_follow_the_prompt() -> None:
    request = GenerationRequest("a fox,", style="anime", negative_prompt="rain")
    assert enhance_prompt(request, STARTER) == f"a fox, {STYLES['anime'].words}"
    assert enhance_negative_prompt(request) == f"rain, {STYLES['anime'].negative_words}"


def test_words_are_not_repeated() -> None:
    request = GenerationRequest("An ANIME fox, portrait+ style", style="anime")
    prompt = enhance_prompt(request, PORTRAIT)
    assert prompt == "An ANIME fox, portrait+ style, cel shading, clean lines, vivid colours"
    again = enhance_prompt(replace(request, prompt=prompt), PORTRAIT)
    assert again == prompt


def test_only_whole_words_count_as_present() -> None:
    prompt = enhance_prompt(GenerationRequest("animetronic fox", style="anime"), STARTER)
    assert prompt == f"animetronic fox, {STYLES['anime'].words}"


def test_trigger_words_come_first() -> None:
    assert enhance_prompt(GenerationRequest("a king"), PORTRAIT) == "portrait+ style, a king"


def test_a_short_prompt_fits() -> None:
    budget = truncate_to_limit("a fox in the snow", LOCAL, STARTER)
    assert (budget.kept, budget.truncated) == ("a fox in the snow", "")
    assert 2 <= budget.tokens <= budget.limit == LIMIT


def test_prompt_is_truncated_at_the_limit() -> None:
    assert truncate_to_limit("and " * LIMIT, LOCAL, STARTER).tokens == LIMIT
    assert truncate_to_limit("and " * LIMIT, LOCAL, STARTER).truncated.strip() == ""
    budget = truncate_to_limit("and " * LIMIT + "two", LOCAL, STARTER)
    assert budget.tokens == LIMIT + 1
    assert budget.kept.split() == ["and"] * LIMIT
    assert budget.truncated.strip() == "two"


def test_word_of_several_tokens_is_not_split() -> None:
    """A thing has four tokens, and the limit falls between those of the last."""
    budget = truncate_to_limit("fox owl fox owl fox", LOCAL, STARTER)
    assert (budget.tokens, budget.limit) == (20, 18)
    assert (budget.kept.split(), budget.truncated.split()) == (["fox", "owl", "fox", "owl"], ["fox"])


@pytest.mark.slow
@given(st.text(alphabet="ab fox,.'🦊日ö\n", max_size=200))
def test_kept_and_truncated_are_the_prompt(text: str) -> None:
    """The number of tokens is that of the tokenizer."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(ASSETS / "starter" / "tokenizer")
    budget = truncate_to_limit(text, LOCAL, STARTER)
    assert budget.kept + budget.truncated == text
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert budget.tokens == len(tokens)
    if budget.tokens <= budget.limit:
        assert budget.truncated == ""
    else:
        assert budget.truncated != ""


def test_character_of_several_tokens_is_not_split(tiny_folder: Path) -> None:
    """A fox face has several tokens, and the limit falls between them."""
    heads, local = "🦊" * 40, LocalModel(tiny_folder, "", "")
    budget = truncate_to_limit("a" + heads, local, PORTRAIT)
    assert budget.tokens > budget.limit
    assert budget.kept.encode("utf-8").decode("utf-8") == budget.kept
    assert truncate_to_limit(budget.kept, local, PORTRAIT).tokens <= budget.limit
    assert truncate_to_limit(budget.kept + "🦊", local, PORTRAIT).truncated == "🦊"


def test_old_tokenizer_layout(tiny_folder: Path) -> None:
    budget = truncate_to_limit("a fox " * 60, LocalModel(tiny_folder, "", ""), PORTRAIT)
    assert (budget.tokens, budget.limit) == (120, 75)
    assert budget.kept.split() == (["a", "fox"] * 38)[:75]


def test_tokens_are_estimated_with_a_broken_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text(json.dumps({"x": 1}))
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{")
    budget = truncate_to_limit("a fox", LocalModel(tmp_path, "", ""), STARTER)
    assert (budget.tokens, budget.limit) == (2, STARTER.prompt_tokens)


def test_tokens_are_estimated_without_a_tokenizer(tmp_path: Path) -> None:
    local = LocalModel(tmp_path, "", "")
    assert truncate_to_limit("a fox", local, STARTER) == estimate_tokens("a fox", STARTER.prompt_tokens)
    budget = estimate_tokens("a " * 100)
    assert (budget.tokens, budget.limit) == (100, 75)
    assert budget.kept + budget.truncated == "a " * 100
    assert len(budget.kept.split()) == 75
    assert estimate_tokens("").tokens == 0


@pytest.mark.slow
def test_counting_tokens_does_not_import_torch() -> None:
    code = (
        "import sys; from canvas.catalog import ASSETS, MODELS; from canvas.engine import prompts;"
        "from canvas.models.download import LocalModel;"
        "local = LocalModel(ASSETS / 'starter', '', '');"
        "prompts.truncate_to_limit('a fox', local, MODELS['starter']);"
        "print('torch' in sys.modules, 'diffusers' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ASSETS.parent, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]
