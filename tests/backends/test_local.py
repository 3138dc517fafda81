"""The backend of this process: what it loads for a task, and what it records."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from canvas import MODELS, GenerationRequest
from canvas.backends import local
from canvas.backends.base import GenerationTask
from canvas.backends.local import LocalBackend, log_event
from canvas.engine.device import Device
from canvas.engine.generate import GenerationInputs
from canvas.errors import CanvasError, DownloadCancelled, GenerationCancelled
from canvas.history.database import ModelEvent
from canvas.models.download import LocalModel
from canvas.settings import Settings

SPEC = MODELS["starter"]
MODEL = LocalModel(Path(SPEC.name), SPEC.name)
TASK = GenerationTask(GenerationRequest("a fox").with_defaults(SPEC), SPEC, MODEL)
UPSCALING = replace(TASK, request=GenerationRequest("", task="upscale", image="fox.png").with_defaults(SPEC))
CPU = Device("cpu", "float32", "requested")


class StubPipelines:
    """In place of `PipelineCache`: a pipeline is its name."""

    def __init__(self, device: Device, budget: int, **_: Any) -> None:
        self.budget = budget
        self.models: dict[str, bool] = {}
        self.torch_only: list[bool] = []

    def loaded(self) -> dict[str, int]:
        return dict.fromkeys(self.models, 1)

    def is_loaded(self, spec: Any, preset: str = "quality", *, torch_only: bool = False) -> bool:
        return spec.pipeline_key in self.models

    def get(self, spec: Any, model: LocalModel, task: str = "", preset: str = "", *, torch_only: bool) -> str:
        self.models[spec.pipeline_key] = True
        self.torch_only.append(torch_only)
        return f"pipeline {task}".strip()

    def get_controlnet(self, folder: Path, pipeline: str) -> str:
        return "net"

    def make_room(self, size: int, pipeline: str) -> None:
        """There is room."""

    def unload(self, spec: Any) -> bool:
        return self.models.pop(spec.pipeline_key, False)


class StubOpenVino:
    closed = False

    def generating(self, pipeline: str) -> AbstractContextManager[None]:
        return nullcontext()

    def close(self) -> None:
        self.closed = True


class Recorder:
    """A backend with its pipelines, the tasks that it ran and the events that it recorded."""

    def __init__(self, settings: Settings) -> None:
        self.events: list[ModelEvent] = []
        self.ran: list[Any] = []
        self.progress: list[dict[str, Any]] = []
        self.openvino: StubOpenVino | None = None
        self.backend = LocalBackend(settings, self.events.append)

    @property
    def pipelines(self) -> Any:
        return self.backend._pipelines

    def run_task(self, request: Any, inputs: Any, model: Any, on_step: Any, cancelled: Any) -> Iterator[str]:
        self.ran.append(model and model.pipeline)
        yield from ("first", "second")

    def generate(self, task: GenerationTask = TASK, cancelled: threading.Event | None = None) -> list[Any]:
        return list(
            self.backend.generate(task, lambda **each: self.progress.append(each), cancelled or threading.Event())
        )


@pytest.fixture
def recorder(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder(settings)
    monkeypatch.setattr(local, "detect_device", lambda *_, **__: CPU)
    monkeypatch.setattr(local, "PipelineCache", StubPipelines)
    monkeypatch.setattr(local, "make_engine", lambda *_: recorder.openvino)
    monkeypatch.setattr(local, "pipeline_task", lambda pipeline, request: request.task)
    monkeypatch.setattr(local, "reference_bytes", lambda references, pipeline: 0)
    monkeypatch.setattr(local, "run_task", recorder.run_task)
    monkeypatch.setattr(local, "postprocess", lambda image, checker: (image, checker))
    return recorder


def test_a_model_is_loaded_and_recorded_once(recorder: Recorder) -> None:
    assert recorder.generate() == [("first", None), ("second", None)]
    recorder.generate()
    assert recorder.ran == ["pipeline text_to_image"] * 2
    assert recorder.progress == [{"status": "loading"}, {"status": "running"}] * 2
    assert [(event.event, event.model_name, event.status) for event in recorder.events] == [
        ("load", "starter", "complete")
    ]


def test_models_are_loaded_and_unloaded_without_a_task(recorder: Recorder) -> None:
    backend = recorder.backend
    assert backend.wait_until_ready()
    assert not backend.is_loaded(SPEC)
    assert not backend.unload(SPEC)
    backend.load(SPEC, MODEL)
    assert backend.is_loaded(SPEC)
    assert recorder.pipelines.torch_only == [False, False]
    assert not backend.is_loaded(MODELS["small"])
    assert not backend.unload(MODELS["small"])
    assert backend.unload(SPEC)
    assert not backend.is_loaded(SPEC)


@pytest.mark.slow
def test_unloading_during_a_task_is_an_error(recorder: Recorder) -> None:
    images = recorder.backend.generate(TASK, lambda **_: None, threading.Event())
    next(images)
    with pytest.raises(CanvasError, match="Unload the model when it is finished"):
        recorder.backend.unload(SPEC)
    images.close()
    assert recorder.backend.unload(SPEC)


@pytest.mark.parametrize("task", [UPSCALING, replace(TASK, local=None)])
def test_nothing_is_loaded_for_a_task_without_a_model(recorder: Recorder, task: GenerationTask) -> None:
    assert recorder.generate(task)
    assert recorder.ran == [None]
    assert recorder.progress == [{"status": "running"}]
    assert recorder.backend.loaded_models() == frozenset()


def test_a_task_cancelled_while_its_model_is_loaded_does_not_run(recorder: Recorder) -> None:
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(GenerationCancelled, match="before the first step"):
        recorder.generate(cancelled=cancelled)
    assert recorder.ran == []


class Control:
    folder = Path("canny")


@pytest.mark.parametrize(
    ("inputs", "torch_only"),
    [
        ({}, False),
        ({"loras": (("lora", 0.0),)}, False),
        ({"loras": (("lora", 0.0), ("other", 0.5))}, True),
        ({"embeddings": ("embedding",)}, True),
        ({"controls": (Control(),)}, True),
        ({"references": ("reference",)}, True),
    ],
)
def test_what_openvino_cannot_apply_needs_torch(recorder: Recorder, inputs: dict[str, Any], torch_only: bool) -> None:
    recorder.generate(replace(TASK, inputs=GenerationInputs(**inputs)))
    assert set(recorder.pipelines.torch_only) == {torch_only}


def test_closing_ends_openvino_where_it_was_started(recorder: Recorder) -> None:
    recorder.backend.close()
    recorder.openvino = StubOpenVino()
    assert recorder.generate()
    assert not recorder.openvino.closed
    recorder.backend.close()
    assert recorder.openvino.closed


@pytest.mark.parametrize(("safety", "count"), [("full", 1), ("prompt", 0), ("off", 0)])
def test_one_checker_sees_the_images_with_full_safety_only(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, recorder: Recorder, safety: str, count: int
) -> None:
    made: list[Path] = []

    def make_checker(device: Device, folder: Path) -> str:
        made.append(folder)
        return "checker"

    monkeypatch.setattr(local, "ImageSafetyChecker", make_checker)
    monkeypatch.setattr(local, "find_checker", lambda hub: Path("checker"))
    recorder.backend = LocalBackend(settings.model_copy(update={"safety": safety}), recorder.events.append)
    checker = "checker" if count else None
    for _ in range(2):
        assert recorder.generate() == [("first", checker), ("second", checker)]
    assert made == [Path("checker")] * count


@pytest.mark.parametrize("budget", [None, 1000])
@pytest.mark.parametrize(("device", "workers", "expected"), [("cpu", {}, 1000), ("cpu", {"num_workers": 4}, 250),
                                                             ("cuda", {"num_workers": 4}, 1000)])  # fmt: skip
def test_workers_share_the_memory_of_the_cpu_but_not_that_of_a_gpu(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    recorder: Recorder,
    budget: int | None,
    device: str,
    workers: dict[str, int],
    expected: int,
) -> None:
    monkeypatch.setattr(local, "detect_device", lambda *_, **__: replace(CPU, name=device))
    monkeypatch.setattr(local, "default_budget", lambda device: 1000 if budget is None else 77)
    changed = settings.model_copy(update={"memory_budget": budget})
    recorder.backend = LocalBackend(changed, recorder.events.append, **workers)
    recorder.backend.load(SPEC, MODEL)
    assert recorder.pipelines.budget == expected


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (None, "complete", ""),
        (GenerationCancelled("Stopped."), "cancelled", ""),
        (DownloadCancelled("Stopped."), "cancelled", ""),
        (CanvasError("No file."), "failed", "No file."),
        (ZeroDivisionError("bug"), "failed", ""),
    ],
)
def test_the_end_of_a_download_or_load_is_recorded(error: Exception | None, status: str, text: str) -> None:
    events: list[ModelEvent] = []
    started = time.monotonic()
    expected = nullcontext() if error is None else pytest.raises(type(error))
    with expected, log_event(events.append, ModelEvent("starter", "load")) as fields:
        fields["bytes"] = 7
        if error is not None:
            raise error
    [event] = events
    assert (event.model_name, event.event, event.bytes) == ("starter", "load", 7)
    assert (event.status, event.error) == (status, text)
    assert event.download_time is not None
    assert 0 <= event.download_time <= time.monotonic() - started
