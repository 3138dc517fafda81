from __future__ import annotations

import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canvas import GenerationRequest, Studio, dynamic_prompts
from canvas.dynamic_prompts import MAX_PROMPTS, escape, expand
from canvas.errors import InvalidInput, QueueFull
from canvas.jobs.queue import Limits


@pytest.fixture
def wildcards(tmp_path: Path) -> Path:
    folder = tmp_path / "wildcards"
    folder.mkdir()
    (folder / "animals.txt").write_text("\ufefffox\n\n# comment\n  owl  \n", encoding="utf-8")
    (folder / "big_cats.txt").write_text("lion\n")
    (folder / "empty.txt").write_text("# nothing\n")
    (folder / "étés.v2").mkdir()
    (folder / "étés.v2" / unicodedata.normalize("NFD", "forêt.txt")).write_bytes("森\r\npré\r\n".encode("utf-16"))
    (folder / "nested.txt").write_text("0.5::__big_cats__ cub\n{red|blue} __animals__, {\n")
    (folder / "loop.txt").write_text("a __loop__\n")
    (folder / "latin.txt").write_bytes("pré".encode("latin-1"))
    (folder / "line.txt").write_text("one\u2028line\n", encoding="utf-8")
    (tmp_path / "secret.txt").write_text("secret\n")
    return folder


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a fox", ["a fox"]),
        ("{red|blue} fox, {snow|desert}", ["red fox, snow", "red fox, desert", "blue fox, snow", "blue fox, desert"]),
        ("{a|{b|c} d}", ["a", "b d", "c d"]),
        ("{|big }fox", ["fox", "bigfox"]),
        ("__animals__ and __animals__", ["fox and fox", "fox and owl", "owl and fox", "owl and owl"]),
        ("a __big_cats__", ["a lion"]),
        ("{__animals__|cat}", ["fox", "owl", "cat"]),
        ("{red|red} fox", ["red fox"]),
        ("a {curly} sign, a | bar", ["a {curly} sign, a | bar"]),
        (r"\{red\|blue\} \_\_animals__ \\", ["{red|blue} __animals__ \\"]),
        (r"{a\|b|c}", ["a|b", "c"]),
        ("never {closed|here", ["never {closed|here"]),
        ("closed } by | mistake", ["closed } by | mistake"]),
        ("snake_case and ____ lines", ["snake_case and ____ lines"]),
        ("__étés.v2/forêt__", ["森", "pré"]),
        (unicodedata.normalize("NFD", "__étés.v2/forêt__"), ["森", "pré"]),
        ("__FORÊT__ __Animals.txt__", ["森 fox", "森 owl", "pré fox", "pré owl"]),
        ("__étés*/*__", ["森", "pré"]),
        ("{a __animals__|__big_cats__}", ["a fox", "a owl", "lion"]),
        ("__nested__", ["lion cub", "red fox, {", "red owl, {", "blue fox, {", "blue owl, {"]),
        ("__line__", ["one\u2028line"]),
        ("<lora:__animals__:0.5>", ["<lora:fox:0.5>", "<lora:owl:0.5>"]),
        ("<lora:my__new__style:1>", ["<lora:my__new__style:1>"]),
        ("<lora:{a|b}:{0.5|1}>", ["<lora:a:0.5>", "<lora:a:1>", "<lora:b:0.5>", "<lora:b:1>"]),
        ("{2$$a|b|c}", ["a, b", "a, c", "b, a", "b, c", "c, a", "c, b"]),
        ("{1-2$$ and $$a|b}", ["a", "b", "a and b", "b and a"]),
        ("{1$$__animals__}", ["fox", "owl"]),
        ("{0.3::a|0.7::b}", ["a", "b"]),
        ("{cost $5|$$}", ["cost $5", "$$"]),
        ("C:\\new", ["C:\\new"]),
        ("{e|{d|{c|{b|{a|five deep}}}}}", ["e", "d", "c", "b", "a", "five deep"]),
    ],
)
def test_expand(wildcards: Path, prompt: str, expected: list[str]) -> None:
    assert expand(prompt, wildcards) == expected


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a __plant__", r'no wildcard list "plant" \(existing: animals, big_cats, empty, '),
        ("a __../secret__", r'no wildcard list "../secret"'),
        ("a __/etc/passwd__", r'no wildcard list "passwd"'),
        ("a __loop__", "nested at most 5 deep"),
        ("a __latin__", 'list "latin" is neither UTF-8 nor UTF-16'),
        ("${mood=calm} fox", r"Variables such as \$\{mood=calm\} are not supported"),
        ("{3$$a|b}", r"3\$\$ needs at least 3 alternatives"),
        ("{9$$a|b|c|d|e|f|g|h|i}", "at most 100 prompts"),
        ("a __empty__", 'list "empty" is empty'),
        ("{a|b}" * 7, f"at most {MAX_PROMPTS} prompts"),
        ("{a|b}" * 1900, f"at most {MAX_PROMPTS} prompts"),
        ("{f|{e|{d|{c|{b|{a|six deep}}}}}}", "nested at most 5 deep"),
        ("{" * 50 + "a|b" + "}" * 50, "nested at most 5 deep"),
    ],
)
def test_invalid_prompts_are_rejected(wildcards: Path, prompt: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        expand(prompt, wildcards)
    assert caught.value.field == "prompt"


@pytest.mark.parametrize(("choose", "number"), [("2$$", 12), ("1-2$$", 16), ("-1$$", 5), ("3-9$$", 48)])
def test_combinations_are_counted_before_they_are_made(
    monkeypatch: pytest.MonkeyPatch, choose: str, number: int
) -> None:
    counts: list[int] = []

    def make(*_: object) -> list[str]:
        assert number in counts
        return ["a"]

    monkeypatch.setattr(dynamic_prompts, "_check_count", counts.append)
    monkeypatch.setattr(dynamic_prompts, "permutations", make)
    assert set(expand(f"{{{choose}a|b|c|d}}", Path("nowhere"))) == {"a"}


@given(st.text(alphabet="ab{}|\\_ ", max_size=60))
def test_any_text_expands_or_raises_invalid_input(prompt: str) -> None:
    try:
        found = expand(prompt, Path("nowhere"))
    except InvalidInput:
        return
    assert 1 <= len(found) <= MAX_PROMPTS
    if not set(prompt) & set("{|\\_"):
        assert found == [prompt]


@pytest.mark.parametrize("prompt", ["a" * 10_000, "_" * 10_000, "a_b$" * 2500, "{a}" * 3333, "{" * 4 + "a" * 9990])
def test_long_prompts_take_no_time(prompt: str) -> None:
    started = time.thread_time()  # whatever else the computer does
    assert expand(prompt, Path("nowhere")) == [prompt]
    assert time.thread_time() - started < 2


@given(st.text(alphabet="ab{}|\\_ $:1", max_size=40))
def test_an_escaped_prompt_stands_for_itself(prompt: str) -> None:
    assert expand(escape(prompt), Path("nowhere")) == [prompt]


@pytest.mark.slow
def test_submit_expanded_queues_all_or_none(studio: Studio) -> None:
    request = GenerationRequest("{red|blue} fox, {snow|desert}", num_inference_steps=1, seed=4)
    assert [each.prompt for each in studio.expand_prompt(request)][:2] == ["red fox, snow", "red fox, desert"]
    studio._limits = Limits(max_queued=3)
    with pytest.raises(QueueFull):
        studio.submit_expanded(request)
    assert studio.jobs("local") == []
    studio._limits = Limits()
    jobs = studio.submit_expanded(request)
    assert len(jobs) == 4
    for job in jobs:
        [image] = job.wait()
        assert image.request.seed == 4
    assert {image.request.prompt for image in studio.recent()} == {
        each.prompt for each in studio.expand_prompt(request)
    }
