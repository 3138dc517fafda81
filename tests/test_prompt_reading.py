"""What the built-in model understands of prompts: synonyms, plurals, places, languages, and what it does not know."""

from __future__ import annotations

import json
import re
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
    # The model's prompt, read again, has only its names; the default style has no word
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
    assert len(lines) >= 280
    wrong = {line.split("\t")[0]: found for line in lines if (found := differences(line))}
    share = 1 - len(wrong) / len(lines)
    assert share >= MIN_AS_EXPECTED, f"{share:.1%} as expected; not: {json.dumps(wrong, indent=1, ensure_ascii=False)}"


@pytest.mark.parametrize(
    ("prompt", "resolved"),
    [
        ("two puppies at the seaside", "two dog on the beach"),
        ("PUPPY, IN THE SNOW!", "a dog in the snow"),
        ("a hot dog", "a hot dog"),  # longest match first
        ("a cup of tea and a bowl of soup", "green tea and soup"),  # not "a cup of" and "a bowl of"
        ("an elephnat, a guittar", "an elephant and a guitar"),
        ("an accordian according to the factors", "an accordion"),  # common words are no typos
        ("una bruja volando", "a witch"),  # typos are corrected in English only: no volcano
        ("a pair of glasses", "glasses"),
        ("ثلاثة كلاب على الشاطئ", "three dog on the beach"),
        ("a pine tree", "a fir tree"),
        ("a catalogue of dogmas", "a catalogue of dogmas"),  # no parts of words
        ("a cafe\u0301 and a cat", "a cat in the kitchen"),  # composed differently
        ("an orange cat on an orange background", "a cat on an orange background"),
        ("a fox without a hat", "a fox"),
        ("a tiny kitten on the left at night, comic", "a tiny cartoon cat at night"),
        ("ein kleiner Hund im Schnee", "a tiny dog in the snow"),
        ("deux chats sur la plage", "two cat on the beach"),
    ],
)
def test_prompts_are_resolved(prompt: str, resolved: str) -> None:
    assert read(prompt).prompt == resolved


@pytest.mark.parametrize(
    ("prompt", "resolved"),
    [
        ("a fox in the snow, flat", "a flat fox in the snow"),
        ("flat: an apple and an owl", "a flat apple and a flat owl"),
        ("an owl, 3d", "an owl"),  # the default style has no word
        ("glasses in sticker style", "sticker glasses"),
        ("a cartoon hot dog on the right", "a cartoon hot dog on the right"),
        ("a small fox in the snow, flat design", "a tiny flat fox in the snow"),
        ("three foxes in the snow, vector art", "three flat fox in the snow"),
        ("ten foxes", "three fox"),
        ("a fox and an owl and a cat in the snow, flat", "a flat fox, a flat owl and a flat cat in the snow"),
        ("in the snow: a fox, an owl", "a fox and an owl in the snow"),  # things come first
        ("a cow, a pig, a sheep and a goat on a farm", "a cow, a pig and a sheep on a farm"),
        ("a king's palace at night", "a king in a castle hall"),
        ("a rainy day, cartoon", "in the rain"),
        ("a glossy balloon on a red background", "a glossy balloon on a red background"),
    ],
)
def test_prompts_are_written_in_the_grammar_of_captions(prompt: str, resolved: str) -> None:
    assert read(prompt).prompt == resolved


def test_what_is_shown_is_english() -> None:
    reading = read("two foxes in the snow, flat")
    assert [item.words for item in reading.understood] == ["two foxes", "in the snow", "flat"]
    assert not reading.changed


def test_a_thing_without_a_drawing_in_the_style_has_another_one() -> None:
    vocabulary = VOCABULARY_OF_STARTER
    assert vocabulary.things["mermaid"]["styles"] == ["3d", "cartoon", "sticker"]
    reading = read("a mermaid, flat")
    assert (reading.prompt, reading.left_out) == ("a mermaid", ("flat (mermaid)",))
    assert [item.words for item in reading.understood] == ["a mermaid"]
    both = read("a fox and a mermaid, flat")
    assert (both.prompt, both.left_out) == ("a flat fox and a mermaid", ("flat (mermaid)",))
    assert [item.words for item in both.understood] == ["a fox", "a mermaid", "flat"]
    assert read("an orca").prompt == "a cartoon orca"  # the default style has none
    assert not read("an orca").changed
    assert read("a 3d orca").left_out == ("3d (orca)",)


