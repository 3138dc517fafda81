"""DeepCache and guidance caching: exact where they must be, close elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from canvas.engine.optimizations.deepcache import (
    CACHED,
    CACHED_STEP_COST,
    COND_ONLY,
    CONTROLLED,
    FULL,
    CachedUNetForward,
    apply_deepcache,
    cache_schedule,
    cuda_graph_unet,
    make_forwards,
    unet_calls_per_step,
)
from canvas.presets import PRESETS, SpeedPreset


class Pipeline:
    """A pipeline with nothing but a UNet."""

    def __init__(self, unet: Any) -> None:
        self.unet = unet


def make_unet(blocks: int = 2, layers: int = 1, *, cross_attention: bool = True, **config: Any) -> Any:
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
        **config,
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


class Passes:
    """Notes the passes of a UNet whose predictions tell them apart."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def full_forward(self, sample: Any, timestep: Any, embeds: Any, **options: Any) -> tuple[Any, Any]:
        self.calls.append(("full", sample.flatten().tolist(), embeds.flatten().tolist(), options))
        return sample**2, sample + 100

    def shallow_forward(self, sample: Any, timestep: Any, embeds: Any, features: Any, **options: Any) -> tuple[Any]:
        self.calls.append(("shallow", sample.flatten().tolist(), features.flatten().tolist(), options))
        return (sample + 0.5,)


def test_later_steps_reuse_the_features_and_the_guidance() -> None:
    passes: Any = Passes()
    forward = CachedUNetForward(passes, [FULL, CACHED, COND_ONLY, CACHED, FULL])
    embeds = torch.tensor([[5.0], [6.0]])
    samples = [torch.tensor([[index], [index + 1.0]]) for index in range(1, 7)]
    results = [forward(sample, 500, embeds)[0].flatten().tolist() for sample in samples]
    # The guidance is 2² - 1² = 3 and is subtracted for the unconditional branch, until the next full step.
    assert results == [[1, 4], [0.5, 3.5], [13, 16], [2.5, 5.5], [25, 36], [36, 49]]
    assert [call[:3] for call in passes.calls] == [
        ("full", [1, 2], [5, 6]),
        ("shallow", [3], [102]),
        ("full", [4], [6]),
        ("shallow", [5], [104]),
        ("full", [5, 6], [5, 6]),
        ("full", [6, 7], [5, 6]),
    ]


def test_without_guidance_later_steps_reuse_the_features() -> None:
    passes: Any = Passes()
    forward = CachedUNetForward(passes, [CACHED, CACHED, COND_ONLY])
    results = [float(forward(torch.tensor([[sample]]), 500, torch.ones(1, 1))[0]) for sample in (2.0, 3.0, 4.0)]
    assert results == [4, 3.5, 16]
    assert [call[0] for call in passes.calls] == ["full", "shallow", "full"]


def test_later_steps_get_the_conditional_half_of_the_added_inputs() -> None:
    passes: Any = Passes()
    forward = CachedUNetForward(passes, [FULL, CACHED])
    added = {"time_ids": torch.tensor([1, 2]), "image_embeds": [torch.tensor([3, 4]), torch.tensor([5, 6])]}
    for _ in range(2):
        forward(torch.ones(2, 1), 500, torch.ones(2, 1), added_cond_kwargs=added)
    first, second = (call[3]["added_cond_kwargs"] for call in passes.calls)
    assert first == added
    assert second["time_ids"].tolist() == [2]
    assert [each.tolist() for each in second["image_embeds"]] == [[4], [6]]


@torch.no_grad()
@pytest.mark.parametrize("act", [None, "silu"])
def test_a_cached_step_of_sdxl_equals_a_full_one_for_the_same_input(act: str | None) -> None:
    unet = make_unet(
        3,
        cross_attention=False,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 6 * 8,
        time_embedding_act_fn=act,
    )
    sample, embeds = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 16)
    added = {"text_embeds": torch.randn(2, 16), "time_ids": torch.rand(2, 6) * 100}
    expected = unet(sample, 500, embeds, added_cond_kwargs=added, return_dict=False)[0]
    with apply_deepcache(Pipeline(unet), [FULL, CACHED]):
        for _ in range(2):
            output = unet(sample, 500, embeds, added_cond_kwargs=added, return_dict=False)[0]
            torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-4)


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


@torch.no_grad()
def test_cached_steps_reuse_the_residuals_of_controlnets() -> None:
    unet = make_unet()
    shapes = [(16, 16), (16, 16), (16, 8), (32, 8)]

    class Controlled:
        residuals = tuple(torch.randn(2, channels, side, side) for channels, side in shapes)

        def __call__(self, *args: Any, **options: Any) -> Any:
            options |= {
                "down_block_additional_residuals": self.residuals,
                "mid_block_additional_residual": torch.ones(2, 32, 8, 8),
            }
            return type(unet).forward(unet, *args, **options)

    vars(unet)[CONTROLLED] = Controlled()
    sample, embeds = torch.randn(2, 4, 16, 16), torch.randn(2, 5, 16)
    with apply_deepcache(Pipeline(unet), [FULL, CACHED]):
        first, second = (unet(sample, 500, embeds, return_dict=False)[0] for _ in range(2))
    torch.testing.assert_close(second, first, atol=1e-5, rtol=1e-4)


def test_a_replaced_forward_method_is_kept() -> None:
    unet = make_unet()
    forward = unet.forward = lambda *_: ("replaced",)
    with apply_deepcache(Pipeline(unet), [FULL, CACHED]):
        assert unet.forward is forward
    assert unet.forward is forward


def test_a_unet_on_a_gpu_keeps_its_graphs_while_its_weights_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    unet = make_unet()
    assert cuda_graph_unet(unet, 2) is None, "on a CPU"
    monkeypatch.setattr(type(unet), "device", torch.device("cuda"))
    graphs = cuda_graph_unet(unet, 2)
    assert graphs is not None
    assert cuda_graph_unet(unet, 2) is graphs
    assert make_forwards(unet, [FULL], 1) != [unet.forward]
    assert cuda_graph_unet(unet, 1) is not graphs
    graphs = cuda_graph_unet(unet, 1)
    first = next(unet.parameters())
    first.data = first.data.clone()
    assert cuda_graph_unet(unet, 1) not in (None, graphs)


@pytest.mark.parametrize("name", ["peft_config", CONTROLLED, "encoder_hid_proj"])
def test_unets_with_added_layers_have_no_cuda_graphs(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    unet = make_unet()
    monkeypatch.setattr(type(unet), "device", torch.device("cuda"))
    vars(unet)[name] = object()
    assert cuda_graph_unet(unet, 2) is None


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
