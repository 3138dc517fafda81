"""What a GPU needs ready before it starts, made by all cores: backgrounds, drawings, captions.

One process could not compose pictures and write captions as quickly as a GPU learns from them.
So backgrounds are painted, drawings put in their places and captions written and tokenized
beforehand, into arrays of small integers that lie on the GPU while it trains. An array has its
name when it is complete: a training that wants it waits for that, and the text encoder learns
while backgrounds are still being painted.
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

from canvas.training.backgrounds import BACKGROUNDS, paint
from canvas.training.placing import PLACEMENTS, overlay
from canvas.training.presets import Preset
from canvas.training.rows import FIELDS, SceneRows
from canvas.training.source import TELLINGS, bank_file, failed_banks, scene_maker
from canvas.training.sprites import Sprites
from canvas.training.tokens import QuickTokens

logger = logging.getLogger(__name__)
CAPTIONS_AT_ONCE = 2000
# What is wanted first is made first: the text stage, then the denoiser, then the judge.
ORDER = (("overlays", "words"), ("scenes", "backgrounds"), ("pairs",))


def make_banks(sprites: Sprites, preset: Preset, work: Path) -> None:
    """Fill `backgrounds.npy`, `overlays.npy` and a table of scenes for each of TELLINGS."""
    started = time.monotonic()
    failed_banks(work).unlink(missing_ok=True)
    _ = sprites.pictures, sprites.index  # once, and not in every process
    for names in ORDER:
        for name in names:
            open_memmap(_part(work, name), "w+", *_layout(name, sprites, preset))
        _in_all_processes(names, sprites, preset, work)
        for name in names:
            os.replace(_part(work, name), bank_file(work, name))
        logger.info("%s: there after %.1f s", " and ".join(names), time.monotonic() - started)


def _part(work: Path, name: str) -> Path:
    return work / f"{name}.npy.part"


def _layout(name: str, sprites: Sprites, preset: Preset) -> tuple[type, tuple[int, ...]]:
    picture = (preset.image_size, preset.image_size)
    if name == "backgrounds":
        return np.uint8, (len(BACKGROUNDS), preset.backgrounds, 3, *picture)
    if name == "overlays":  # the last row stays empty
        return np.uint8, (len(sprites.pictures) + 1, len(PLACEMENTS), 5, *picture)
    return np.int16, (preset.table_rows, FIELDS + preset.grid.tokens)


def _in_all_processes(names: tuple[str, ...], sprites: Sprites, preset: Preset, work: Path) -> None:
    # A forked process has all modules and drawings at once; a spawned one takes ten seconds.
    context = multiprocessing.get_context("fork")
    shares = os.cpu_count() or 1
    processes = [
        context.Process(target=_fill, args=(names, share, shares, sprites, preset, work))
        for share in range(shares)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    failed = [process.exitcode for process in processes if process.exitcode]
    if failed:
        message = f"{len(failed)} of {shares} processes failed at {names}: {failed}"
        failed_banks(work).write_text(message)
        raise RuntimeError(message)


def _fill(
    names: tuple[str, ...], share: int, shares: int, sprites: Sprites, preset: Preset, work: Path
) -> None:
    fillers: dict[str, Callable[..., None]] = {
        "backgrounds": _fill_backgrounds,
        "overlays": _fill_overlays,
    }
    for name in names:
        array = np.load(_part(work, name), mmap_mode="r+")
        if name in fillers:
            fillers[name](array, share, shares, sprites, preset)
        else:
            _fill_table(name, array, share, shares, sprites, preset, work)


def _fill_backgrounds(
    backgrounds: np.ndarray, share: int, shares: int, _: Sprites, preset: Preset
) -> None:
    """Every `shares`-th variant of each place, from the `share`-th."""
    rng = Random(31 + share)
    for variant in range(share, preset.backgrounds, shares):
        for place, name in enumerate(BACKGROUNDS):
            picture = paint(name, preset.image_size, rng)
            backgrounds[place, variant] = np.asarray(picture).transpose(2, 0, 1)


def _fill_overlays(
    overlays: np.ndarray, share: int, shares: int, sprites: Sprites, preset: Preset
) -> None:
    """Every `shares`-th drawing in each of its places."""
    for row in range(share, len(sprites.pictures), shares):
        for column, placement in enumerate(PLACEMENTS):
            overlays[row, column] = overlay(sprites.pictures[row], placement, preset.image_size)


def _fill_table(
    name: str,
    table: np.ndarray,
    share: int,
    shares: int,
    sprites: Sprites,
    preset: Preset,
    work: Path,
) -> None:
    """The `share`-th of `shares` equal parts of the rows."""
    telling = TELLINGS[name]
    seed = 1000 * (1 + list(TELLINGS).index(name)) + share
    maker = scene_maker(sprites, preset, telling, seed, work)
    tokens = QuickTokens(CLIPTokenizer.from_pretrained(work / "tokenizer"))
    first, last = (len(table) * part // shares for part in (share, share + 1))
    for start in range(first, last, CAPTIONS_AT_ONCE):
        stop = min(last, start + CAPTIONS_AT_ONCE)
        scenes = [maker.draw(pairs=telling.pairs) for _ in range(start, stop)]
        ids = tokens([scene.caption for scene in scenes])
        table[start:stop] = SceneRows.of(scenes, sprites, ids).table.numpy()
