"""Precomputes backgrounds, overlays and captions for a GPU, with all CPU cores.

One process cannot render images and write captions as fast as a GPU trains on them. The results
are arrays of small integers that stay in GPU memory during training. An array gets its final name
when it is complete: training waits for the arrays that it needs, so the text encoder can train
while backgrounds are still being rendered.
"""

import logging
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
from numpy.lib.format import open_memmap
from transformers import CLIPTokenizer

from canvas.training.assets import SpriteSet
from canvas.training.backgrounds import BACKGROUNDS, render_background
from canvas.training.config import TrainingConfig
from canvas.training.dataset import CAPTION_MODES, array_path, make_scene_generator, precompute_error_path
from canvas.training.placement import PLACEMENTS, render_overlay
from canvas.training.scene_table import NUM_FIELDS, SceneBatch
from canvas.training.tokenizer import FastBatchTokenizer

logger = logging.getLogger(__name__)
CAPTION_BATCH_SIZE = 2000
# In the order of the stages that need them: text, denoiser, classifier.
BUILD_ORDER = (("overlays", "synonyms"), ("scenes", "backgrounds"), ("pairs",))


def build_precomputed_arrays(sprites: SpriteSet, config: TrainingConfig, work: Path) -> None:
    """Write `backgrounds.npy`, `overlays.npy` and a table of scenes for each of CAPTION_MODES.

    Raises RuntimeError if a process fails.
    """
    started = time.monotonic()
    precompute_error_path(work).unlink(missing_ok=True)
    _ = sprites.images, sprites.index  # computed once, not in every process
    for names in BUILD_ORDER:
        for name in names:
            open_memmap(_part_path(work, name), "w+", *_array_spec(name, sprites, config))
        _run_processes(names, sprites, config, work)
        for name in names:
            os.replace(_part_path(work, name), array_path(work, name))
        logger.info("%s: done after %.1f s", " and ".join(names), time.monotonic() - started)


def _part_path(work: Path, name: str) -> Path:
    return work / f"{name}.npy.part"


def _array_spec(name: str, sprites: SpriteSet, config: TrainingConfig) -> tuple[type, tuple[int, ...]]:
    """Type and shape."""
    image = (config.image_size, config.image_size)
    if name == "backgrounds":
        return np.uint8, (len(BACKGROUNDS), config.precomputed_backgrounds, 3, *image)
    if name == "overlays":  # the last row stays empty
        return np.uint8, (len(sprites.images) + 1, len(PLACEMENTS), 5, *image)
    return np.int16, (config.precomputed_scenes, NUM_FIELDS + config.token_grid.num_tokens)


def _run_processes(names: tuple[str, ...], sprites: SpriteSet, config: TrainingConfig, work: Path) -> None:
    # Forked processes inherit modules and sprites; spawned ones take ten seconds to start.
    context = multiprocessing.get_context("fork")
    world_size = os.cpu_count() or 1
    processes = [
        context.Process(target=_fill, args=(names, rank, world_size, sprites, config, work))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    exit_codes = [process.exitcode for process in processes if process.exitcode]
    if exit_codes:
        message = f"{len(exit_codes)} of {world_size} processes failed at {names}: {exit_codes}"
        precompute_error_path(work).write_text(message)
        raise RuntimeError(message)


def _fill(
    names: tuple[str, ...], rank: int, world_size: int, sprites: SpriteSet, config: TrainingConfig, work: Path
) -> None:
    """Fill this process's part of the arrays."""
    fill_functions: dict[str, Callable[..., None]] = {"backgrounds": _fill_backgrounds, "overlays": _fill_overlays}
    for name in names:
        array = np.load(_part_path(work, name), mmap_mode="r+")
        if name in fill_functions:
            fill_functions[name](array, rank, world_size, sprites, config)
        else:
            _fill_table(name, array, rank, world_size, sprites, config, work)


def _fill_backgrounds(
    backgrounds: np.ndarray, rank: int, world_size: int, _: SpriteSet, config: TrainingConfig
) -> None:
    rng = Random(31 + rank)
    for variant in range(rank, config.precomputed_backgrounds, world_size):
        for place, name in enumerate(BACKGROUNDS):
            image = render_background(name, config.image_size, rng)
            backgrounds[place, variant] = np.asarray(image).transpose(2, 0, 1)


def _fill_overlays(
    overlays: np.ndarray, rank: int, world_size: int, sprites: SpriteSet, config: TrainingConfig
) -> None:
    for row in range(rank, len(sprites.images), world_size):
        for column, placement in enumerate(PLACEMENTS):
            overlay = render_overlay(sprites.images[row], placement, config.image_size)
            overlays[row, column] = overlay


def _fill_table(
    name: str, table: np.ndarray, rank: int, world_size: int, sprites: SpriteSet, config: TrainingConfig, work: Path
) -> None:
    mode = CAPTION_MODES[name]
    seed = 1000 * (1 + list(CAPTION_MODES).index(name)) + rank
    generator = make_scene_generator(sprites, config, mode, seed, work)
    tokenize = FastBatchTokenizer(CLIPTokenizer.from_pretrained(work / "tokenizer"))
    first, last = (len(table) * part // world_size for part in (rank, rank + 1))
    for start in range(first, last, CAPTION_BATCH_SIZE):
        stop = min(last, start + CAPTION_BATCH_SIZE)
        scenes = [generator.sample(mode.pair_ratio) for _ in range(start, stop)]
        token_ids = tokenize([scene.caption for scene in scenes])
        batch = SceneBatch.from_scenes(scenes, sprites, token_ids)
        table[start:stop] = batch.table.numpy()
