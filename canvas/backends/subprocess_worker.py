"""A worker: `python -m canvas.backends.subprocess_worker`, a worker process.

Messages are pickles in both directions; `workers.py` is the other end. When the input
closes, because the program ended, the worker ends too, in the middle of whatever it does.
"""

from __future__ import annotations

import logging
import os
import pickle
import queue
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, BinaryIO

from canvas.backends.base import GenerationTask
from canvas.backends.local import LocalBackend
from canvas.errors import CanvasError, OutOfMemory, unexpected_error
from canvas.request import ProgressUpdate
from canvas.settings import configure_runtime_env

Call = tuple[Any, threading.Event]


class WorkerProcess:
    """One painter, and the pipe to the program that it works for."""

    def __init__(self, orders: BinaryIO, answers: BinaryIO) -> None:
        self._orders = orders
        self._answers = answers
        self._waiting: queue.Queue[Call] = queue.Queue()
        settings, hub, of = pickle.load(orders)  # noqa: S301 - from our own program
        self._painter = LocalBackend(settings, lambda event: self._say("record", event), hub, of)

    def run(self) -> None:
        """Answer orders for ever."""
        threading.Thread(target=self._read, daemon=True).start()
        answer = self._answer
        while True:
            question, cancelled = self._waiting.get()
            try:
                answer(question, cancelled)
            except OutOfMemory as error:
                self._say("error", error)
                answer = self._answer_apart
            except CanvasError as error:
                self._say("error", error)
            except Exception as error:
                logging.getLogger(__name__).exception("an order failed")
                self._say("error", unexpected_error(error))

    def _answer_apart(self, question: Any, cancelled: threading.Event) -> None:
        """In a new thread: one that has met OutOfMemory must not compute again."""
        with ThreadPoolExecutor(1) as fresh:
            fresh.submit(self._answer, question, cancelled).result()

    def _read(self) -> None:
        """Orders each with an event of its own, so that no late word stops the next one."""
        cancelled = threading.Event()
        while True:
            try:
                message = pickle.load(self._orders)  # noqa: S301 - from our own program
            except EOFError:
                os._exit(0)
            if message == "cancel":
                cancelled.set()
            else:
                cancelled = threading.Event()
                self._waiting.put((message, cancelled))

    def _answer(self, question: Any, cancelled: threading.Event) -> None:
        result: object = None
        try:
            match question:
                case GenerationTask():
                    with closing(
                        self._painter.generate(question, self._tell, cancelled)
                    ) as pictures:
                        for picture in pictures:
                            self._say("picture", picture)
                case ("load", spec, local):
                    self._painter.load(spec, local)
                case ("free", spec):
                    result = self._painter.unload(spec)
                case _:
                    result = self._painter.device
        finally:
            self._say("loaded", self._painter.worker_count())
        self._say("done", result)

    def _tell(self, *, status: str | None = None, step: ProgressUpdate | None = None) -> None:
        self._say("tell", {"status": status, "step": step})

    def _say(self, kind: str, value: object) -> None:
        pickle.dump((kind, value), self._answers)
        self._answers.flush()


def main() -> None:
    """Work until the program that began this ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for the program, which tells us
    configure_runtime_env()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    WorkerProcess(sys.stdin.buffer, answers).run()


if __name__ == "__main__":
    main()
