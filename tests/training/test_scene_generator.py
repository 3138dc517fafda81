"""Scenes and their captions: held-out combinations, vocabulary, reproducibility."""

import itertools
from pathlib import Path
from random import Random

import numpy as np
import pytest

from canvas.training.art_packages import STYLES
from canvas.training.assets import Concept, SpriteSet, icon_key, read_concepts_file
from canvas.training.backgrounds import BACKGROUNDS, PLACES, render_background
from canvas.training.captions import NEAR_SYNONYMS, article, caption, plural, subject_phrase
from canvas.training.scene_generator import SceneGenerator, is_held_out, is_held_out_pair

NAMES = ("dog", "cat", "apple", "owl", "ship", "moon", "tree", "robot", "bus", "key")


@pytest.fixture(scope="module")
def sprites() -> SpriteSet:
    concepts = [Concept(name, (name, f"{name} thing"), name, "1F400", ("puppy",)) for name in NAMES]
    styles = [STYLES.index(style) for style in ("cartoon", "flat", "3d")]
    pairs = np.array(list(itertools.product(range(len(concepts)), styles)), np.int32)
    pixels = np.full((len(pairs), 16, 16, 4), 255, np.uint8)
    return SpriteSet(concepts, pixels, *pairs.T)


def test_held_out_combinations_are_never_sampled(sprites: SpriteSet) -> None:
    held_out = [
        (concept, style, place)
        for concept in range(len(NAMES))
        for style in sprites.styles
        for place in range(len(BACKGROUNDS))
        if is_held_out(sprites.concepts[concept], style, place)
    ]
    assert held_out
    generator = SceneGenerator(sprites, 64, seed=1)
    for scene in (generator.sample(pair_ratio=0.5) for _ in range(3000)):
        for concept in scene.concepts:
            assert (concept, scene.style, scene.place) not in held_out
        if len(scene.concepts) == 2:
            assert not is_held_out_pair(*(sprites.concepts[each] for each in scene.concepts))


def test_near_synonyms_occur_in_no_caption(sprites: SpriteSet) -> None:
    generator = SceneGenerator(sprites, 64, seed=2)
    assert "puppy" in NEAR_SYNONYMS
    captions = " ".join(generator.sample().caption for _ in range(500))
    assert "puppy" not in captions
    assert "dog thing" in captions


def test_equal_seeds_give_equal_scenes_and_images(sprites: SpriteSet) -> None:
    first, first_scenes = SceneGenerator(sprites, 64, seed=3).sample_images(4)
    second, second_scenes = SceneGenerator(sprites, 64, seed=3).sample_images(4)
    assert first_scenes == second_scenes
    assert (first == second).all()
    assert first.shape == (4, 64, 64, 3)


@pytest.mark.parametrize("place", PLACES)
def test_backgrounds_vary_with_the_seed(place: str) -> None:
    first, second = (np.asarray(render_background(place, 64, Random(s)), int) for s in (1, 2))
    assert first.shape == (64, 64, 3)
    assert np.abs(first - second).max() > 0


def test_captions_follow_english_grammar() -> None:
    assert article("owl") == "an owl"
    assert article("unicorn") == "a unicorn"
    assert article("headphones") == "headphones"
    assert article("milk") == "milk"
    assert plural("red apple") == "red apples"
    assert plural("cherry") == "cherries"
    assert plural("mouse") == "mice"
    assert subject_phrase(["fox"], 3, "", Random(0)) == "three foxes"
    text = caption("a fox", "snow", "3d", "", Random(0))
    assert "a fox" in text.lower()
    assert "3d" in text


def test_icon_key_normalizes_labels() -> None:
    assert icon_key("globe showing Europe-Africa") == "globe-showing-europe-africa"
    assert icon_key("woman’s boot") == "womans-boot"


def test_concepts_file_gives_words_by_label(tmp_path: Path) -> None:
    path = tmp_path / "concepts.txt"
    path.write_text("# note\nfox\ndog face: dog, doggy\nsheep = ewe: sheep\n")
    assert read_concepts_file(path) == {"fox": ("fox",), "dog face": ("dog", "doggy"), "ewe": ("sheep",)}
