"""Ends the server on Ctrl+C and SIGTERM: answers the clients, keeps unfinished jobs, exits with 0."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from canvas.studio import Studio

if TYPE_CHECKING:
    from gradio import Blocks

EXIT_SECONDS = 4.0  # from the signal to the end of the process, whatever still runs
ANSWER_SECONDS = 0.5  # in which clients get the answers of the jobs that were ended
DRAIN_SECONDS = 1.5  # for responses that are still being sent
SIGNALS = [signal.SIGINT, signal.SIGTERM]
if sys.platform == "win32":  # Ctrl+Break, and closing the console
    SIGNALS.append(signal.SIGBREAK)

log = logging.getLogger(__name__)


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """End the process with 0 within EXIT_SECONDS of a signal that arrives in the block.

    The first signal raises SystemExit(0) in the main thread; later ones do nothing. As process 1 of
    a container the process gets SIGTERM only if it has a handler, so call this early. Whatever is
    written to the data folder survives a sudden end. Another thread than the main one cannot handle
    signals, so that nothing changes there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signalled = False

    def handle(number: int, _frame: object) -> None:
        nonlocal signalled
        if signalled:
            return
        signalled = True
        # Threads that load a model or wait for a locked database cannot be interrupted.
        timer = threading.Timer(EXIT_SECONDS, os._exit, [0])
        timer.daemon = True
        timer.start()
        log.info("Shutting down (%s).", signal.Signals(number).name)
        raise SystemExit(0)

    previous = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        if signalled:
            atexit._run_exitfuncs()  # Python's own end also unloads the libraries, which can take seconds
            with suppress(OSError, ValueError):
                sys.stdout.flush()
            os._exit(0)
        for number, handler in previous.items():
            signal.signal(number, handler)


def block_until_stopped(page: Blocks, studio: Studio) -> None:
    """Wait for Ctrl+C, `exit_on_signals` or `page.close()`; then end all jobs and close the page."""
    try:
        while page.is_running:
            time.sleep(0.1)
    except (KeyboardInterrupt, SystemExit):
        studio.stop()
        close_page(page)


def close_page(page: Blocks) -> None:
    """Close the server once the clients have their answers, or after at most two seconds."""
    time.sleep(ANSWER_SECONDS)
    server = page.server
    server.should_exit = True  # no more connections; those that wait for an answer stay
    deadline = time.monotonic() + DRAIN_SECONDS
    page.app.stop_event.set()  # ends Gradio's heartbeats, which would stay open
    while server.thread.is_alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    server.force_exit = True
    page.close(verbose=False)
