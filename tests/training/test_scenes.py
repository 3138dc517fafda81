"""What training may see, and what it is called."""

import itertools
from pathlib import Path
from random import Random

import numpy as np
import pytest

from canvas.training.backgrounds import BACKGROUNDS, PLACES, paint
from canvas.training.captions import article, caption, plural, subject_phrase
from canvas.training.packages import STYLES
from canvas.training.scenes import NEAR_SYNONYMS, SceneMaker, is_held_out, is_held_out_pair
from canvas.training.sprites import Sprites, Thing, icon_key, read_things_file

NAMES = ("dog", "cat", "apple", "owl", "ship", "moon", "tree", "robot", "bus", "key")


@pytest.fixture(scope="module")
def sprites() -> Sprites:
    things = [Thing(name, (name, f"{name} thing"), name, "1F400", ("puppy",)) for name in NAMES]
    styles = [STYLES.index(style) for style in ("cartoon", "flat", "3d")]
    pairs = np.array(list(itertools.product(range(len(things)), styles)), np.int32)
    pixels = np.full((len(pairs), 16, 16, 4), 255, np.uint8)
    return Sprites(things, pixels, *pairs.T)


def test_held_out_combinations_are_never_drawn(sprites: Sprites) -> None:
    held = [
        (thing, style, place)
        for thing in range(len(NAMES))
        for style in sprites.styles_of(thing)
        for place in range(len(BACKGROUNDS))
        if is_held_out(sprites.things[thing], style, place)
    ]
    assert held
    maker = SceneMaker(sprites, 64, seed=1)
    for scene in (maker.draw(pairs=0.5) for _ in range(3000)):
        for thing in scene.things:
            assert (thing, scene.style, scene.place) not in held
        if len(scene.things) == 2:
            assert not is_held_out_pair(*(sprites.things[thing] for thing in scene.things))


def test_near_synonyms_are_in_no_caption(sprites: Sprites) -> None:
    maker = SceneMaker(sprites, 64, seed=2)
    assert "puppy" in NEAR_SYNONYMS
    captions = " ".join(maker.draw().caption for _ in range(500))
    assert "puppy" not in captions
    assert "dog thing" in captions


def test_equal_seeds_paint_equal_scenes(sprites: Sprites) -> None:
    first, first_scenes = SceneMaker(sprites, 64, seed=3).batch(4)
    second, second_scenes = SceneMaker(sprites, 64, seed=3).batch(4)
    assert first_scenes == second_scenes
    assert (first == second).all()
    assert first.shape == (4, 64, 64, 3)


@pytest.mark.parametrize("place", PLACES)
def test_a_place_looks_different_every_time(place: str) -> None:
    one, other = (np.asarray(paint(place, 64, Random(seed)), int) for seed in (1, 2))
    assert one.shape == (64, 64, 3)
    assert np.abs(one - other).max() > 0


def test_words_around_a_thing() -> None:
    assert article("owl") == "an owl"
    assert article("unicorn") == "a unicorn"
    assert article("headphones") == "headphones"
    assert plural("red apple") == "red apples"
    assert plural("cherry") == "cherries"
    assert plural("mouse") == "mice"
    assert subject_phrase(["fox"], 3, "", Random(0)) == "three foxes"
    told = caption("a fox", "snow", "3d", "", Random(0))
    assert "a fox" in told.lower()
    assert "3d" in told


def test_labels_find_their_icons() -> None:
    assert icon_key("globe showing Europe-Africa") == "globe-showing-europe-africa"
    assert icon_key("woman’s boot") == "womans-boot"


def test_the_things_file_tells_names_and_labels(tmp_path: Path) -> None:
    path = tmp_path / "things.txt"
    path.write_text("# note\nfox\ndog face: dog, doggy\nsheep = ewe: sheep\n")
    assert read_things_file(path) == {
        "fox": ("fox",),
        "dog face": ("dog", "doggy"),
        "ewe": ("sheep",),
    }
