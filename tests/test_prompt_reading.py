"""What the built-in model understands of prompts: synonyms, plurals, places, languages, and what it does not know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canvas.catalog import ASSETS, MODELS
from canvas.engine import prompts
from canvas.prompt_reading import Understanding, understand
from canvas.request import GenerationRequest
from canvas.vocabulary import SYNONYMS, VOCABULARY, Vocabulary, vocabulary_of

NEWCOMERS = Path(__file__).with_name("newcomers.tsv")
MIN_AS_EXPECTED = 0.95
STARTER = MODELS["starter"]


def starter_vocabulary() -> Vocabulary:
    vocabulary = vocabulary_of(STARTER)
    assert vocabulary is not None
    return vocabulary


VOCABULARY_OF_STARTER = starter_vocabulary()


def read(prompt: str, **options: Any) -> Understanding:
    return understand(VOCABULARY_OF_STARTER, prompt, **options)


def differences(line: str) -> list[str]:
    """What differs from the expectations of a line of newcomers.tsv."""
    prompt, things, place, style, rest = line.split("\t")
    vocabulary, reading = VOCABULARY_OF_STARTER, read(prompt)
    # The canonical prompt, read again, has only names of the model
    parts = vocabulary.parts(reading.prompt if reading.understood else "")
    found: dict[str, list[str]] = {"thing": [], "place": [], "colour": [], "style": []}
    for part in parts:
        if part.meaning and part.meaning.kind in found:
            found[part.meaning.kind].append(part.meaning.name)
    found["style"] = [item.words for item in reading.understood if item.words in vocabulary.styles]
    result = []
    if "+".join(dict.fromkeys(found["thing"])) not in ["" if each == "-" else each for each in things.split("/")]:
        result.append(f"things {found['thing']} instead of {things}")
    for kind, names, expected in (
        ("place", [*found["place"], *found["colour"]], place),
        ("style", found["style"], style),
    ):
        if (names[0] if names else "-") not in expected.split("/"):
            result.append(f"{kind} {names} instead of {expected}")
    extent = "none" if reading.nothing_known else "part" if reading.unknown or reading.left_out else "all"
    if extent not in rest.split("/"):
        result.append(f"{extent} understood instead of {rest}: {reading.unknown} {reading.left_out}")
    return result


def test_prompts_of_newcomers_are_understood() -> None:
    lines = [line for line in NEWCOMERS.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert len(lines) >= 200
    wrong = {line.split("\t")[0]: found for line in lines if (found := differences(line))}
    share = 1 - len(wrong) / len(lines)
    assert share >= MIN_AS_EXPECTED, f"{share:.1%} as expected; not: {json.dumps(wrong, indent=1, ensure_ascii=False)}"


@pytest.mark.parametrize(
    ("prompt", "resolved"),
    [
        ("two puppies at the seaside", "two dogs on the beach"),
        ("PUPPY, IN THE SNOW!", "a dog in the snow"),
        ("a hot dog", "a hot dog"),  # longest match first
        ("a pine tree", "a fir tree"),
        ("a catalogue of dogmas", "a catalogue of dogmas"),  # no parts of words
        ("a cafe\u0301 and a cat", "a cat in a room"),  # composed differently
        ("an orange cat on an orange background", "a cat on an orange background"),
        ("a fox without a hat", "a fox"),
        ("a tiny kitten on the left at night, comic", "a tiny cat on the left at night, cartoon"),
        ("ein kleiner Hund im Schnee", "a tiny dog in the snow"),
        ("deux chats sur la plage", "two cats on the beach"),
    ],
)
def test_prompts_are_resolved(prompt: str, resolved: str) -> None:
    assert read(prompt).prompt == resolved


def test_prompts_in_the_models_own_words_stay_as_they_are() -> None:
    for prompt in ("a fox in the snow, 3d", "A cute owl at dusk, cartoon style.", "three apples on a pink background"):
        assert read(prompt) == Understanding(prompt, read(prompt).understood)


def test_the_note_names_synonyms_unknown_words_and_the_nearest_known_one() -> None:
    note = read("a bearded puppy in the snow with a red sledge").note
    assert note.startswith("Understood: a dog (from puppy), in the snow. Not known: bearded")
    assert note.endswith("Left out: red.")
    assert read("zxcv qwerty").nothing_known
    assert read("zxcv qwerty").note == "Not known: zxcv qwerty."


def test_a_place_is_added_by_the_seed_only_where_none_is_named() -> None:
    prompts_by_seed = [read("a cat", seed=seed) for seed in range(20)]
    assert len({reading.prompt for reading in prompts_by_seed}) > 1
    assert prompts_by_seed == [read("a cat", seed=seed) for seed in range(20)]
    assert all(reading.added in reading.prompt and reading.added in reading.note for reading in prompts_by_seed)
    assert read("a cat at night", seed=1).prompt == "a cat at night"
    assert not read("zxcv", seed=1).added


OWN_WORDS = [word for thing in VOCABULARY_OF_STARTER.things.values() for word in thing["words"]]
PIECES = st.sampled_from(
    [*OWN_WORDS, "puppies", "in the woods", "red", "two", "tiny", "qwerty", "3d", "manga", ",", "and"]
)


@given(st.lists(PIECES, min_size=1, max_size=8).map(" ".join), st.integers(0, 2**31))
def test_a_resolved_prompt_resolves_to_itself(prompt: str, seed: int) -> None:
    resolved = read(prompt, seed=seed)
    if not resolved.nothing_known:
        again = read(resolved.prompt, seed=seed)
        assert (again.prompt, again.unknown, again.left_out) == (resolved.prompt, (), ())


@given(st.text(min_size=1, max_size=200))
def test_any_text_is_read(text: str) -> None:
    reading = read(text, seed=1)
    assert reading.prompt or not text.strip()
    assert bool(reading.note) == reading.changed


def test_a_lora_or_weights_leave_the_prompt_alone() -> None:
    assert prompts.understand(GenerationRequest("a puppy <lora:x:1>"), STARTER) is None
    assert prompts.understand(GenerationRequest("a (puppy:1.4)", prompt_weighting=True), STARTER) is None
    assert prompts.understand(GenerationRequest("a puppy", model_key="small"), MODELS["small"]) is None


def test_the_tables_are_small_and_name_only_what_the_model_knows() -> None:
    folder = ASSETS / "starter"
    assert (folder / SYNONYMS).stat().st_size + (folder / VOCABULARY).stat().st_size <= 2**20
    words = json.loads((folder / VOCABULARY).read_text(encoding="utf-8"))
    table = json.loads((folder / SYNONYMS).read_text(encoding="utf-8"))
    for sections in table["languages"].values():
        for section in ("things", "places", "styles", "colours"):
            assert set(sections[section]) <= set(words[section])
    assert set(table["near"].values()) <= set(words["things"])
