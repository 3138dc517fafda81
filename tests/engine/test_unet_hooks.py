"""Hooks on the UNet: latents in float32, the predicted image, and a scheduler for one image."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, LCMScheduler, UniPCMultistepScheduler

from canvas.engine import step_callback
from canvas.engine.step_callback import UNetHooks, build_scheduler, temporary_scheduler
from canvas.schedulers import MODEL_DEFAULT


class UNet(torch.nn.Module):
    """Doubles its sample and notes the dtypes of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.dtype = torch.bfloat16
        self.config = SimpleNamespace(in_channels=9)
        self.dtypes: list[Any] = []

    def forward(self, sample: Any, timestep: Any, embeds: Any, timestep_cond: Any = None) -> tuple[torch.Tensor, str]:
        self.dtypes = [sample.dtype, None if timestep_cond is None else timestep_cond.dtype]
        return sample[:, :4] * 2, "more"


@pytest.fixture
def pipeline() -> Any:
    return SimpleNamespace(
        unet=UNet(), vae=None, vae_scale_factor=8, guidance_scale=3.0, scheduler=EulerDiscreteScheduler()
    )


def test_a_unet_of_16_bits_gets_and_gives_float32_outside(pipeline: Any) -> None:
    sample, timestep = torch.ones(1, 9, 2, 2), torch.tensor(5.0)
    with UNetHooks(pipeline).attached():
        prediction, more = pipeline.unet(sample, timestep, None)
        assert pipeline.unet.dtypes == [torch.bfloat16, None]
        pipeline.unet(sample, timestep, None, timestep_cond=torch.ones(1, 8))
        assert pipeline.unet.dtypes == [torch.bfloat16, torch.bfloat16]
    assert (prediction.dtype, more) == (torch.float32, "more")
    pipeline.unet(sample, timestep, None)
    assert pipeline.unet.dtypes == [torch.float32, None], "outside of the block"


@pytest.mark.parametrize("guided", [True, False])
def test_the_predicted_image_includes_the_guidance(
    pipeline: Any, monkeypatch: pytest.MonkeyPatch, guided: bool
) -> None:
    monkeypatch.setattr(step_callback, "predict_original_sample", lambda *values: values)
    sample = torch.stack([torch.full((9, 2, 2), 1.0), torch.full((9, 2, 2), 5.0)][: 1 + guided])
    hooks = UNetHooks(pipeline)
    with hooks.attached():
        assert hooks.predict_x0() is None
        pipeline.unet(sample, torch.tensor(5.0), None)
        result: Any = hooks.predict_x0()
    latents, noise, timestep, scheduler = result
    assert (timestep, scheduler) == (5.0, pipeline.scheduler)
    assert torch.equal(latents, torch.ones(1, 4, 2, 2))
    assert torch.equal(noise, torch.full((1, 4, 2, 2), 2 + 3.0 * (10 - 2) if guided else 2.0))
    assert hooks.predict_x0() is None, "outside of the block"


def test_noise_has_the_size_of_the_latents(pipeline: Any) -> None:
    noise = UNetHooks(pipeline).make_noise((64, 32), torch.Generator().manual_seed(0))
    assert (noise.shape, noise.dtype) == ((1, 9, 4, 8), torch.float32)


@pytest.mark.parametrize("missing", ["unet", "vae"])
def test_pipelines_without_a_unet_and_vae_are_not_changed(pipeline: Any, missing: str) -> None:
    assert UNetHooks(pipeline).has_unet
    unet = pipeline.unet
    delattr(pipeline, missing)
    hooks = UNetHooks(pipeline)
    assert not hooks.has_unet
    with hooks.attached():
        unet(torch.ones(1, 9, 2, 2), torch.tensor(5.0), None)
        assert unet.dtypes[0] == torch.float32
        assert hooks.predict_x0() is None


@pytest.mark.parametrize(
    ("name", "expected"), [(MODEL_DEFAULT, EulerDiscreteScheduler), ("UniPC", UniPCMultistepScheduler)]
)
def test_each_image_has_a_new_scheduler_with_timesteps_on_the_cpu(pipeline: Any, name: str, expected: type) -> None:
    original = pipeline.scheduler
    with temporary_scheduler(pipeline, name, 4):
        assert type(pipeline.scheduler) is expected
        assert pipeline.scheduler is not original
        pipeline.scheduler.set_timesteps(4, device="meta")
        assert pipeline.scheduler.timesteps.device.type == "cpu"
    assert pipeline.scheduler is original


@pytest.mark.parametrize(("name", "replaced"), [(MODEL_DEFAULT, True), ("UniPC", False), ("an own one", False)])
def test_models_of_flow_matching_keep_their_kind_of_scheduler(pipeline: Any, name: str, replaced: bool) -> None:
    original = pipeline.scheduler = FlowMatchEulerDiscreteScheduler()
    with temporary_scheduler(pipeline, name, 4):
        assert type(pipeline.scheduler) is FlowMatchEulerDiscreteScheduler
        assert (pipeline.scheduler is not original) is replaced
        assert "set_timesteps" not in vars(pipeline.scheduler)
    assert pipeline.scheduler is original


@pytest.mark.parametrize(("steps", "original_steps"), [(4, 50), (60, 60)])
def test_lcm_has_at_least_as_many_original_steps(pipeline: Any, steps: int, original_steps: int) -> None:
    scheduler = build_scheduler(pipeline.scheduler.config, "LCM", steps)
    assert isinstance(scheduler, LCMScheduler)
    assert scheduler.config.original_inference_steps == original_steps
    assert "original_inference_steps" not in build_scheduler(pipeline.scheduler.config, "Euler", steps).config
