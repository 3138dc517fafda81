"""The worker's end of a `WorkerBackend`; `python -m canvas.backends.worker` is a worker process.

Messages are pickles in both directions. The process exits at once when its stdin closes, because
the parent process ended.
"""

from __future__ import annotations

import logging
import os
import pickle
import queue
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any, BinaryIO

from canvas.backends.base import GenerationTask, run_in_fresh_thread
from canvas.backends.local import LocalBackend
from canvas.errors import CanvasError, OutOfMemory, unexpected_error
from canvas.platform import configure_runtime_env

Call = tuple[Any, threading.Event]
Send = Callable[[str, object], None]


class Worker:
    """Handles calls on a LocalBackend, one after the other; `send` gets each kind of message with its value."""

    def __init__(self, backend: LocalBackend, send: Send) -> None:
        self._backend = backend
        self._send = send
        self._calls: queue.Queue[Call] = queue.Queue()
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
            except OutOfMemory as error:
                self._send("error", error)
                handle = partial(run_in_fresh_thread, self._handle)
            except CanvasError as error:
                self._send("error", error)
            except Exception as error:
                logging.getLogger(__name__).exception("a call failed")
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
