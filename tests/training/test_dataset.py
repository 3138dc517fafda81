"""Precomputed scenes and compositing on a device, compared with scenes generated on the fly."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from transformers import CLIPTokenizer

from canvas.training import scene_generator
from canvas.training.art_packages import STYLES
from canvas.training.assets import Concept, SpriteSet
from canvas.training.autoencoder import random_crops, train_autoencoder
from canvas.training.backgrounds import BACKGROUNDS, COLOURS
from canvas.training.config import GPU
from canvas.training.dataset import (
    CAPTION_MODES,
    BatchCompositor,
    OnTheFlyDataset,
    PrecomputedDataset,
    load_array,
    make_dataset,
    precompute_error_path,
    to_tensor,
)
from canvas.training.denoiser import train_denoiser
from canvas.training.distributed import ProcessGroup
from canvas.training.eval_classifier import load_classifier, train_classifier
from canvas.training.placement import PLACEMENTS, render_overlay
from canvas.training.precompute import build_precomputed_arrays
from canvas.training.scene_generator import Scene, SceneGenerator
from canvas.training.scene_table import PAD, SceneBatch
from canvas.training.text_encoder import train_text_encoder
from canvas.training.time_budget import TimeBudget
from canvas.training.token_targets import compute_token_targets
from canvas.training.tokenizer import FastBatchTokenizer, prepare_tokenizer, tokenize

MINI = replace(
    GPU,
    image_size=64,
    precomputed_scenes=500,
    precomputed_backgrounds=2,
    vae_channels=8,
    vae_batch_size=4,
    vocabulary_size=700,
    token_columns=8,
    text_hidden_size=64,
    text_layers=1,
    text_batch_size=8,
    unet_channels=(32, 64),
    unet_batch_size=4,
    cache_warmup=8,
    cache_size=32,
    new_samples_per_step=1,
    classifier_width=8,
    classifier_batch_size=4,
)
NAMES = ("dog", "cat", "owl", "bus")
CPU = torch.device("cpu")
STYLE = STYLES.index("3d")


@pytest.fixture(scope="module")
def sprites() -> SpriteSet:
    concepts = [Concept(name, (name,), name, "1F400") for name in NAMES]
    pairs = np.array(list(itertools.product(range(len(concepts)), range(len(STYLES)))), np.int32)
    images = []
    for concept, style in pairs:
        image = Image.new("RGBA", (48, 48))
        draw = ImageDraw.Draw(image)
        draw.ellipse((4 + 2 * concept, 8, 44, 40), fill=(50 * style, 200 - 40 * concept, 90, 255))
        images.append(np.asarray(image.resize((48, 48), Image.Resampling.BICUBIC)))
    return SpriteSet(concepts, np.stack(images), *pairs.T, versions={})


@pytest.fixture(scope="module")
def work(sprites: SpriteSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("work")
    (work / "synonyms.json").write_text(json.dumps([["hound"], [], [], []]))
    prepare_tokenizer(sprites, MINI, work)
    build_precomputed_arrays(sprites, MINI, work)
    return work


@pytest.mark.parametrize("name", ["meadow", "sea", "pink"])
@pytest.mark.parametrize(
    ("concepts", "layout"),
    [((0,), {}), ((1,), {"size": "huge"}), ((2,), {"count": 3}), ((3, 0), {}), ((1,), {"count": 2})],
)
def test_compositor_gives_the_image_and_mask_of_the_generator(
    sprites: SpriteSet, monkeypatch: pytest.MonkeyPatch, name: str, concepts: tuple[int, ...], layout: dict[str, int]
) -> None:
    size, place = 128, BACKGROUNDS.index(name)
    background = Image.effect_noise((size, size), 60).convert("RGB")
    monkeypatch.setattr(scene_generator, "render_background", lambda *_: background.copy())
    scene = Scene(concepts, STYLE, place, **layout)  # type: ignore[arg-type]
    generator = SceneGenerator(sprites, size, seed=1)
    rendered = np.asarray(generator.render(scene))

    backgrounds = np.zeros((len(BACKGROUNDS), 1, 3, size, size), np.uint8)
    backgrounds[place, 0] = np.asarray(background).transpose(2, 0, 1)
    overlays = np.zeros((len(sprites.images) + 1, len(PLACEMENTS), 5, size, size), np.uint8)
    for row, image in enumerate(sprites.images):
        overlays[row] = [render_overlay(image, placement, size) for placement in PLACEMENTS]
    compositor = BatchCompositor(torch.from_numpy(backgrounds), torch.from_numpy(overlays))
    batch = SceneBatch.from_scenes([scene], sprites)
    composited = compositor.render(batch, torch.Generator())

    assert (composited[0] - to_tensor(rendered[None])[0]).abs().max() < 3 / 127.5
    assert np.abs(rendered.astype(int) - np.asarray(background)).max() > 20

    on_the_fly = OnTheFlyDataset(generator, CAPTION_MODES["scenes"], CPU, None)
    mask = on_the_fly.foreground_mask(batch)
    assert torch.equal(mask, PrecomputedDataset(batch, compositor, 1).foreground_mask(batch))
    assert 0 < mask.float().mean() < 1


def test_scene_batch_holds_all_fields_of_a_scene(sprites: SpriteSet) -> None:
    pair = Scene((2, 0), STYLE, 3, place_in_caption=False)
    three = Scene((1,), STYLE, 4, count=3)
    token_ids = np.array([[0, 7, 1], [0, 8, 1]])
    batch = SceneBatch.from_scenes([pair, three], sprites, token_ids)
    assert batch.concepts.tolist() == [[2, 0], [1, PAD]]
    assert batch.sprites.tolist() == [
        [sprites.index[2, STYLE], sprites.index[0, STYLE]],
        [sprites.index[1, STYLE], PAD],
    ]
    names = list(PLACEMENTS)
    assert [names[row] for row in batch.placements[0].tolist()] == ["left", "right"]
    assert names[int(batch.placements[1, 0])] == "3"
    assert batch.style.tolist() == [STYLE, STYLE]
    assert batch.place.tolist() == [3, 4]
    assert batch.caption_place.tolist() == [len(BACKGROUNDS), 4]
    assert batch.token_ids.tolist() == token_ids.tolist()


def test_precomputed_arrays_are_complete(sprites: SpriteSet, work: Path) -> None:
    for mode in CAPTION_MODES:
        dataset = make_dataset(mode, sprites, MINI, work, CPU, seed=1)
        assert isinstance(dataset, PrecomputedDataset)
        assert len(dataset.table) == MINI.precomputed_scenes
        assert (dataset.table.token_ids[:, 0] == 0).all()
        assert (dataset.table.token_ids[:, 1] > 0).all()
    dataset = make_dataset("scenes", sprites, MINI, work, CPU, seed=1)
    compositor = dataset.compositor  # type: ignore[attr-defined]
    assert (compositor.backgrounds.flatten(2).float().std(2) > 0).sum() >= 2 * (len(BACKGROUNDS) - len(COLOURS))
    assert (compositor.overlays[:-1, :, 3].flatten(2).amax(2) == 255).all()
    assert not compositor.overlays[-1].any()


def test_precomputed_synonyms_have_no_images(sprites: SpriteSet, work: Path) -> None:
    dataset = make_dataset("synonyms", sprites, MINI, work, CPU, seed=1)
    with pytest.raises(ValueError, match="captions only"):
        dataset.sample_images(1)


def test_fast_tokenizer_gives_the_ids_of_the_pipeline(sprites: SpriteSet, work: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    generator = SceneGenerator(sprites, 64, seed=5, synonyms=[["hound"], [], [], []])
    captions = [generator.sample().caption for _ in range(500)] + ["", "An owl,  4k.", "x" * 300]
    assert (FastBatchTokenizer(tokenizer)(captions) == tokenize(tokenizer, captions).numpy()).all()


def test_load_array_raises_the_error_of_the_precompute_stage(tmp_path: Path) -> None:
    precompute_error_path(tmp_path).write_text("2 of 16 processes failed")
    with pytest.raises(RuntimeError, match="2 of 16"):
        load_array(tmp_path, "synonyms", CPU)


def test_random_crops_are_aligned_to_the_latent_grid() -> None:
    images = torch.arange(32.0).view(1, 1, 32, 1).expand(6, 3, 32, 32)
    crops = random_crops(images, 16, torch.Generator().manual_seed(1))
    assert crops.shape == (6, 3, 16, 16)
    starts = crops[:, 0, 0, 0]
    assert (starts % 8 == 0).all()
    assert len(starts.unique()) > 1
    assert torch.equal(crops[0, 0, :, 0], starts[0] + torch.arange(16))


def test_all_stages_train_on_precomputed_arrays(sprites: SpriteSet, work: Path) -> None:
    def train(function: object) -> None:
        budget = TimeBudget(0.5 / 60, CPU)
        function(ProcessGroup(), sprites, MINI, work, budget)  # type: ignore[operator]

    train(train_autoencoder)
    compute_token_targets(sprites, MINI, work, CPU)
    train(train_text_encoder)
    train(train_denoiser)
    train(train_classifier)
    assert load_classifier(work, len(NAMES)).input_size == MINI.classifier_size
    assert (work / "unet" / "config.json").exists()
