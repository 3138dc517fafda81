from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from canvas.engine import upscaling
from canvas.engine.upscaling import NETWORKS, enlarge, enlarge_with_detail, spans
from canvas.errors import GenerationCancelled, InvalidInput

needs_networks = pytest.mark.skipif(
    not upscaling.has_networks(), reason="the optional packages are not installed"
)


def waves(size: tuple[int, int]) -> Image.Image:
    """Smooth shapes with edges, without any regularity of the tiles."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    planes = [np.sin(x / a + y / b) > c for a, b, c in ((9, 31, 0), (23, 11, 0.4), (17, 7, -0.3))]
    soft = [127 + 60 * plane + 50 * np.sin(x / 13) for plane in planes]
    return Image.fromarray(np.stack(soft, -1).clip(0, 255).astype(np.uint8))


def steps_at(picture: Any, columns: list[int]) -> tuple[float, float]:
    """Mean step between neighbouring columns: at the given ones, and at all the others."""
    pixels = np.asarray(picture, float)
    steps = np.abs(np.diff(pixels, axis=1)).mean(axis=(0, 2))
    inside = np.ones(len(steps), bool)
    borders = [column - 1 for column in columns]
    inside[borders] = False
    return steps[borders].mean(), steps[inside].mean()


@pytest.mark.parametrize("scale", [2, 4])
def test_lanczos_enlarges_plainly(scale: int) -> None:
    larger = enlarge(waves((50, 30)), scale, "lanczos")
    assert larger.size == (50 * scale, 30 * scale)
    again = np.asarray(larger.resize((50, 30), Image.Resampling.BOX), float)
    assert np.abs(again - np.asarray(waves((50, 30)), float)).mean() < 4


def test_too_large_a_result_is_refused() -> None:
    with pytest.raises(InvalidInput, match="at most 100 million pixels"):
        enlarge(Image.new("RGB", (4000, 4000)), 4, "lanczos")


@needs_networks
@pytest.mark.parametrize("scale", [2, 4])
def test_network_keeps_the_picture_and_sharpens_its_edges(scale: int) -> None:
    small = waves((64, 48))
    larger = enlarge(small, scale, "illustration")
    assert larger.size == (64 * scale, 48 * scale)
    again = np.asarray(larger.resize(small.size, Image.Resampling.BOX), float)
    assert np.abs(again - np.asarray(small, float)).mean() < 8
    plain = enlarge(small, scale, "lanczos")
    steepest = [np.abs(np.diff(np.asarray(p, float), axis=1)).max() for p in (larger, plain)]
    assert steepest[0] > steepest[1]


@needs_networks
def test_network_in_tiles_gives_what_one_pass_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = waves((100, 70))
    seen: list[tuple[int, int]] = []
    whole = np.asarray(enlarge(picture, 2, "illustration"), int)
    small = replace(NETWORKS["illustration"], tile=48)
    monkeypatch.setattr(upscaling, "NETWORKS", {"illustration": small})
    tiled = enlarge(picture, 2, "illustration", lambda done, total: seen.append((done, total)))
    assert np.abs(np.asarray(tiled, int) - whole).max() <= 1
    assert seen == [(done, 6) for done in range(7)]


@needs_networks
def test_network_stops_within_a_tile() -> None:
    cancelled = threading.Event()
    with pytest.raises(GenerationCancelled):
        enlarge(waves((400, 32)), 2, "illustration", lambda *_: cancelled.set(), cancelled)


@given(st.integers(1, 5000), st.integers(64, 1024))
def test_spans_cover_all_and_overlap(length: int, side: int) -> None:
    found = spans(length, side, side // 4)
    assert found[0][0] == 0
    assert found[-1][1] == length
    assert all(end - start == min(side, length) for start, end in found)
    for (_, end), (start, _) in itertools.pairwise(found):
        assert end - start >= side // 4 - 1


def test_tiles_that_do_nothing_leave_the_picture() -> None:
    picture = waves((75, 50))
    same = enlarge_with_detail(picture, 2, 64, lambda tile, number, total: tile)
    difference = np.asarray(same, int) - np.asarray(enlarge(picture, 2, "lanczos"), int)
    assert np.abs(difference).max() <= 1


def test_tiles_of_different_brightness_show_no_seam() -> None:
    """The worst that a model can do, each tile 40 brighter or darker than the next."""

    def redraw(tile: Image.Image, number: int, total: int) -> Image.Image:
        return tile.point(lambda value: value // 2 + 20 * (number * 7 % 5))

    drawn = enlarge_with_detail(Image.new("RGB", (128, 96), (120, 120, 120)), 2, 64, redraw)
    assert np.asarray(drawn).std() > 10
    for length, turned in ((256, drawn), (192, drawn.transpose(Image.Transpose.ROTATE_90))):
        borders = [edge for span in spans(length, 64, 16) for edge in span]
        at_borders, inside = steps_at(turned, sorted({*borders} - {0, length}))
        assert at_borders <= inside


MEASURE = """
import resource, sys
from PIL import Image
from canvas.engine.upscaling import enlarge
picture = Image.radial_gradient("L").resize((1024, 1024)).convert("RGB")
assert enlarge(picture, 4, sys.argv[1]).size == (4096, 4096)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.long
@needs_networks
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("upscaler", ["lanczos", "illustration", "photo"])
def test_four_times_1024_stays_under_3_gb(upscaler: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, upscaler], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) * 1024 < 3e9
