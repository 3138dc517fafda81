from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canvas.errors import InvalidInput
from canvas.prompt_syntax import (
    LoraWeight,
    has_weight_syntax,
    has_weights,
    parse_lora_tags,
    split_chunks,
    strip_weights,
)

# The examples in the documentation of AUTOMATIC1111's web UI.
PUBLISHED = {
    "normal text": [("normal text", 1.0)],
    "an (important) word": [("an ", 1.0), ("important", 1.1), (" word", 1.0)],
    "(unbalanced": [("unbalanced", 1.1)],
    r"\(literal\]": [("(literal]", 1.0)],
    "(unnecessary)(parens)": [("unnecessaryparens", 1.1)],
    "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).": [
        ("a ", 1.0),
        ("house", 1.573),
        ("on", 1.0),
        (" a ", 1.1),
        ("hill", 0.55),
        (", sun, ", 1.1),
        ("sky", 1.4641),
        (".", 1.1),
    ],
}


@pytest.mark.parametrize("prompt", PUBLISHED)
def test_published_examples(prompt: str) -> None:
    [fragments] = split_chunks(prompt)
    assert [text for text, _ in fragments] == [text for text, _ in PUBLISHED[prompt]]
    assert [weight for _, weight in fragments] == pytest.approx([w for _, w in PUBLISHED[prompt]])


@given(st.text("ab ()[]:\\.13", max_size=40))
def test_any_prompt_is_parsed(prompt: str) -> None:
    try:
        [fragments] = split_chunks(prompt)
    except InvalidInput as error:
        assert "must be from 0 to 10" in str(error) or "changes the prompt during the steps" in str(error)
        return
    assert all(weight >= 0 for _, weight in fragments)
    assert set("".join(text for text, _ in fragments)) <= set(prompt)


@given(st.text(st.characters(exclude_characters="()[]\\B"), max_size=60))
def test_prompt_without_brackets_is_one_fragment(prompt: str) -> None:
    assert split_chunks(prompt) == [[(prompt if prompt.strip() else "", 1.0)]]


def test_break_splits_the_prompt() -> None:
    assert split_chunks("a fox BREAK in (snow)") == [[("a fox", 1.0)], [("in ", 1.0), ("snow", 1.1)]]
    assert split_chunks(" BREAK ") == [[("", 1.0)]]
    assert strip_weights("a (fox:1.3) BREAK in [snow]") == "a fox in snow"


def test_weight_out_of_range_is_rejected() -> None:
    with pytest.raises(InvalidInput, match=r"from 0 to 10 \(got 99\)"):
        split_chunks("a (fox:99)")


@pytest.mark.parametrize(
    ("prompt", "chunks"),
    [
        ("(a BREAK b:1.3)", [[("a", 1.3)], [("b", 1.3)]]),
        ("(a:1,3) BREAK\n[b BREAK c]", [[("a", 1.3)], [("b", 1 / 1.1)], [("c", 1 / 1.1)]]),
        ("a (fox:1.) (owl: .5 )", [[("a fox ", 1.0), ("owl", 0.5)]]),
        ("BREAKFAST, (BREAKS:1.2)", [[("BREAKFAST, ", 1.0), ("BREAKS", 1.2)]]),
    ],
)
def test_break_and_numbers(prompt: str, chunks: list[list[tuple[str, float]]]) -> None:
    assert split_chunks(prompt) == [[(text, pytest.approx(weight)) for text, weight in chunk] for chunk in chunks]


@pytest.mark.parametrize("prompt", ["a [fox:owl:0.5]", "a [fox:5]", "a [fox::.5]", "a [fox|owl]", "[(a:1.2):b:0,5]"])
def test_prompt_editing_is_rejected_by_name(prompt: str) -> None:
    with pytest.raises(InvalidInput, match=r"^\[.*\] changes the prompt during the steps, which is not supported"):
        split_chunks(prompt)


@pytest.mark.parametrize(
    ("prompt", "weights", "syntax"),
    [
        ("a fox", False, False),
        ("(a fox:1.0)", False, True),
        (r"a \(fox\)", False, True),
        ("(a) fox", True, True),
        ("a BREAK fox", False, True),
        ("(fox:99)", True, True),
    ],
)
def test_weights_are_recognized(prompt: str, weights: bool, syntax: bool) -> None:
    assert (has_weights(prompt), has_weight_syntax(prompt)) == (weights, syntax)


@pytest.mark.parametrize(
    ("prompt", "text", "tags"),
    [
        ("a fox", "a fox", ()),
        ("a fox <lora:snow:0.8>", "a fox", (("snow", 0.8, 0.8),)),
        ("a fox, <lora:snow>, red", "a fox, red", (("snow", 1, 1),)),
        ("<lora:a:-.5> a <lora:my file v1.2:1> fox", "a fox", (("a", -0.5, -0.5), ("my file v1.2", 1, 1))),
        ("a <lora:a:0.8:0.6> fox", "a fox", (("a", 0.6, 0.8),)),
        ("a <lora:a:te=0.5:unet=1> fox", "a fox", (("a", 1, 0.5),)),
        ("a <lora:a:te=0.5> fox", "a fox", (("a", 0.5, 0.5),)),
        ("a <lora:a:1.> <LORA: b : 0,8 > fox", "a fox", (("a", 1, 1), ("b", 0.8, 0.8))),
        ("a <lyco:a:1> <LyCORIS:b> fox", "a fox", (("a", 1, 1), ("b", 1, 1))),
        ("a <lora:a:> fox", "a fox", (("a", 1, 1),)),
        ("<lora:owner/name:file.safetensors:0.5>", "", (("owner/name:file.safetensors", 0.5, 0.5),)),
        ("a > b < c", "a > b < c", ()),
    ],
)
def test_lora_tags_are_removed_from_the_prompt(
    prompt: str, text: str, tags: tuple[tuple[str, float, float], ...]
) -> None:
    assert parse_lora_tags(prompt) == (text, tuple((name, LoraWeight(*weights)) for name, *weights in tags))


@pytest.mark.parametrize(
    ("tag", "reason"),
    [
        ("<lora:a:1:lbw=IN02>", "lbw=IN02 is not supported"),
        ("<lora:a:much>", "much is not supported"),
        ("<lora:a:1:1:1>", "more than two weights"),
        ("<lora::1>", "the name is missing"),
        ("<lora:a:11>", "weights go up to 10"),
        ("<hypernet:a:1>", "hypernetworks are not supported"),
    ],
)
def test_unusable_lora_tags_are_rejected_by_name(tag: str, reason: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_lora_tags(f"a fox {tag}")
    assert tag in str(caught.value)
    assert reason in str(caught.value)


@given(st.text("lora:.,=+-019 a", max_size=30))
def test_no_tag_stays_among_the_words(arguments: str) -> None:
    try:
        text, [(name, _)] = parse_lora_tags(f"a fox <lora:{arguments}>")
    except InvalidInput:
        return
    assert text == "a fox"
    assert name == name.strip() != ""
