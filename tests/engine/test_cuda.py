"""CUDA graphs on a GPU: captured, replayed, without synchronization, with the same images."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL.Image import Image

from canvas.benchmark.similarity import ssim
from canvas.catalog import MODELS, ModelSpec
from canvas.engine import step_callback
from canvas.engine.device import Device, detect_device
from canvas.engine.generate import generate
from canvas.engine.lora_adapters import applied_loras
from canvas.engine.optimizations.cuda_graphs import MAX_GRAPHS, CudaGraphCallable
from canvas.engine.optimizations.deepcache import CACHE_ATTRIBUTE, CACHED, COND_ONLY, FULL, apply_deepcache
from canvas.engine.pipeline_cache import PipelineCache
from canvas.models.download import LocalModel
from canvas.models.loras import read_lora
from canvas.request import GenerationRequest, ProgressUpdate
from canvas.schedulers import SCHEDULERS
from tests.engine.test_deepcache import Pipeline, make_unet
from tests.models.test_loras import make_lora

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

GPU = Device("cuda", "float16", "for the test")
CPU = Device("cpu", "float32", "for the test")
STARTER = MODELS["starter"]
# Two draw noise on the CPU in every step; UniPC itself copies values to the GPU.
SYNCHRONIZING = ("Euler a", "LCM", "TCD", "UniPC")


def load(spec: ModelSpec, device: Device = GPU) -> Any:
    return PipelineCache(device).get(spec, LocalModel(Path(spec.name), ""))


@pytest.fixture(scope="module")
def starter() -> Any:
    return load(STARTER)


def render(pipeline: Any, device: Device = GPU, on_step: Any = None, **options: Any) -> Image:
    request = GenerationRequest(**{"prompt": "a fox in the snow, 3d", "seed": 7, **options})
    (image,) = generate(
        pipeline,
        request.with_defaults(STARTER),
        spec=STARTER,
        device=device,
        on_step=on_step or (lambda _: None),
        cancelled=threading.Event(),
    )
    assert image.image is not None
    return image.image


def test_gpu_is_detected_and_measured(tmp_path: Path) -> None:
    device = detect_device(tmp_path)
    assert (device.name, device.dtype) == ("cuda", "float16")
    assert device.gflops
    assert device.gflops > 1000
    assert 0 < device.kernel_launch_seconds < 1e-3
    assert detect_device(tmp_path, measure=False).gflops is None


def test_function_is_run_then_captured_then_replayed() -> None:
    calls = []

    def double(tensor: torch.Tensor, *, more: float) -> tuple[torch.Tensor]:
        calls.append(tensor.shape)
        return (tensor * 2 + more,)

    captured = CudaGraphCallable(double)
    results = [captured(torch.full((3,), float(n), device="cuda"), more=1.0)[0] for n in range(5)]
    assert len(calls) == 2, "later calls are replayed"
    for number, tensor in enumerate(results):
        assert tensor.tolist() == [2.0 * number + 1] * 3, "results are not overwritten"
    assert captured(torch.zeros(3, device="cuda"), more=5.0)[0].tolist() == [5.0] * 3
    assert len(calls) == 3, "another number needs another graph"


def test_number_of_graphs_is_limited() -> None:
    calls = []

    def same(tensor: torch.Tensor) -> tuple[torch.Tensor]:
        calls.append(1)
        return (tensor + 0,)

    captured = CudaGraphCallable(same)
    for size in range(1, MAX_GRAPHS + 3):
        for _ in range(3):
            captured(torch.ones(size, device="cuda"))
    assert len(calls) == 2 * (MAX_GRAPHS + 2)
    captured(torch.ones(1, device="cuda"))
    assert len(calls) == 2 * (MAX_GRAPHS + 2) + 1, "the oldest was evicted"


@pytest.mark.parametrize("schedule", [[FULL] * 6, [FULL, COND_ONLY, CACHED, FULL, COND_ONLY, CACHED]])
@torch.no_grad()
def test_replayed_passes_equal_the_model(schedule: list[str]) -> None:
    unet = make_unet(3, 2).cuda()
    encoder_hidden_states = torch.randn(2, 5, 16, device="cuda")
    samples = [torch.randn(2, 4, 16, 16, device="cuda") for _ in schedule]
    timesteps = [torch.tensor(900.0 - 100 * step, device="cuda") for step in range(len(schedule))]
    runs: list[list[torch.Tensor]] = []
    for _ in range(3):
        with apply_deepcache(Pipeline(unet), schedule):
            steps = zip(samples, timesteps, strict=True)
            runs.append([unet(s, t, encoder_hidden_states, return_dict=False)[0] for s, t in steps])
    for others in zip(*runs, strict=True):
        for other in others[1:]:
            torch.testing.assert_close(other, others[0], atol=1e-4, rtol=1e-3)
    exact = unet(samples[0], timesteps[0], encoder_hidden_states, return_dict=False)[0]
    torch.testing.assert_close(runs[2][0], exact, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("preset", ["quality", "balanced", "turbo"])
def test_image_is_reproducible(starter: Any, preset: str) -> None:
    options: dict[str, Any] = {"preset": preset, "num_inference_steps": 8, "guidance_scale": 3.0}
    first, *others = (render(starter, **options) for _ in range(3))
    assert all(ssim(first, other) > 0.999 for other in others)
    assert others[0].tobytes() == others[1].tobytes(), "both are replayed"


def test_image_is_similar_to_that_of_the_cpu(starter: Any) -> None:
    assert ssim(render(starter), render(load(STARTER, CPU), CPU)) > 0.95


@pytest.fixture
def sync_debug_mode() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("sync_debug_mode")
@pytest.mark.parametrize("scheduler", [name for name in SCHEDULERS if name not in SYNCHRONIZING])
@pytest.mark.parametrize("preset", ["quality", "balanced"])
def test_no_synchronization_between_steps(
    starter: Any, monkeypatch: pytest.MonkeyPatch, scheduler: str, preset: str
) -> None:
    monkeypatch.setattr(step_callback, "PREVIEW_DELAY", 0.0)
    monkeypatch.setattr(step_callback, "PREVIEW_INTERVAL", 0.0)
    monkeypatch.setattr(step_callback, "PREVIEW_SHARE", 1.0)
    previews = []

    def on_step(step: ProgressUpdate) -> None:
        previews.append(step.preview)
        between = step.step < step.num_steps - 1
        torch.cuda.set_sync_debug_mode("error" if between else "default")

    options: dict[str, Any] = {"scheduler": scheduler, "preset": preset, "guidance_scale": 3.0}
    for _ in range(3):
        render(starter, on_step=on_step, num_inference_steps=12, **options)
    assert any(previews), "previews are shown nevertheless"


def test_lora_is_applied_and_removed(tmp_path: Path, starter: Any) -> None:
    lora = read_lora(make_lora(tmp_path / "sparkle.safetensors", starter.unet))
    plain = [render(starter, num_inference_steps=8) for _ in range(2)][-1]
    with applied_loras(starter, [(lora, 1.0)]):
        with_lora = render(starter, num_inference_steps=8)
    assert with_lora.tobytes() != plain.tobytes()
    assert render(starter, num_inference_steps=8).tobytes() == plain.tobytes()


def test_unloading_a_model_frees_its_graphs(starter: Any) -> None:
    cache = PipelineCache(GPU)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    for _ in range(3):
        pipeline = cache.get(STARTER, LocalModel(Path(STARTER.name), ""))
        render(pipeline, preset="balanced", num_inference_steps=12)
        render(pipeline, preset="balanced", num_inference_steps=12)
        assert CACHE_ATTRIBUTE in vars(pipeline.unet)
        assert torch.cuda.memory_reserved() > before
        del pipeline
        cache.clear()
        assert torch.cuda.memory_reserved() <= before + 2 * 2**20
