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
    spans = tile_spans(length, side, side // 4)
    assert spans[0][0] == 0
    assert spans[-1][1] == length
    assert all(end - start == min(side, length) for start, end in spans)
    for (_, end), (start, _) in itertools.pairwise(spans):
        assert end - start >= side // 4 - 1


def forward(sample: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor]:
    return (sample * 2,)


@pytest.mark.parametrize("size", [(16, 16), (20, 9), (40, 33)])
def test_pointwise_function_is_unchanged_by_tiles(size: tuple[int, int]) -> None:
    sample = torch.randn((2, 4, *size), generator=torch.Generator().manual_seed(0))
    done: list[int] = []
    [result] = TiledUNetForward([forward], 128, 8, done.append)(sample, 1, None)
    assert torch.allclose(result, sample * 2, atol=1e-5)
    assert done == list(range(1, tile_count((size[0] * 8, size[1] * 8), 128, 8) + 1))


def test_tiles_of_pixels_match_tiles_of_latents() -> None:
    pixels = torch.randn((1, 3, 160, 264), generator=torch.Generator().manual_seed(0))
    small = blend_tiles(lambda tile, *_: tile[..., ::8, ::8], pixels, 16, (8, 1))
    assert torch.allclose(small, pixels[..., ::8, ::8], atol=1e-5)
    whole = torch.nn.functional.interpolate(small, scale_factor=8)
    large = blend_tiles(lambda tile, *_: torch.nn.functional.interpolate(tile, scale_factor=8),
                   small, 16, (1, 8))  # fmt: skip
    assert torch.allclose(large, whole, atol=1e-5)


def test_tiles_of_different_brightness_blend_without_a_seam() -> None:
    levels = itertools.cycle([0.0, 40.0, -30.0, 10.0, 25.0])

    def uneven(sample: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor]:
        return (torch.full_like(sample, next(levels)),)

    [result] = TiledUNetForward([uneven], 128, 8, lambda done: None)(torch.zeros(1, 1, 28, 40), 1, 0)
    assert result.std() > 10
    for along, length in ((2, 28), (3, 40)):
        steps = result.diff(dim=along).abs().mean(dim=(0, 1, 5 - along))
        edges = {edge for span in tile_spans(length, 16, 4) for edge in span} - {0, length}
        at_seams = torch.tensor(sorted(edges)) - 1
        inside = torch.ones(length - 1, dtype=torch.bool)
        inside[at_seams] = False
        assert steps[at_seams].mean() <= steps[inside].mean()


def test_sdxl_time_ids_are_limited_to_the_tile() -> None:
    time_ids = []

    def forward_with_time_ids(sample: Any, *_: Any, added_cond_kwargs: Any, **__: Any) -> tuple[Any]:
        time_ids.append(added_cond_kwargs["time_ids"].tolist())
        return (sample,)

    added = {"time_ids": torch.tensor([[4096, 4096, 0, 0, 4096, 4096]])}
    tiled = TiledUNetForward([forward_with_time_ids], 1024, 8, lambda done: None)
    tiled(torch.zeros(1, 4, 128, 128), 1, None, added_cond_kwargs=added)
    assert time_ids == [[[1024, 1024, 0, 0, 1024, 1024]]]
    assert added["time_ids"].max() == 4096
