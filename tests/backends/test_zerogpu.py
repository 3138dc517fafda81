"""The painter of ZeroGPU, in the dummy mode of the package `spaces`."""

from __future__ import annotations

import pickle
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from canvas import MODELS, GenerationRequest, Studio
from canvas.backends.base import GenerationTask
from canvas.backends.zerogpu import (
    DEFAULT_DURATION,
    MAX_DURATION,
    STARTUP_SECONDS,
    ZeroGpuBackend,
    gpu_duration,
)
from canvas.catalog import ModelSpec
from canvas.engine.device import Device
from canvas.errors import CanvasError, GenerationCancelled
from canvas.models.download import LocalModel
from canvas.request import ProgressUpdate
from canvas.settings import Settings

SPEC = MODELS["starter"]
FOX = GenerationRequest("a fox in the snow, 3d", seed=7, num_inference_steps=3).with_defaults(SPEC)
ORDER = GenerationTask(FOX, SPEC, LocalModel(Path(SPEC.name), SPEC.name))
GPU = Device("cuda", "float16", "borrowed")


@pytest.fixture
def painter(settings: Settings) -> ZeroGpuBackend:
    return ZeroGpuBackend(replace(settings, zero_gpu=True), lambda event: None)


class Told:
    """Keeps what a painter tells; stops it after so many steps."""

    def __init__(self, stop_after: int = 1000) -> None:
        self.words: list[str] = []
        self.cancelled = threading.Event()
        self._stop_after = stop_after

    def __call__(self, *, status: str | None = None, step: ProgressUpdate | None = None) -> None:
        self.words.append(status or f"step {step.step if step else ''}")
        if step and step.step >= self._stop_after:
            self.cancelled.set()


def test_what_travels_is_small_and_comes_through(painter: ZeroGpuBackend) -> None:
    assert len(pickle.dumps(ORDER)) < 10_000
    assert pickle.loads(pickle.dumps(ORDER)) == ORDER  # noqa: S301 - our own
    messages = list(painter._work(ORDER, 0.0))
    assert {kind for kind, _ in messages} == {"tell", "picture"}
    assert len(pickle.loads(pickle.dumps(messages))) == len(messages)  # noqa: S301 - our own


def test_the_studio_gives_the_same_pixels_by_a_borrowed_gpu(
    settings: Settings, studio: Studio, tmp_path: Path
) -> None:
    [expected] = studio.generate(FOX)
    there = replace(settings, zero_gpu=True, data_dir=tmp_path / "space")
    with Studio(there) as space:
        space.warm_up(wait=True)
        assert space.model_status("starter").location == "memory"
        job = space.submit(FOX)
        [made] = job.wait()
        assert job.progress.step == 3
        here, there_too = (
            Image.open(where.image_path(picture.filename)).convert("RGB")
            for where, picture in ((studio, expected), (space, made))
        )
    assert ImageChops.difference(here, there_too).getbbox() is None


def test_it_tells_each_step_and_stops_within_one(painter: ZeroGpuBackend) -> None:
    told = Told()
    assert len(list(painter.generate(ORDER, told, told.cancelled))) == 1
    assert told.words == ["loading", "running", "step 1", "step 2", "step 3"]
    long = replace(ORDER, request=replace(FOX, num_inference_steps=150))
    told = Told(stop_after=2)
    with pytest.raises(GenerationCancelled):
        list(painter.generate(long, told, told.cancelled))
    assert told.words[-1] == "step 2"


def test_what_fails_there_is_said_here(painter: ZeroGpuBackend, tmp_path: Path) -> None:
    broken = replace(ORDER, local=LocalModel(tmp_path, "nowhere"))
    told = Told()
    with pytest.raises(CanvasError, match="no diffusers pipeline"):
        list(painter.generate(broken, told, told.cancelled))


@pytest.mark.parametrize(("key", "steps", "images"), [("starter", 4, 1), ("small", 50, 16)])
def test_the_time_to_borrow_grows_with_the_work(key: str, steps: int, images: int) -> None:
    spec = MODELS[key]
    wish = GenerationRequest("a fox", model_key=key, num_inference_steps=steps, num_images=images)
    seconds = gpu_duration(GenerationTask(wish.with_defaults(spec), spec), GPU)
    assert STARTUP_SECONDS < seconds <= MAX_DURATION
    more = replace(wish, num_inference_steps=steps * 2).with_defaults(spec)
    assert gpu_duration(GenerationTask(more, spec), GPU) >= seconds


def test_an_unknown_kind_of_model_gets_a_minute() -> None:
    spec: ModelSpec = replace(MODELS["small"], type="auto", gflops_per_step=0.0)
    wish = GenerationRequest("a fox", model_key="small").with_defaults(spec)
    assert gpu_duration(GenerationTask(wish, spec), GPU) == DEFAULT_DURATION
