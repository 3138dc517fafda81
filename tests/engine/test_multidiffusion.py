from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from canvas.engine.multidiffusion import TiledUNetForward, blend_tiles, tile_count, tile_spans


@given(st.integers(1, 5000), st.integers(8, 1024))
def test_spans_cover_all_and_overlap(length: int, side: int) -> None:
    found = tile_spans(length, side, side // 4)
    assert found[0][0] == 0
    assert found[-1][1] == length
    assert all(end - start == min(side, length) for start, end in found)
    for (_, end), (start, _) in itertools.pairwise(found):
        assert end - start >= side // 4 - 1


def forward(sample: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor]:
    return (sample * 2,)


@pytest.mark.parametrize("size", [(16, 16), (20, 9), (40, 33)])
def test_what_looks_at_no_neighbours_is_the_same_in_windows(size: tuple[int, int]) -> None:
    sample = torch.randn((2, 4, *size), generator=torch.Generator().manual_seed(0))
    seen: list[int] = []
    [found] = TiledUNetForward([forward], 128, 8, seen.append)(sample, 1, None)
    assert torch.allclose(found, sample * 2, atol=1e-5)
    assert seen == list(range(1, tile_count((size[0] * 8, size[1] * 8), 128, 8) + 1))


def test_windows_in_pixels_lie_on_those_in_latents() -> None:
    pixels = torch.randn((1, 3, 160, 264), generator=torch.Generator().manual_seed(0))
    small = blend_tiles(lambda window: window[..., ::8, ::8], pixels, 16, (8, 1))
    assert torch.allclose(small, pixels[..., ::8, ::8], atol=1e-5)
    whole = torch.nn.functional.interpolate(small, scale_factor=8)
    large = blend_tiles(lambda part: torch.nn.functional.interpolate(part, scale_factor=8),
                   small, 16, (1, 8))  # fmt: skip
    assert torch.allclose(large, whole, atol=1e-5)


def test_windows_of_different_brightness_join_without_a_step() -> None:
    """The worst that a model can do: each window far brighter or darker than the next."""
    levels = itertools.cycle([0.0, 40.0, -30.0, 10.0, 25.0])

    def uneven(sample: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor]:
        return (torch.full_like(sample, next(levels)),)

    [found] = TiledUNetForward([uneven], 128, 8, lambda done: None)(torch.zeros(1, 1, 28, 40), 1, 0)
    assert found.std() > 10
    for along, length in ((2, 28), (3, 40)):
        steps = found.diff(dim=along).abs().mean(dim=(0, 1, 5 - along))
        edges = {edge for span in tile_spans(length, 16, 4) for edge in span} - {0, length}
        at_borders = torch.tensor(sorted(edges)) - 1
        inside = torch.ones(length - 1, dtype=torch.bool)
        inside[at_borders] = False
        assert steps[at_borders].mean() <= steps[inside].mean()


def test_sdxl_is_told_the_size_of_a_window() -> None:
    told = []

    def listening(sample: Any, *_: Any, added_cond_kwargs: Any, **__: Any) -> tuple[Any]:
        told.append(added_cond_kwargs["time_ids"].tolist())
        return (sample,)

    added = {"time_ids": torch.tensor([[4096, 4096, 0, 0, 4096, 4096]])}
    windowed = TiledUNetForward([listening], 1024, 8, lambda done: None)
    windowed(torch.zeros(1, 4, 128, 128), 1, None, added_cond_kwargs=added)
    assert told == [[[1024, 1024, 0, 0, 1024, 1024]]]
    assert added["time_ids"].max() == 4096
