"""Scenes made beforehand for a GPU, and put together there."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from transformers import CLIPTokenizer

from canvas.training import autoencoder, classifier, denoiser, text
from canvas.training import scenes as scenes_module
from canvas.training.backgrounds import BACKGROUNDS, COLOURS
from canvas.training.banks import make_banks
from canvas.training.checkpoints import Clock
from canvas.training.composer import Composer
from canvas.training.layers import prepare_layers
from canvas.training.packages import STYLES
from canvas.training.parallel import Team
from canvas.training.pixels import random_crops, to_tensor
from canvas.training.placing import PLACEMENTS, overlay
from canvas.training.presets import GPU
from canvas.training.rows import NONE, SceneRows
from canvas.training.scenes import Scene, SceneMaker
from canvas.training.source import (
    TELLINGS,
    BankedScenes,
    FreshScenes,
    failed_banks,
    load_bank,
    open_source,
)
from canvas.training.sprites import Sprites, Thing
from canvas.training.tokens import QuickTokens, prepare_tokenizer, tokenize

MINI = replace(
    GPU,
    image_size=64,
    table_rows=500,
    backgrounds=2,
    vae_channels=8,
    vae_batch=4,
    vocabulary_size=700,
    layer_columns=8,
    text_hidden=64,
    text_layers=1,
    text_batch=8,
    unet_channels=(32, 64),
    unet_batch=4,
    first_scenes=8,
    cache_size=32,
    fresh_per_step=1,
    judge_width=8,
    judge_batch=4,
)
NAMES = ("dog", "cat", "owl", "bus")
CPU = torch.device("cpu")
STYLE = STYLES.index("3d")


@pytest.fixture(scope="module")
def sprites() -> Sprites:
    things = [Thing(name, (name,), name, "1F400") for name in NAMES]
    pairs = np.array(list(itertools.product(range(len(things)), range(len(STYLES)))), np.int32)
    pictures = []
    for thing, style in pairs:
        picture = Image.new("RGBA", (48, 48))
        draw = ImageDraw.Draw(picture)
        draw.ellipse((4 + 2 * thing, 8, 44, 40), fill=(50 * style, 200 - 40 * thing, 90, 255))
        pictures.append(np.asarray(picture.resize((48, 48), Image.Resampling.BICUBIC)))
    return Sprites(things, np.stack(pictures), *pairs.T, versions={})


@pytest.fixture(scope="module")
def work(sprites: Sprites, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("work")
    (work / "near.json").write_text(json.dumps([["hound"], [], [], []]))
    prepare_tokenizer(sprites, MINI, work)
    make_banks(sprites, MINI, work)
    return work


@pytest.mark.parametrize("name", ["meadow", "sea", "pink"])
@pytest.mark.parametrize(
    ("things", "layout"),
    [
        ((0,), {}),
        ((1,), {"size": "huge"}),
        ((2,), {"count": 3}),
        ((3, 0), {}),
        ((1,), {"count": 2}),
    ],
)
def test_both_ways_put_a_scene_together_alike(
    sprites: Sprites,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    things: tuple[int, ...],
    layout: dict[str, int],
) -> None:
    size, place = 128, BACKGROUNDS.index(name)
    background = Image.effect_noise((size, size), 60).convert("RGB")
    monkeypatch.setattr(scenes_module, "paint", lambda *_: background.copy())
    scene = Scene(things, STYLE, place, **layout)  # type: ignore[arg-type]
    painted = np.asarray(SceneMaker(sprites, size, seed=1).paint(scene))

    backgrounds = np.zeros((len(BACKGROUNDS), 1, 3, size, size), np.uint8)
    backgrounds[place, 0] = np.asarray(background).transpose(2, 0, 1)
    overlays = np.zeros((len(sprites.pictures) + 1, len(PLACEMENTS), 5, size, size), np.uint8)
    for row, drawing in enumerate(sprites.pictures):
        overlays[row] = [overlay(drawing, placement, size) for placement in PLACEMENTS]
    composer = Composer(torch.from_numpy(backgrounds), torch.from_numpy(overlays))
    composed = composer.paint(SceneRows.of([scene], sprites), torch.Generator())

    assert (composed[0] - to_tensor(painted[None])[0]).abs().max() < 3 / 127.5
    assert np.abs(painted.astype(int) - np.asarray(background)).max() > 20

    rows = SceneRows.of([scene], sprites)
    drawn = FreshScenes(SceneMaker(sprites, size, seed=1), TELLINGS["scenes"], CPU, None)
    covered = drawn.covered(rows)
    assert torch.equal(covered, BankedScenes(rows, composer, seed=1).covered(rows))
    assert 0 < covered.float().mean() < 1


def test_a_row_tells_all_of_a_scene(sprites: Sprites) -> None:
    pair = Scene((2, 0), STYLE, 3, named_place=False)
    three = Scene((1,), STYLE, 4, count=3)
    rows = SceneRows.of([pair, three], sprites, np.array([[0, 7, 1], [0, 8, 1]]))
    assert rows.things.tolist() == [[2, 0], [1, NONE]]
    assert rows.drawings.tolist() == [
        [sprites.index[2, STYLE], sprites.index[0, STYLE]],
        [sprites.index[1, STYLE], NONE],
    ]
    names = list(PLACEMENTS)
    assert [names[row] for row in rows.placements[0].tolist()] == ["left", "right"]
    assert names[int(rows.placements[1, 0])] == "3"
    assert rows.style.tolist() == [STYLE, STYLE]
    assert rows.place.tolist() == [3, 4]
    assert rows.told_place.tolist() == [len(BACKGROUNDS), 4]
    assert rows.ids.tolist() == [[0, 7, 1], [0, 8, 1]]


def test_the_banks_are_filled_to_the_last_row(sprites: Sprites, work: Path) -> None:
    for name in ("scenes", "words", "pairs"):
        source = open_source(name, sprites, MINI, work, CPU, seed=1)
        table = source.table  # type: ignore[attr-defined]
        assert len(table) == MINI.table_rows
        assert (table.ids[:, 0] == 0).all()
        assert (table.ids[:, 1] > 0).all()
    source = open_source("scenes", sprites, MINI, work, CPU, seed=1)
    composer = source.composer  # type: ignore[attr-defined]
    assert (composer.backgrounds.flatten(2).float().std(2) > 0).sum() >= 2 * (
        len(BACKGROUNDS) - len(COLOURS)
    )
    assert (composer.overlays[:-1, :, 3].flatten(2).amax(2) == 255).all()
    assert not composer.overlays[-1].any()


def test_quick_tokens_are_those_of_the_pipeline(sprites: Sprites, work: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    maker = SceneMaker(sprites, 64, seed=5, near=[["hound"], [], [], []])
    captions = [maker.draw().caption for _ in range(500)] + ["", "An owl,  4k.", "x" * 300]
    assert (QuickTokens(tokenizer)(captions) == tokenize(tokenizer, captions).numpy()).all()


def test_a_bank_that_failed_says_why(tmp_path: Path) -> None:
    failed_banks(tmp_path).write_text("2 of 16 processes failed")
    with pytest.raises(RuntimeError, match="2 of 16"):
        load_bank(tmp_path, "words", CPU)


def test_crops_lie_on_the_grid_of_the_latents() -> None:
    rows = torch.arange(32.0).view(1, 1, 32, 1).expand(6, 3, 32, 32)
    crops = random_crops(rows, 16, torch.Generator().manual_seed(1))
    assert crops.shape == (6, 3, 16, 16)
    starts = crops[:, 0, 0, 0]
    assert (starts % 8 == 0).all()
    assert len(starts.unique()) > 1
    assert torch.equal(crops[0, 0, :, 0], starts[0] + torch.arange(16))


def test_the_recipe_runs_from_the_banks(sprites: Sprites, work: Path) -> None:
    def train(function: object) -> None:
        function(Team(), sprites, MINI, work, Clock(0.5 / 60, CPU))  # type: ignore[operator]

    train(autoencoder.train_autoencoder)
    prepare_layers(sprites, MINI, work, CPU)
    train(text.train_text)
    train(denoiser.train_denoiser)
    train(classifier.train_judge)
    assert classifier.load_judge(work, len(NAMES)).side == MINI.judge_side
    assert (work / "unet" / "config.json").exists()
