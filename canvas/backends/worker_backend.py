"""A backend whose LocalBackend runs in a worker: another process, or an actor on another machine; and the worker."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Generator
from contextlib import closing
from functools import partial
from typing import Any, Protocol

from canvas.backends.base import (
    GenerationTask,
    ProgressCallback,
    WorkerCrashed,
    WorkerRemoved,
    busy_error,
    run_in_fresh_thread,
)
from canvas.backends.local import LocalBackend, RecordEvent
from canvas.catalog import ModelSpec
from canvas.engine.device import Device
from canvas.engine.pipeline_cache import cache_key
from canvas.errors import CanvasError, OutOfMemory, unexpected_error
from canvas.models.download import LocalModel
from canvas.request import GeneratedImage

Message = tuple[str, Any]
Send = Callable[[str, object], None]
FINAL_MESSAGES = ("done", "error")
RESTART_DELAY = 2.0  # seconds before a worker that did not start is started again

log = logging.getLogger(__name__)


class Connection(Protocol):
    """One started worker; `messages` gets what it sends, and None when it has ended."""

    messages: queue.Queue[Message | None]

    @property
    def is_alive(self) -> bool:
        """Whether the worker has not ended; never waits."""

    def wait_until_started(self) -> None:
        """Raises WorkerCrashed, or WorkerRemoved for a worker that must not be used."""

    def send(self, message: object) -> None:
        """Send a message; does nothing once the worker has ended, as `messages` then ends."""

    def crash_error(self) -> WorkerCrashed:
        """Why the worker has ended; releases what is left of it."""

    def close(self) -> None:
        """End the worker."""


class WorkerBackend:
    """A backend in a worker, which is replaced if it crashes.

    `connect` starts a worker; it raises WorkerRemoved if that is not possible any more.
    `probe_lock` has the workers of a machine measure the device one at a time, as concurrent
    measurements could differ.
    """

    def __init__(
        self,
        connect: Callable[[], Connection],
        record_event: RecordEvent,
        name: str,
        probe_lock: threading.Lock,
        node: str = "local",
    ) -> None:
        self.name = name
        self.node = node
        self.error: CanvasError | None = None
        self._connect = connect
        self._record_event = record_event
        self._probe_lock = probe_lock
        self._device: Device | None = None
        self._loaded: frozenset[str] = frozenset()
        self._rpc_lock = threading.Lock()
        self._connection_lock = threading.Lock()
        self._closed = threading.Event()
        self._connection = connect()

    @property
    def device(self) -> Device:
        if self._device is None:
            with self._rpc_lock:
                self._detect_device()
        assert self._device is not None  # noqa: S101 - it is detected
        return self._device

    @property
    def device_if_known(self) -> Device | None:
        return self._device

    def is_loaded(self, spec: ModelSpec, preset: str = "quality") -> bool:
        return self._connection.is_alive and cache_key(spec, preset) in self._loaded

    def wait_until_ready(self) -> bool:
        """Wait for the worker to start, again if it has crashed; False once the backend is closed."""
        while not self._closed.is_set():
            try:
                with self._rpc_lock:
                    self._ensure_started()
                return True
            except WorkerRemoved:
                break
            except WorkerCrashed as error:
                log.warning("%s", error)
                self._closed.wait(RESTART_DELAY)
        return False

    def load(self, spec: ModelSpec, local: LocalModel) -> None:
        self._call(("load", spec, local))

    def unload(self, spec: ModelSpec) -> bool:
        return not self._closed.is_set() and bool(self._call(("unload", spec), timeout=1))

    def generate(
        self, task: GenerationTask, on_progress: ProgressCallback, cancelled: threading.Event
    ) -> Generator[GeneratedImage]:
        """Yield the images of a task; raises WorkerCrashed if the worker ends."""
        with self._rpc_lock:
            self._detect_device()
            with closing(self._stream_replies(task, cancelled)) as replies:
                for kind, value in replies:
                    if kind == "progress":
                        on_progress(**value)
                    elif kind == "image":
                        yield value

    def close(self) -> None:
        """End the worker; its call fails."""
        with self._connection_lock:
            self._closed.set()
        self._connection.close()

    def _detect_device(self) -> None:
        if self._device is None:
            with self._probe_lock:
                *_, (_, self._device) = self._stream_replies(("device",), threading.Event())

    def _call(self, call: object, timeout: float = -1) -> Any:
        if not self._rpc_lock.acquire(timeout=timeout):
            raise busy_error()
        try:
            self._detect_device()
            *_, (_, result) = self._stream_replies(call, threading.Event())
            return result
        finally:
            self._rpc_lock.release()

    def _stream_replies(self, call: object, cancelled: threading.Event) -> Generator[Message]:
        """Yield the replies to a call up to the final one; raises the worker's error."""
        self._ensure_started()
        self._connection.send(call)
        kind = ""
        try:
            while kind not in FINAL_MESSAGES:
                kind, value = self._receive(cancelled)
                if kind == "error":
                    raise value
                yield kind, value
        finally:
            if kind not in FINAL_MESSAGES:  # the caller stopped reading: drop what is left
                cancelled.set()
                while kind not in FINAL_MESSAGES:
                    kind, _ = self._receive(cancelled)

    def _receive(self, cancelled: threading.Event) -> Message:
        """Wait for the next message; forwards a cancellation to the worker."""
        is_forwarded = False
        while True:
            if cancelled.is_set() and not is_forwarded:
                self._connection.send("cancel")
                is_forwarded = True
            try:
                message = self._connection.messages.get(timeout=0.1)
            except queue.Empty:
                continue
            if message is None:
                error = self._connection.crash_error()
                return "error", WorkerCrashed(f"{self.name} was closed.") if self._closed.is_set() else error
            kind, value = message
            if kind == "record":
                self._record_event(value)
            elif kind == "loaded":
                self._loaded = value
            else:
                return kind, value

    def _ensure_started(self) -> None:
        """Replace a worker that has crashed, and wait for the start; raises WorkerCrashed or WorkerRemoved."""
        try:
            with self._connection_lock:
                if self._closed.is_set():
                    raise WorkerRemoved(f"{self.name} was closed.")
                if not self._connection.is_alive:
                    self._connection.crash_error()
                    self._loaded = frozenset()
                    self._connection = self._connect()
            self._connection.wait_until_started()
        except WorkerRemoved as error:
            self.error = self.error or error
            self.close()
            raise


