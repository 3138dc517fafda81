"""The worker process: `python -m canvas.backends.subprocess_worker`.

Messages are pickles in both directions; `subprocess_pool` is the other end. The worker exits at
once when its stdin closes, because the parent process ended.
"""

from __future__ import annotations

import logging
import os
import pickle
import queue
import signal
import sys
import threading
from contextlib import closing
from functools import partial
from typing import Any, BinaryIO

from canvas.backends.base import GenerationTask, run_in_fresh_thread
from canvas.backends.local import LocalBackend
from canvas.errors import CanvasError, OutOfMemory, unexpected_error
from canvas.platform import configure_runtime_env
from canvas.request import ProgressUpdate

Call = tuple[Any, threading.Event]


class WorkerProcess:
    """A LocalBackend that handles calls from a pipe."""

    def __init__(self, input_pipe: BinaryIO, output_pipe: BinaryIO) -> None:
        self._input = input_pipe
        self._output = output_pipe
        self._calls: queue.Queue[Call] = queue.Queue()
        settings, hub, num_workers = pickle.load(input_pipe)  # noqa: S301 - from our own program
        self._backend = LocalBackend(settings, partial(self._send, "record"), hub, num_workers)

    def run(self) -> None:
        threading.Thread(target=self._read, daemon=True).start()
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

    def _read(self) -> None:
        """Queue calls, each with its own event, so that a late "cancel" cannot stop the next."""
        cancelled = threading.Event()
        while True:
            try:
                message = pickle.load(self._input)  # noqa: S301 - from our own program
            except EOFError:
                os._exit(0)
            if message == "cancel":
                cancelled.set()
            else:
                cancelled = threading.Event()
                self._calls.put((message, cancelled))

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

    def _on_progress(self, *, status: str | None = None, step: ProgressUpdate | None = None) -> None:
        self._send("progress", {"status": status, "step": step})

    def _send(self, kind: str, value: object) -> None:
        pickle.dump((kind, value), self._output)
        self._output.flush()


def main() -> None:
    """Handle calls until the parent process ends."""
    # The parent process handles them, and ends this one. Ctrl+C, and service managers, signal to both.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    configure_runtime_env()
    output_pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not mix with messages
    WorkerProcess(sys.stdin.buffer, output_pipe).run()


if __name__ == "__main__":
    main()
