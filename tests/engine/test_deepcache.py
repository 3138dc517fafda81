"""DeepCache and guidance caching: exact where they must be, close elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from canvas.engine.optimizations.deepcache import (
    CACHED,
    CACHED_STEP_COST,
    COND_ONLY,
    FULL,
    apply_deepcache,
    cache_schedule,
    make_forwards,
    unet_calls_per_step,
)
from canvas.presets import PRESETS, SpeedPreset


class Pipeline:
    """A pipeline with nothing but a UNet."""

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


@pytest.mark.slow
@pytest.mark.parametrize(("blocks", "layers", "cross_attention"), SHAPES)
@pytest.mark.parametrize("branch_depth", [1, 2, 9])
@torch.no_grad()
def test_cached_step_equals_full_step_for_the_same_input(
    blocks: int, layers: int, cross_attention: bool, branch_depth: int
) -> None:
    unet = make_unet(blocks, layers, cross_attention=cross_attention)
    sample, embeds = torch.randn(2, 4, 16, 16), torch.randn(2, 5, 16)
    expected = unet(sample, 500, embeds, return_dict=False)[0]
    for kind in (CACHED, COND_ONLY):
        with apply_deepcache(Pipeline(unet), [FULL, kind], branch_depth=branch_depth):
            first = unet(sample, 500, encoder_hidden_states=embeds, return_dict=False)[0]
            second = unet(sample, 500, encoder_hidden_states=embeds, return_dict=False)[0]
        assert torch.equal(first, expected)
        torch.testing.assert_close(second, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_cached_step_uses_the_new_input() -> None:
    unet = make_unet()
    sample, embeds = torch.randn(1, 4, 16, 16), torch.randn(1, 5, 16)
    with apply_deepcache(Pipeline(unet), [FULL, CACHED, CACHED]):
        first, second, third = (unet(sample + offset, 500, embeds, return_dict=False)[0] for offset in (0, 0.1, 0.2))
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    exact = unet(sample + 0.1, 500, embeds, return_dict=False)[0]
    assert (second - exact).abs().mean() < (first - exact).abs().mean()


@torch.no_grad()
def test_batch_size_is_one_without_guidance() -> None:
    unet = make_unet()
    sample, embeds = torch.randn(1, 4, 16, 16), torch.randn(1, 5, 16)
    with apply_deepcache(Pipeline(unet), [FULL, COND_ONLY, CACHED]):
        shapes = {unet(sample, 500, embeds, return_dict=False)[0].shape for _ in range(4)}
    assert shapes == {sample.shape}


@torch.no_grad()
def test_first_step_is_full_if_nothing_is_cached() -> None:
    unet = make_unet()
    sample, embeds = torch.randn(2, 4, 16, 16), torch.randn(2, 5, 16)
    expected = unet(sample, 500, embeds, return_dict=False)[0]
    with apply_deepcache(Pipeline(unet), [CACHED]):
        assert torch.equal(unet(sample, 500, embeds, return_dict=False)[0], expected)


def test_unet_is_restored_after_a_failure() -> None:
    unet = make_unet()
    with pytest.raises(RuntimeError), apply_deepcache(Pipeline(unet), [FULL, CACHED]):
        assert "forward" in vars(unet)
        unet(torch.randn(1, 3, 16, 16), 500, torch.randn(1, 5, 16))
    assert "forward" not in vars(unet)
    assert not any(module._forward_pre_hooks for module in unet.modules())


def test_other_denoisers_are_not_changed() -> None:
    layer = torch.nn.Linear(2, 2)
    with apply_deepcache(Pipeline(layer), [FULL, CACHED]):
        assert "forward" not in vars(layer)
    with apply_deepcache(object(), [FULL, CACHED]):
        pass


def test_a_full_schedule_keeps_the_forward_method() -> None:
    unet = make_unet()
    assert make_forwards(unet, [FULL] * 3, 2) == [unet.forward] * 2
    assert unet.forward not in make_forwards(unet, [FULL, CACHED], 2)


def test_quality_schedule_is_full() -> None:
    assert cache_schedule(PRESETS["quality"], 20) == [FULL] * 20


@pytest.mark.parametrize("preset", ["balanced", "turbo"])
@pytest.mark.parametrize("steps", [1, 2, 4, 15, 20, 50])
def test_schedules_start_full_and_end_without_guidance(preset: str, steps: int) -> None:
    schedule = cache_schedule(PRESETS[preset], steps)
    assert len(schedule) == steps
    assert schedule[0] == FULL
    assert schedule.count(CACHED) <= steps / 2
    if steps >= 15:
        assert set(schedule) == {FULL, COND_ONLY, CACHED}
        first_unguided = schedule.index(COND_ONLY)
        assert FULL not in schedule[first_unguided:]


def test_steps_after_the_warmup_are_cached_between_whole_ones() -> None:
    preset = SpeedPreset(warmup_steps=1, cache_interval=3, cfg_ratio=0.5)
    kinds = [FULL, FULL, CACHED, CACHED, COND_ONLY, CACHED, CACHED, COND_ONLY]
    assert cache_schedule(preset, len(kinds)) == kinds
    assert unet_calls_per_step(preset, len(kinds), guided=True) == pytest.approx((6 + 4 * CACHED_STEP_COST) / 8)
    assert unet_calls_per_step(preset, len(kinds), guided=False) == pytest.approx((4 + 4 * CACHED_STEP_COST) / 8)
    assert unet_calls_per_step(SpeedPreset(), 4, guided=True) == 2