def test_a_place_alone_has_no_style() -> None:
    reading = read("a beach, cartoon")
    assert (reading.prompt, reading.left_out) == ("on the beach", ("cartoon",))
    assert read("a beach, 3d").left_out == ()


def test_a_side_is_left_out_where_several_things_are() -> None:
    assert read("two foxes on the left").prompt == "two fox"
    assert read("two foxes on the left").left_out == ("on the left",)
    assert read("a fox and an owl on the right").left_out == ("on the right",)


@pytest.mark.slow
def test_every_thing_is_read_in_every_style() -> None:
    vocabulary = VOCABULARY_OF_STARTER
    for name, thing in vocabulary.things.items():
        for style in thing.get("styles", vocabulary.styles):
            for count in (1, 2, 3):
                caption = vocabulary.caption(name, count, "", style) + " in a castle hall"
                assert (read(caption).prompt, read(caption).unknown, read(caption).left_out) == (caption, (), ())


def test_names_of_things_are_no_other_words() -> None:
    vocabulary = VOCABULARY_OF_STARTER
    others = {*vocabulary.places, *vocabulary.styles, *vocabulary.colours, "two", "three", "tiny", "left", "right"}
    assert not (set(vocabulary.things) - {"orange"}) & others
    assert all(re.fullmatch("[a-z0-9]+([ -][a-z0-9]+)*", name) for name in vocabulary.things)


def test_the_note_names_synonyms_unknown_words_and_the_nearest_known_one() -> None:
    note = read("a grouchy puppy in the snow with a red lighthouse").note
    unknown = "Not known: grouchy, lighthouse (nearest: tokyo tower)."
    assert note == f"Understood: a dog (from puppy), in the snow. {unknown} Left out: red."
    assert read("zxcv qwerty").nothing_known
    assert read("zxcv qwerty").note == "Not known: zxcv qwerty."


def test_a_place_is_added_by_the_seed_only_where_none_is_named() -> None:
    prompts_by_seed = [read("a cat", seed=seed) for seed in range(20)]
    assert len({reading.prompt for reading in prompts_by_seed}) > 1
    assert prompts_by_seed == [read("a cat", seed=seed) for seed in range(20)]
    assert all(reading.added in reading.prompt and reading.added in reading.note for reading in prompts_by_seed)
    assert not read("a cat at night", seed=1).added
    assert read("a cat at night", seed=1).prompt.count("at night") == 1
    assert not read("zxcv", seed=1).added


@pytest.mark.parametrize(
    ("prompt", "layout"),
    [
        ("two foxes in the snow", "two"),
        ("a tiny fox in the snow", "tiny"),
        ("a fox on the left in the snow", "left"),
        ("a fox and an owl in the snow", "pair"),
        ("a fox, an owl and a cat in the snow", "trio"),
    ],
)
def test_the_seed_moves_things_within_their_layout(prompt: str, layout: str) -> None:
    unmoved = read(prompt).prompt
    moves = {read(prompt, seed=seed).prompt.removeprefix(unmoved).strip() for seed in range(400)}
    sideways, vertical = VOCABULARY_OF_STARTER.shifts[layout]
    assert moves == {f"{right} {down}".strip() for right in sideways for down in vertical}


def test_the_seed_moves_one_thing_and_draws_it_smaller_at_times() -> None:
    readings = [read("a fox in the snow", seed=seed) for seed in range(100)]
    assert len({reading.prompt for reading in readings}) > 30
    assert all(reading.prompt.startswith("a fox ") and not reading.note for reading in readings)
    smaller = sum("on the left" in reading.prompt or "on the right" in reading.prompt for reading in readings)
    assert 10 < smaller < 40


def test_a_prompt_that_says_where_things_are_is_not_changed() -> None:
    assert read("a fox in the snow 2 left", seed=1).prompt == "a fox in the snow 2 left"


def test_things_of_an_edited_image_stay_where_they_are() -> None:
    made = "a fox on the left in the forest hue 90 1 right 2 up"
    assert read("an owl", like=made).prompt == "an owl on the left 1 right 2 up"
    assert read("an owl on the right", like=made).prompt == "an owl on the right"
    assert read("an owl and a fox", like=made).prompt == "an owl and a fox"
    assert read("a tiny owl", like=made).prompt == "a tiny owl"


