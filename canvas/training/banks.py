"""What a GPU needs ready before it starts, made by all cores: backgrounds, drawings, captions.

One process could not compose pictures and write captions as quickly as a GPU learns from them.
So backgrounds are painted, drawings put in their places and captions written and tokenized
beforehand, into arrays of small integers that lie on the GPU while it trains.
"""

import logging
import multiprocessing
import os
import time
from pathlib import Path
from random import Random

import numpy as np
from numpy.lib.format import open_memmap
from transformers import CLIPTokenizer

from canvas.training.backgrounds import BACKGROUNDS, paint
from canvas.training.placing import PLACEMENTS, overlay
from canvas.training.presets import Preset
from canvas.training.rows import FIELDS, SceneRows
from canvas.training.source import TELLINGS, bank_file, scene_maker
from canvas.training.sprites import Sprites
from canvas.training.tokens import tokenize

logger = logging.getLogger(__name__)
CAPTIONS_AT_ONCE = 2000


def make_banks(sprites: Sprites, preset: Preset, work: Path) -> None:
    """Fill `backgrounds.npy`, `overlays.npy` and a table of scenes for each of TELLINGS."""
    started = time.monotonic()
    picture = (preset.image_size, preset.image_size)
    tokens = preset.grid.tokens
    open_memmap(
        bank_file(work, "backgrounds"),
        "w+",
        np.uint8,
        (len(BACKGROUNDS), preset.backgrounds, 3, *picture),
    )
    open_memmap(
        bank_file(work, "overlays"),
        "w+",
        np.uint8,
        (len(sprites.pictures) + 1, len(PLACEMENTS), 5, *picture),  # the last row stays empty
    )
    for name in TELLINGS:
        open_memmap(bank_file(work, name), "w+", np.int16, (preset.table_rows, FIELDS + tokens))
    shares = os.cpu_count() or 1
    processes = [
        multiprocessing.Process(target=_fill, args=(share, shares, sprites, preset, work))
        for share in range(shares)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    failed = [process.exitcode for process in processes if process.exitcode]
    if failed:
        raise RuntimeError(f"{len(failed)} of {shares} processes failed at the banks: {failed}")
    logger.info("banks: %.1f s with %d processes", time.monotonic() - started, shares)


def _fill(share: int, shares: int, sprites: Sprites, preset: Preset, work: Path) -> None:
    """Every `shares`-th row of each array, from the `share`-th."""
    backgrounds = np.load(bank_file(work, "backgrounds"), mmap_mode="r+")
    rng = Random(31 + share)
    for variant in range(share, preset.backgrounds, shares):
        for place, name in enumerate(BACKGROUNDS):
            # Painted at twice the size, for smooth edges.
            picture = paint(name, 2 * preset.image_size, rng).reduce(2)
            backgrounds[place, variant] = np.asarray(picture).transpose(2, 0, 1)
    overlays = np.load(bank_file(work, "overlays"), mmap_mode="r+")
    for row in range(share, len(sprites.pictures), shares):
        for column, placement in enumerate(PLACEMENTS):
            overlays[row, column] = overlay(sprites.pictures[row], placement, preset.image_size)
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    for number, (name, telling) in enumerate(TELLINGS.items()):
        maker = scene_maker(sprites, preset, telling, 1000 * (number + 1) + share, work)
        table = np.load(bank_file(work, name), mmap_mode="r+")
        first, last = (len(table) * part // shares for part in (share, share + 1))
        for start in range(first, last, CAPTIONS_AT_ONCE):
            stop = min(last, start + CAPTIONS_AT_ONCE)
            scenes = [maker.draw(pairs=telling.pairs) for _ in range(start, stop)]
            ids = tokenize(tokenizer, [scene.caption for scene in scenes]).numpy()
            table[start:stop] = SceneRows.of(scenes, sprites, ids).table.numpy()
