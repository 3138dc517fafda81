"""Shortcuts through the UNet: exact where they must be, close where they may be."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from canvas.engine.optimizations.deepcache import (
    CACHED,
    COND_ONLY,
    FULL,
    apply_deepcache,
    cache_schedule,
)
from canvas.presets import PRESETS


class Pipeline:
    """What `apply_deepcache` needs of a pipeline: its UNet."""

    def __init__(self, unet: Any) -> None:
        self.unet = unet


def make_unet(blocks: int = 2, layers: int = 1, *, cross_attention: bool = True) -> Any:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    down = ["CrossAttnDownBlock2D"] * (blocks - 1) + ["DownBlock2D"]
    up = ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * (blocks - 1)
    if not cross_attention:
        down[0], up[-1] = "DownBlock2D", "UpBlock2D"
    return UNet2DConditionModel(
        block_out_channels=tuple(16 * (i + 1) for i in range(blocks)),
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        layers_per_block=layers,
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=8,
    ).eval()


SHAPES = [(2, 1, True), (2, 2, True), (3, 1, False), (4, 2, True), (1, 2, False)]


@pytest.mark.parametrize(("blocks", "layers", "cross_attention"), SHAPES)
@pytest.mark.parametrize("kept", [1, 2, 9])
@torch.no_grad()
def test_a_cached_pass_on_the_same_input_gives_the_same_output(
    blocks: int, layers: int, cross_attention: bool, kept: int
) -> None:
    """Nothing changed since the full pass, so leaving out the deep layers changes nothing."""
    unet = make_unet(blocks, layers, cross_attention=cross_attention)
    sample, words = torch.randn(2, 4, 16, 16), torch.randn(2, 5, 16)
    expected = unet(sample, 500, words, return_dict=False)[0]
    for kind in (CACHED, COND_ONLY):
        with apply_deepcache(Pipeline(unet), [FULL, kind], layers=kept):
            first = unet(sample, 500, encoder_hidden_states=words, return_dict=False)[0]
            second = unet(sample, 500, encoder_hidden_states=words, return_dict=False)[0]
        assert torch.equal(first, expected)
        torch.testing.assert_close(second, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_cached_pass_sees_the_new_input() -> None:
    unet = make_unet()
    sample, words = torch.randn(1, 4, 16, 16), torch.randn(1, 5, 16)
    with apply_deepcache(Pipeline(unet), [FULL, CACHED, CACHED]):
        first, second, third = (
            unet(sample + change, 500, words, return_dict=False)[0] for change in (0, 0.1, 0.2)
        )
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    exact = unet(sample + 0.1, 500, words, return_dict=False)[0]
    assert (second - exact).abs().mean() < (first - exact).abs().mean()


@torch.no_grad()
def test_without_guidance_there_is_one_picture_in_the_batch() -> None:
    unet = make_unet()
    sample, words = torch.randn(1, 4, 16, 16), torch.randn(1, 5, 16)
    with apply_deepcache(Pipeline(unet), [FULL, COND_ONLY, CACHED]):
        shapes = {unet(sample, 500, words, return_dict=False)[0].shape for _ in range(4)}
    assert shapes == {sample.shape}


@torch.no_grad()
def test_guidance_that_was_never_seen_needs_a_full_pass() -> None:
    unet = make_unet()
    sample, words = torch.randn(2, 4, 16, 16), torch.randn(2, 5, 16)
    expected = unet(sample, 500, words, return_dict=False)[0]
    with apply_deepcache(Pipeline(unet), [CACHED]):
        assert torch.equal(unet(sample, 500, words, return_dict=False)[0], expected)


def test_the_model_is_as_before_after_a_run_and_after_a_failure() -> None:
    unet = make_unet()
    with pytest.raises(RuntimeError), apply_deepcache(Pipeline(unet), [FULL, CACHED]):
        assert "forward" in vars(unet)
        unet(torch.randn(1, 3, 16, 16), 500, torch.randn(1, 5, 16))
    assert "forward" not in vars(unet)
    assert not any(module._forward_pre_hooks for module in unet.modules())


def test_models_of_another_kind_are_left_alone() -> None:
    layer = torch.nn.Linear(2, 2)
    with apply_deepcache(Pipeline(layer), [FULL, CACHED]):
        assert "forward" not in vars(layer)
    with apply_deepcache(object(), [FULL, CACHED]):
        pass


def test_quality_computes_everything() -> None:
    assert cache_schedule(PRESETS["quality"], 20) == [FULL] * 20


@pytest.mark.parametrize("preset", ["balanced", "turbo"])
@pytest.mark.parametrize("steps", [1, 2, 4, 15, 20, 50])
def test_plans_begin_in_full_and_lose_guidance_at_the_end(preset: str, steps: int) -> None:
    passes = cache_schedule(PRESETS[preset], steps)
    assert len(passes) == steps
    assert passes[0] == FULL
    assert passes.count(CACHED) <= steps / 2
    if steps >= 15:
        assert set(passes) == {FULL, COND_ONLY, CACHED}
        first_unguided = passes.index(COND_ONLY)
        assert FULL not in passes[first_unguided:]