class Worker:
    """Handles calls on a LocalBackend, one after the other; `send` gets each kind of message with its value."""

    def __init__(self, backend: LocalBackend, send: Send) -> None:
        self._backend = backend
        self._send = send
        self._calls: queue.Queue[tuple[Any, threading.Event]] = queue.Queue()
        self._cancelled = threading.Event()

    def put(self, message: Any) -> None:
        """Queue a call with an event of its own, so that a late "cancel" cannot stop the next one."""
        if message == "cancel":
            self._cancelled.set()
        else:
            self._cancelled = threading.Event()
            self._calls.put((message, self._cancelled))

    def run(self) -> None:
        handle = self._handle
        while True:
            call, cancelled = self._calls.get()
            try:
                handle(call, cancelled)
            except CanvasError as error:
                self._send("error", error)
                if isinstance(error, OutOfMemory):
                    handle = partial(run_in_fresh_thread, self._handle)
            except Exception as error:
                log.exception("a call failed")
                self._send("error", unexpected_error(error))

    def _handle(self, call: Any, cancelled: threading.Event) -> None:
        result: object = None
        try:
            match call:
                case GenerationTask():
                    with closing(self._backend.generate(call, self._on_progress, cancelled)) as images:
                        for image in images:
                            self._send("image", image)
                case ("load", spec, local):
                    self._backend.load(spec, local)
                case ("unload", spec):
                    result = self._backend.unload(spec)
                case _:
                    result = self._backend.device
        finally:
            self._send("loaded", self._backend.loaded_models())
        self._send("done", result)

    def _on_progress(self, **progress: Any) -> None:
        self._send("progress", progress)
