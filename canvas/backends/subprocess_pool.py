"""Worker processes: one per GPU, or as many as set, each with its share of the CPU cores."""

from __future__ import annotations

import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import closing, suppress
from typing import Any

from canvas.backends.base import Backend, GenerationTask, ProgressCallback, WorkerCrashed, busy_error
from canvas.backends.local import LocalBackend, RecordEvent
from canvas.backends.zerogpu import ZeroGpuBackend
from canvas.catalog import ModelSpec
from canvas.engine.device import Device
from canvas.engine.pipeline_cache import cache_key
from canvas.models.download import LocalModel
from canvas.models.hub_client import Hub
from canvas.platform import worker_environment
from canvas.request import GeneratedImage
from canvas.settings import Settings

Message = tuple[str, Any]
SHUTDOWN_TIMEOUT = 1.0  # seconds
FINAL_MESSAGES = ("done", "error")


def create_backends(settings: Settings, record_event: RecordEvent, hub: Hub | None = None) -> list[Backend]:
    """One backend in this process, or the worker processes of the settings."""
    if settings.zero_gpu:
        return [ZeroGpuBackend(settings, record_event, hub)]
    num_workers = settings.worker_count
    if num_workers == 1:
        return [LocalBackend(settings, record_event, hub)]
    probe_lock = threading.Lock()
    init_args = (settings, hub, num_workers)
    return [SubprocessBackend(init_args, record_event, index, probe_lock) for index in range(num_workers)]


class SubprocessBackend:
    """A backend in a worker process, which is replaced if it crashes.

    `init_args` are the settings, the Hub and the number of workers. `probe_lock` has the workers
    measure the device one at a time, as concurrent measurements could differ.
    """

    def __init__(
        self,
        init_args: tuple[Settings, Hub | None, int],
        record_event: RecordEvent,
        index: int,
        probe_lock: threading.Lock,
    ) -> None:
        self._init_args = init_args
        self._record_event = record_event
        self._index = index
        self._probe_lock = probe_lock
        self._device: Device | None = None
        self._loaded: frozenset[str] = frozenset()
        self._rpc_lock = threading.Lock()
        self._process_lock = threading.Lock()
        self._closed = False
        self._spawn()

    @property
    def pid(self) -> int:
        """The process id of the worker; changes after a crash."""
        return self._process.pid

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
        return cache_key(spec, preset) in self._loaded

    def load(self, spec: ModelSpec, local: LocalModel) -> None:
        self._call(("load", spec, local))

    def unload(self, spec: ModelSpec) -> bool:
        return bool(self._call(("unload", spec), timeout=1))

    def generate(
        self, task: GenerationTask, on_progress: ProgressCallback, cancelled: threading.Event
    ) -> Generator[GeneratedImage]:
        """Yield the images of a task; raises WorkerCrashed if the process exits."""
        with self._rpc_lock:
            self._detect_device()
            with closing(self._stream_replies(task, cancelled)) as replies:
                for kind, value in replies:
                    if kind == "progress":
                        on_progress(**value)
                    elif kind == "image":
                        yield value

    def close(self) -> None:
        """End the process by closing its stdin, or kill it after a timeout; its call fails."""
        with self._process_lock:
            self._closed = True
        with suppress(OSError):
            self._stdin.close()
        try:
            self._process.wait(SHUTDOWN_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _spawn(self) -> None:
        self._loaded = frozenset()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "canvas.backends.subprocess_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=worker_environment(self._index),
        )
        self._messages: queue.Queue[Message | None] = queue.Queue()
        threading.Thread(target=_read_messages, args=(self._process.stdout, self._messages), daemon=True).start()
        self._send(self._init_args)

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

    @property
    def _stdin(self) -> Any:
        assert self._process.stdin  # noqa: S101 - it is a pipe
        return self._process.stdin

    def _send(self, message: object) -> None:
        with suppress(OSError, ValueError):  # if the worker has exited or was closed, `_messages` ends
            pickle.dump(message, self._stdin)
            self._stdin.flush()

    def _stream_replies(self, call: object, cancelled: threading.Event) -> Generator[Message]:
        """Yield the replies to a call up to the final one; raises the worker's error."""
        if self._process.poll() is not None:  # it crashed while it was idle
            error = self._replace_crashed()
            if self._closed:
                raise error
        self._send(call)
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
                self._send("cancel")
                is_forwarded = True
            try:
                message = self._messages.get(timeout=0.1)
            except queue.Empty:
                continue
            if message is None:
                return "error", self._replace_crashed()
            kind, value = message
            if kind == "record":
                self._record_event(value)
            elif kind == "loaded":
                self._loaded = value
            else:
                return kind, value

    def _replace_crashed(self) -> WorkerCrashed:
        """Start a new process, unless the backend is closed, and return the error for the caller."""
        status = self._process.wait()
        with suppress(OSError):  # unsent data
            self._stdin.close()
        with self._process_lock:
            if self._closed:
                return WorkerCrashed(f"Worker process {self._index + 1} was closed.")
            self._spawn()
        return WorkerCrashed(
            f"Worker process {self._index + 1} exited unexpectedly (status {status}). The most "
            "common cause is a lack of memory."
        )


def _read_messages(pipe: Any, messages: queue.Queue[Message | None]) -> None:
    with pipe:
        while True:
            try:
                messages.put(pickle.load(pipe))  # noqa: S301 - from our own worker
            except (EOFError, pickle.UnpicklingError):  # exited, perhaps within a message
                messages.put(None)
                return