@pytest.mark.parametrize("prompt", ["a fox", "a tiny fox", "two foxes and an owl", "a fox and an owl on the left"])
def test_an_image_edited_with_its_own_prompt_stays_as_it_is(prompt: str) -> None:
    for seed in range(20):
        made = read(f"{prompt} in the snow", seed=seed).prompt
        assert read(f"{prompt} in the snow", like=made).prompt == made


@pytest.mark.parametrize(
    ("prompt", "resolved", "left_out"),
    [
        ("two foxes 3 left", "two fox", ("3 left",)),  # outside the image
        ("a fox 2 left 1 right 1 up", "a fox 2 left 1 up", ("1 right",)),
        ("a fox and an owl hue 90", "a fox and an owl", ("hue 90",)),
        ("a blue fox hue 90", "a fox hue 90", ("blue",)),
        ("in the snow 2 left", "in the snow", ("2 left",)),
    ],
)
def test_changes_that_cannot_be_combined_are_left_out(prompt: str, resolved: str, left_out: tuple[str, ...]) -> None:
    assert (read(prompt).prompt, read(prompt).left_out) == (resolved, left_out)


@pytest.mark.parametrize(
    ("prompt", "resolved"),
    [
        ("a blue bird in the snow", "a bird in the snow hue 240"),
        ("un oiseau bleu", "a bird hue 240"),
        ("ein blauer Vogel", "a bird hue 240"),
        ("two green foxes", "two fox hue 90"),
        ("a tiny green fox", "a tiny fox hue 90"),
        ("an orange fox", "a fox"),  # as it is
        ("a blue fox", "a fox hue 195"),  # a synonym of fox, too
        ("a blue cat", "a cat hue 195"),
        ("an orange flat hot dog", "a flat hot dog"),
        ("一只蓝色的狐狸", "a fox hue 195"),
        ("ピンクの狐", "a fox hue 315"),
        ("a fox on blue", "a fox on a blue background"),
    ],
)
def test_a_colour_changes_the_hue_of_a_drawing(prompt: str, resolved: str) -> None:
    reading = read(prompt)
    assert reading.prompt == resolved
    assert reading.left_out == ()


@pytest.mark.parametrize(
    ("prompt", "resolved", "left_out"),
    [
        ("a black man", "a man", "black"),  # people keep the colours of their drawings
        ("a pink elephant", "an elephant", "pink"),  # in shades of gray
        ("a white cat", "a cat", "white"),
        ("a green fox and an owl", "a fox and an owl", "green"),
        ("a blue grumblefish and a fox", "a fox", "blue"),
        ("a blue-eyed fox", "a fox", "blue"),
        ("a fox green forest", "a fox in the forest", "green"),
        ("a red bird and a blue bird", "a bird hue 15", "blue"),
    ],
)
def test_a_colour_that_a_thing_cannot_have_is_left_out(prompt: str, resolved: str, left_out: str) -> None:
    assert (read(prompt).prompt, read(prompt).left_out) == (resolved, (left_out,))


def test_what_was_understood_has_its_colour() -> None:
    assert [item.words for item in read("two blue birds at night").understood] == ["two blue birds", "at night"]
    assert read("a crimson fox").note == "Understood: a red fox (from crimson fox)."
    assert read("un oiseau bleu").note == "Understood: a blue bird (from oiseau bleu)."
    assert read("a fox in blue without a hat").left_out == ("blue", "without a hat")


# Things in all styles: of others, one prompt may have drawings in several styles
COMPLETE = [thing for thing in VOCABULARY_OF_STARTER.things.values() if "styles" not in thing]
OWN_WORDS = [word for thing in COMPLETE for word in thing["words"]]
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


def test_loras_change_nothing_and_weights_are_left_out() -> None:
    lora = prompts.understand(GenerationRequest("a puppy <lora:x:1>"), STARTER)
    assert lora is not None
    assert (lora.prompt, lora.left_out) == ("a dog", ())
    weighted = prompts.understand(GenerationRequest("a (puppy:1.4)", prompt_weighting=True), STARTER)
    assert weighted is not None
    assert (weighted.prompt, weighted.left_out) == ("a dog", ("weights",))
    assert prompts.understand(GenerationRequest("a (puppy:99)", prompt_weighting=True), STARTER) is None


def test_models_without_a_vocabulary_read_the_prompt_themselves() -> None:
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
