"""Worker processes: one per GPU, or as many as set, each with its share of the CPU cores.

`python -m canvas.backends.subprocess_pool` is a worker process. Messages are pickles in both directions. It exits
at once when its stdin closes, because the parent process ended.

Ray could start them, too, but needs a package of 79 MB, 0.5 GB more memory and twice the CPU time until
two workers are ready, while only `PipeConnection` would be saved: `WorkerBackend` and `Worker` serve both.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from functools import partial
from typing import Any, BinaryIO

from canvas.backends.base import Backend, WorkerCrashed
from canvas.backends.local import LocalBackend, RecordEvent
from canvas.backends.worker_backend import Message, Worker, WorkerBackend
from canvas.backends.zerogpu import ZeroGpuBackend
from canvas.models.hub_client import Hub
from canvas.platform import configure_runtime_env, worker_environment
from canvas.settings import Settings

SHUTDOWN_TIMEOUT = 1.0  # seconds


def create_backends(settings: Settings, record_event: RecordEvent, hub: Hub | None = None) -> list[Backend]:
    """One backend in this process, or the worker processes of the settings."""
    if settings.zero_gpu:
        return [ZeroGpuBackend(settings, record_event, hub)]
    num_workers = settings.worker_count
    if num_workers == 1:
        return [LocalBackend(settings, record_event, hub)]
    probe_lock = threading.Lock()
    return [
        WorkerBackend(
            partial(PipeConnection, (settings, hub, num_workers), index),
            record_event,
            f"Worker process {index + 1}",
            probe_lock,
        )
        for index in range(num_workers)
    ]


class PipeConnection:
    """A worker process; `init_args` are the settings, the Hub and the number of workers."""

    def __init__(self, init_args: tuple[Settings, Hub | None, int], index: int) -> None:
        self._index = index
        self._process = subprocess.Popen(
            [sys.executable, "-m", "canvas.backends.subprocess_pool"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=worker_environment(index),
        )
        self._stdin: Any = self._process.stdin  # it is a pipe
        self.messages: queue.Queue[Message | None] = queue.Queue()
        threading.Thread(target=_read_messages, args=(self._process.stdout, self.messages), daemon=True).start()
        self.send(init_args)

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def wait_until_started(self) -> None:
        """Do nothing: messages wait in the pipe."""

    def send(self, message: object) -> None:
        with suppress(OSError, ValueError):
            pickle.dump(message, self._stdin)
            self._stdin.flush()

    def crash_error(self) -> WorkerCrashed:
        status = self._process.wait()
        with suppress(OSError):  # unsent data
            self._stdin.close()
        return WorkerCrashed(
            f"Worker process {self._index + 1} exited unexpectedly (status {status}). The most "
            "common cause is a lack of memory."
        )

    def close(self) -> None:
        """End the process by closing its stdin, or kill it after a timeout."""
        with suppress(OSError):
            self._stdin.close()
        try:
            self._process.wait(SHUTDOWN_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _read_messages(pipe: Any, messages: queue.Queue[Message | None]) -> None:
    with pipe:
        while True:
            try:
                messages.put(pickle.load(pipe))  # noqa: S301 - from our own worker
            except (EOFError, pickle.UnpicklingError):  # exited, perhaps within a message
                messages.put(None)
                return


def main() -> None:
    """Handle calls until the parent process ends."""
    # The parent process handles them, and ends this one. Ctrl+C, and service managers, signal to both.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    configure_runtime_env()
    output_pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not mix with messages
    settings, hub, num_workers = pickle.load(sys.stdin.buffer)  # noqa: S301 - from our own program
    send = partial(_write, output_pipe)
    worker = Worker(LocalBackend(settings, partial(send, "record"), hub, num_workers), send)
    threading.Thread(target=_read, args=(sys.stdin.buffer, worker), daemon=True).start()
    worker.run()


def _write(pipe: BinaryIO, kind: str, value: object) -> None:
    pickle.dump((kind, value), pipe)
    pipe.flush()


def _read(pipe: BinaryIO, worker: Worker) -> None:
    while True:
        try:
            worker.put(pickle.load(pipe))  # noqa: S301 - from our own program
        except EOFError:
            os._exit(0)


if __name__ == "__main__":
    main()
