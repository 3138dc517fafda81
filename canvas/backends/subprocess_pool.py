"""Workers: painters in processes of their own, one a GPU, each with its share of the cores."""

from __future__ import annotations

import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import closing, suppress
from typing import Any

from canvas.backends.base import Backend, GenerationTask, ProgressCallback, WorkerCrashed
from canvas.backends.local import LocalBackend, Record
from canvas.backends.zerogpu import ZeroGpuBackend
from canvas.catalog import ModelSpec
from canvas.engine.device import Device
from canvas.engine.pipeline_cache import cache_key
from canvas.errors import CanvasError
from canvas.models.download import LocalModel
from canvas.models.hub_client import Hub
from canvas.request import GeneratedImage
from canvas.settings import Settings, worker_environment

Message = tuple[str, Any]
SHUTDOWN_TIMEOUT = 5.0
FINAL_MESSAGES = ("done", "error")  # the kinds of message that end an answer


def create_backends(settings: Settings, record: Record, hub: Hub | None = None) -> list[Backend]:
    """One painter in this process, or as many workers as the settings say."""
    if settings.zero_gpu:
        return [ZeroGpuBackend(settings, record, hub)]
    number = settings.worker_count
    if number == 1:
        return [LocalBackend(settings, record, hub)]
    one_by_one = threading.Lock()
    return [
        SubprocessBackend((settings, hub, number), record, which, one_by_one)
        for which in range(number)
    ]


class SubprocessBackend:
    """A painter in a process of its own; where that has died, another takes its place.

    `introduction` is what the worker is told at first: the settings, where models come
    from, and how many workers there are. Workers find their devices `one_by_one`, as
    measuring at the same time they could come to different ones.
    """

    def __init__(
        self,
        introduction: tuple[Settings, Hub | None, int],
        record: Record,
        which: int,
        one_by_one: threading.Lock,
    ) -> None:
        self._introduction = introduction
        self._record = record
        self._which = which
        self._one_by_one = one_by_one
        self._device: Device | None = None
        self._loaded: frozenset[str] = frozenset()
        self._talking = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self._loaded = frozenset()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "canvas.backends.subprocess_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=worker_environment(self._which),
        )
        self._messages: queue.Queue[Message | None] = queue.Queue()
        reading = (self._process.stdout, self._messages)
        threading.Thread(target=_read, args=reading, daemon=True).start()
        self._send(self._introduction)

    @property
    def pid(self) -> int:
        """The number of its process, which is another one after it has died."""
        return self._process.pid

    @property
    def device(self) -> Device:
        """The device as the worker found it."""
        if self._device is None:
            with self._talking:
                self._find_device()
        assert self._device is not None  # noqa: S101 - it was found
        return self._device

    def _find_device(self) -> None:
        if self._device is None:
            with self._one_by_one:
                *_, (_, self._device) = self._answers(("device",), threading.Event())

    @property
    def device_if_known(self) -> Device | None:
        """The device when the worker has told it already."""
        return self._device

    def is_loaded(self, spec: ModelSpec, preset: str = "quality") -> bool:
        """Whether the worker has the model in memory."""
        return cache_key(spec, preset) in self._loaded

    def load(self, spec: ModelSpec, local: LocalModel) -> None:
        """Have the worker load a model."""
        self._ask(("load", spec, local))

    def unload(self, spec: ModelSpec) -> bool:
        """Have the worker let a model go; raises CanvasError while it paints."""
        return bool(self._ask(("free", spec), patience=1))

    def _ask(self, question: object, patience: float = -1) -> Any:
        if not self._talking.acquire(timeout=patience):
            raise CanvasError("A picture is being made; free the model when it is done.")
        try:
            self._find_device()
            *_, (_, result) = self._answers(question, threading.Event())
            return result
        finally:
            self._talking.release()

    def generate(
        self, order: GenerationTask, tell: ProgressCallback, cancelled: threading.Event
    ) -> Generator[GeneratedImage]:
        """The pictures of an order; raises WorkerDied when the process ended meanwhile."""
        with self._talking:
            self._find_device()
            with closing(self._answers(order, cancelled)) as answers:
                for kind, value in answers:
                    if kind == "tell":
                        tell(**value)
                    elif kind == "picture":
                        yield value

    def close(self) -> None:
        """End the process: it hears that its input has closed."""
        with suppress(OSError):
            self._stdin.close()
        try:
            self._process.wait(SHUTDOWN_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def _stdin(self) -> Any:
        assert self._process.stdin  # noqa: S101 - it is a pipe
        return self._process.stdin

    def _send(self, message: object) -> None:
        with suppress(OSError):  # a worker that has ended is told of by its messages
            pickle.dump(message, self._stdin)
            self._stdin.flush()

    def _answers(self, question: object, cancelled: threading.Event) -> Generator[Message]:
        """What the worker says until it is done; raises what it raised."""
        if self._process.poll() is not None:  # it died while nobody asked it anything
            self._died()
        self._send(question)
        kind = ""
        try:
            while kind not in FINAL_MESSAGES:
                kind, value = self._next(cancelled)
                if kind == "error":
                    raise value
                yield kind, value
        finally:
            if (
                kind not in FINAL_MESSAGES
            ):  # given up in the middle: what is still said belongs to nobody
                cancelled.set()
                while kind not in FINAL_MESSAGES:
                    kind, _ = self._next(cancelled)

    def _next(self, cancelled: threading.Event) -> Message:
        """The next message; tells the worker when it shall stop."""
        told = False
        while True:
            if cancelled.is_set() and not told:
                self._send("cancel")
                told = True
            try:
                message = self._messages.get(timeout=0.1)
            except queue.Empty:
                continue
            if message is None:
                return "error", self._died()
            kind, value = message
            if kind == "record":
                self._record(value)
            elif kind == "loaded":
                self._loaded = value
            else:
                return kind, value

    def _died(self) -> WorkerCrashed:
        """Put another process in the place of the dead one; the words for who waited for it."""
        code = self._process.wait()
        with suppress(OSError):  # what could not be said any more
            self._stdin.close()
        self._begin()
        return WorkerCrashed(
            f"Worker {self._which + 1} ended in the middle of the work (status {code}); "
            "most often another program, or the system, needed its memory."
        )


def _read(pipe: Any, messages: queue.Queue[Message | None]) -> None:
    with pipe:
        while True:
            try:
                messages.put(pickle.load(pipe))  # noqa: S301 - from our own worker
            except (EOFError, pickle.UnpicklingError):  # ended, perhaps in the middle of a word
                messages.put(None)
                return
