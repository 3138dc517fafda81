"""The ZeroGPU backend, in the dummy mode of the package `spaces`."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import spaces
from gradio.exceptions import Error as GradioError
from PIL import Image, ImageChops

from canvas import MODELS, GenerationRequest, Studio
from canvas.backends import local
from canvas.backends.base import GenerationTask
from canvas.backends.zerogpu import DEFAULT_DURATION, MAX_DURATION, STARTUP_SECONDS, ZeroGpuBackend, gpu_duration
from canvas.catalog import ModelSpec
from canvas.engine.device import Device
from canvas.errors import CanvasError, GenerationCancelled, GenerationFailed
from canvas.history.database import ModelEvent
from canvas.models.download import LocalModel
from canvas.request import ProgressUpdate
from canvas.settings import Settings

SPEC = MODELS["starter"]
REQUEST = GenerationRequest("a fox in the snow, 3d", seed=7, num_inference_steps=3).with_defaults(SPEC)
MODEL = LocalModel(Path(SPEC.name), SPEC.name)
TASK = GenerationTask(REQUEST, SPEC, MODEL)
GPU = Device("cuda", "float16", "requested")


@pytest.fixture
def backend(settings: Settings) -> ZeroGpuBackend:
    return ZeroGpuBackend(settings.model_copy(update={"zero_gpu": True}), lambda event: None)


class ProgressLog:
    """Records progress, and cancels after `stop_after` steps."""

    def __init__(self, stop_after: int = 1000) -> None:
        self.entries: list[str] = []
        self.cancelled = threading.Event()
        self._stop_after = stop_after

    def __call__(self, *, status: str | None = None, step: ProgressUpdate | None = None) -> None:
        self.entries.append(status or f"step {step.step if step else ''}")
        if step and step.step >= self._stop_after:
            self.cancelled.set()


@pytest.mark.parametrize("zero_gpu", [False, True])
def test_a_gpu_that_is_there_for_a_job_only_is_not_measured(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, zero_gpu: bool
) -> None:
    options: list[bool] = []
    monkeypatch.setattr(local, "detect_device", lambda *_, measure, **__: options.append(measure) or GPU)
    backend = local.LocalBackend(settings.model_copy(update={"zero_gpu": zero_gpu}), lambda event: None)
    assert backend.device is backend.device is GPU
    assert options == [not zero_gpu]


@pytest.mark.slow
def test_tasks_and_messages_are_small_and_picklable(backend: ZeroGpuBackend) -> None:
    assert len(pickle.dumps(TASK)) < 10_000
    assert pickle.loads(pickle.dumps(TASK)) == TASK  # noqa: S301 - our own
    messages = list(backend._run_on_gpu(TASK, 0.0))
    assert {kind for kind, _ in messages} == {"progress", "image"}
    assert len(pickle.loads(pickle.dumps(messages))) == len(messages)  # noqa: S301 - our own


@pytest.mark.slow
def test_image_equals_that_of_the_local_backend(settings: Settings, studio: Studio, tmp_path: Path) -> None:
    [expected] = studio.generate(REQUEST)
    space_settings = settings.model_copy(update={"zero_gpu": True, "data_dir": tmp_path / "space"})
    with Studio(space_settings) as space:
        space.warm_up(wait=True)
        assert space.model_status("starter").location == "memory"
        job = space.submit(REQUEST)
        [actual] = job.wait()
        assert job.progress.step == 3
        expected_pixels, actual_pixels = (
            Image.open(owner.image_path(image.filename)).convert("RGB")
            for owner, image in ((studio, expected), (space, actual))
        )
    assert ImageChops.difference(expected_pixels, actual_pixels).getbbox() is None


@pytest.mark.slow
def test_each_step_is_reported_and_cancelling_takes_one_step(backend: ZeroGpuBackend) -> None:
    progress = ProgressLog()
    assert len(list(backend.generate(TASK, progress, progress.cancelled))) == 1
    assert progress.entries == ["loading", "running", "step 1", "step 2", "step 3"]
    long = replace(TASK, request=replace(REQUEST, num_inference_steps=150))
    progress = ProgressLog(stop_after=2)
    with pytest.raises(GenerationCancelled):
        list(backend.generate(long, progress, progress.cancelled))
    assert progress.entries[-1] == "step 2"


def test_error_of_the_gpu_process_is_raised(backend: ZeroGpuBackend, tmp_path: Path) -> None:
    broken = replace(TASK, local=LocalModel(tmp_path, "nowhere"))
    progress = ProgressLog()
    with pytest.raises(CanvasError, match="no diffusers pipeline"):
        list(backend.generate(broken, progress, progress.cancelled))


def test_the_message_of_zerogpu_is_raised(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def reject(task: GenerationTask, seconds: float) -> Iterator[None]:
        yield from ()
        raise GradioError("You have exceeded your GPU quota")

    monkeypatch.setattr(local, "detect_device", lambda *_, **__: GPU)
    monkeypatch.setattr(spaces, "GPU", lambda run, duration: reject)
    backend = ZeroGpuBackend(settings.model_copy(update={"zero_gpu": True}), lambda event: None)
    with pytest.raises(GenerationFailed, match="ZeroGPU: You have exceeded your GPU quota"):
        list(backend.generate(TASK, ProgressLog(), threading.Event()))


def test_loads_are_recorded_by_the_process_that_has_the_database(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[ModelEvent] = []
    pipelines = Mock(**{"is_loaded.return_value": False, "loaded.return_value": {SPEC.pipeline_key: 1}})
    monkeypatch.setattr(local, "PipelineCache", lambda *_, **__: pipelines)
    monkeypatch.setattr(local, "detect_device", lambda *_, **__: GPU)
    monkeypatch.setattr(local, "make_engine", lambda *_: None)
    backend = ZeroGpuBackend(settings.model_copy(update={"memory_budget": 1000}), events.append)
    assert backend.wait_until_ready()
    backend.load(SPEC, MODEL)
    assert [event.model_name for event in events] == [SPEC.key]
    assert backend.is_loaded(SPEC)
    monkeypatch.setattr(os, "getpid", lambda: 1)  # as in a forked process
    backend.load(SPEC, MODEL)
    assert len(events) == 1


@pytest.mark.parametrize(("key", "steps", "images"), [("starter", 4, 1), ("small", 50, 16)])
def test_duration_grows_with_the_work(key: str, steps: int, images: int) -> None:
    spec = MODELS[key]
    request = GenerationRequest("a fox", model_key=key, num_inference_steps=steps, num_images=images)
    seconds = gpu_duration(GenerationTask(request.with_defaults(spec), spec), GPU)
    assert STARTUP_SECONDS < seconds <= MAX_DURATION
    more = replace(request, num_inference_steps=steps * 2).with_defaults(spec)
    assert gpu_duration(GenerationTask(more, spec), GPU) >= seconds


def test_model_without_estimate_gets_the_default_duration() -> None:
    spec: ModelSpec = replace(MODELS["small"], type="auto", gflops_per_step=0.0)
    request = GenerationRequest("a fox", model_key="small").with_defaults(spec)
    assert gpu_duration(GenerationTask(request, spec), GPU) == DEFAULT_DURATION
