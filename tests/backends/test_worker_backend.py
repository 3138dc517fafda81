"""A backend in a worker, here a thread of this process: its calls, its end and its replacement."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from canvas import MODELS, GenerationRequest
from canvas.backends import worker_backend
from canvas.backends.base import GenerationTask, WorkerCrashed, WorkerRemoved
from canvas.backends.worker_backend import Worker, WorkerBackend
from canvas.engine.device import Device
from canvas.engine.pipeline_cache import cache_key
from canvas.errors import CanvasError, GenerationCancelled, OutOfMemory
from canvas.history.database import ModelEvent
from canvas.models.download import LocalModel

SPEC = MODELS["starter"]
LOCAL = LocalModel(Path(SPEC.name), SPEC.name)
TASK = GenerationTask(GenerationRequest("a fox"), SPEC, LOCAL)
CPU = Device("cpu", "float32", "requested")


class StubBackend:
    """What the worker generates with: yields `images`, or raises the first of `errors`."""

    def __init__(self) -> None:
        self.images: list[Any] = ["first", "second"]
        self.errors: list[Exception] = []
        self.threads: list[threading.Thread] = []
        self.loaded: set[str] = set()
        self.num_detections = 0
        self.num_cancelled = 0
        self.record_event: Callable[[ModelEvent], None] = lambda event: None

    @property
    def device(self) -> Device:
        self.num_detections += 1
        return CPU

    def loaded_models(self) -> frozenset[str]:
        return frozenset(self.loaded)

    def load(self, spec: Any, local: LocalModel) -> None:
        self.record_event(ModelEvent(spec.key, "load"))
        self.loaded.add(cache_key(spec, "quality"))

    def unload(self, spec: Any) -> bool:
        found = cache_key(spec, "quality") in self.loaded
        self.loaded.clear()
        return found

    def generate(self, task: GenerationTask, on_progress: Any, cancelled: threading.Event) -> Iterator[Any]:
        self.threads.append(threading.current_thread())
        on_progress(status="running")
        if self.errors:
            raise self.errors.pop(0)
        for image in self.images:
            if image == "wait":
                assert cancelled.wait(60)
            if cancelled.is_set():
                self.num_cancelled += 1
                raise GenerationCancelled("Cancelled.")
            yield image


class ThreadConnection:
    """A worker in a thread; it may not start, and ends when it is told."""

    def __init__(self, backend: Any, start_error: WorkerCrashed | None = None) -> None:
        self.messages: queue.Queue[tuple[str, Any] | None] = queue.Queue()
        self.is_alive = start_error is None
        self._start_error = start_error
        self._worker = Worker(backend, lambda kind, value: self.messages.put((kind, value)))
        backend.record_event = lambda event: self.messages.put(("record", event))
        threading.Thread(target=self._worker.run, daemon=True).start()

    def wait_until_started(self) -> None:
        if self._start_error is not None:
            raise self._start_error

    def send(self, message: object) -> None:
        if self.is_alive:
            self._worker.put(message)

    def crash_error(self) -> WorkerCrashed:
        return WorkerCrashed("The worker exited unexpectedly.")

    def close(self) -> None:
        self.is_alive = False
        self.messages.put(None)


class Pool:
    """A backend with the stubs of its workers, its connections so far and its events."""

    def __init__(self) -> None:
        self.stub = StubBackend()
        self.connections: list[ThreadConnection] = []
        self.start_errors: list[WorkerCrashed] = []
        self.events: list[ModelEvent] = []
        self.backend = WorkerBackend(self._connect, self.events.append, "Worker 1", threading.Lock())

    def _connect(self) -> ThreadConnection:
        error = self.start_errors.pop(0) if self.start_errors else None
        self.connections.append(ThreadConnection(self.stub, error))
        return self.connections[-1]

    def generate(self) -> list[Any]:
        return list(self.backend.generate(TASK, lambda **_: None, threading.Event()))


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool()
    yield pool
    pool.backend.close()


def test_images_and_progress_of_the_worker_are_passed_on(pool: Pool) -> None:
    progress: list[dict[str, Any]] = []
    images = pool.backend.generate(TASK, lambda **each: progress.append(each), threading.Event())
    assert list(images) == ["first", "second"]
    assert progress == [{"status": "running"}]


def test_the_device_is_asked_for_once(pool: Pool) -> None:
    assert pool.backend.device_if_known is None
    assert pool.backend.device == pool.backend.device == pool.backend.device_if_known == CPU
    pool.generate()
    assert pool.stub.num_detections == 1


def test_loading_and_unloading_is_done_and_recorded(pool: Pool) -> None:
    assert not pool.backend.is_loaded(SPEC)
    pool.backend.load(SPEC, LOCAL)
    assert pool.backend.is_loaded(SPEC)
    assert not pool.backend.is_loaded(MODELS["small"])
    assert [event.model_name for event in pool.events] == [SPEC.key]
    assert pool.backend.unload(SPEC)
    assert not pool.backend.is_loaded(SPEC)
    assert not pool.backend.unload(SPEC)


def test_a_model_of_a_worker_that_ended_is_not_loaded(pool: Pool) -> None:
    pool.backend.load(SPEC, LOCAL)
    pool.connections[0].close()
    assert not pool.backend.is_loaded(SPEC)


def test_loading_waits_for_the_end_of_a_generation(pool: Pool) -> None:
    images = pool.backend.generate(TASK, lambda **_: None, threading.Event())
    with ThreadPoolExecutor(1) as executor:
        assert next(images) == "first"
        load = executor.submit(pool.backend.load, SPEC, LOCAL)
        assert not wait([load], timeout=0.05).done
        assert list(images) == ["second"]
        load.result(timeout=60)
    assert pool.backend.is_loaded(SPEC)


@pytest.mark.slow
def test_unloading_during_a_generation_is_an_error(pool: Pool) -> None:
    images = pool.backend.generate(TASK, lambda **_: None, threading.Event())
    assert next(images) == "first"
    with pytest.raises(CanvasError, match="Unload the model when it is finished"):
        pool.backend.unload(SPEC)
    assert list(images) == ["second"]


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (CanvasError("Broken file."), CanvasError, "Broken file"),
        (OutOfMemory("Too large."), OutOfMemory, "Too large"),
        (ZeroDivisionError("bug"), CanvasError, "ZeroDivisionError"),
    ],
)
def test_an_error_of_the_worker_is_raised_and_the_next_task_works(
    pool: Pool, error: Exception, expected: type[Exception], message: str
) -> None:
    pool.stub.errors = [error]
    with pytest.raises(expected, match=message):
        pool.generate()
    assert pool.generate() == ["first", "second"]
    first, second = pool.stub.threads
    assert (first is second) == (expected is not OutOfMemory), "a failed allocation may break the thread"


def test_a_cancellation_reaches_the_worker(pool: Pool) -> None:
    pool.stub.images = ["first", "wait", "second"]
    cancelled = threading.Event()
    images = pool.backend.generate(TASK, lambda **_: None, cancelled)
    assert next(images) == "first"
    cancelled.set()
    with pytest.raises(GenerationCancelled):
        next(images)


def test_a_caller_that_stops_reading_cancels_the_task(pool: Pool) -> None:
    pool.stub.images = ["first", "wait", "second"]
    images = pool.backend.generate(TASK, lambda **_: None, threading.Event())
    assert next(images) == "first"
    images.close()
    assert pool.stub.num_cancelled == 1
    pool.stub.images = ["third"]
    assert pool.generate() == ["third"]


def test_a_worker_that_ended_within_a_task_is_replaced_for_the_next(pool: Pool) -> None:
    pool.stub.images = ["first", "wait"]
    images = pool.backend.generate(TASK, lambda **_: None, threading.Event())
    assert next(images) == "first"
    pool.connections[0].close()
    with pytest.raises(WorkerCrashed, match="exited unexpectedly"):
        next(images)
    pool.stub.images = ["second"]
    assert pool.generate() == ["second"]
    assert pool.generate() == ["second"]
    assert len(pool.connections) == 2


def test_a_worker_that_does_not_start_is_started_again(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_backend, "RESTART_DELAY", 0)
    pool.start_errors = [WorkerCrashed("No memory.")]
    pool.connections[0].close()
    assert pool.backend.wait_until_ready()
    assert len(pool.connections) == 3
    assert pool.backend.error is None


def test_a_removed_worker_is_not_started_again(pool: Pool) -> None:
    pool.start_errors = [WorkerRemoved("The node has left.")]
    pool.connections[0].close()
    assert not pool.backend.wait_until_ready()
    assert "The node has left" in str(pool.backend.error)
    with pytest.raises(WorkerRemoved, match="Worker 1 was closed"):
        pool.generate()
    assert "The node has left" in str(pool.backend.error), "the first reason stays"


def test_a_closed_backend_takes_no_calls(pool: Pool) -> None:
    assert pool.backend.wait_until_ready()
    pool.backend.load(SPEC, LOCAL)
    pool.backend.close()
    assert not pool.backend.unload(SPEC)
    assert not pool.backend.wait_until_ready()
    with pytest.raises(WorkerRemoved, match="Worker 1 was closed"):
        pool.backend.load(SPEC, LOCAL)
    assert isinstance(pool.backend.error, WorkerRemoved)
    assert len(pool.connections) == 1
