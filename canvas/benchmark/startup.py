"""Measures the start of the app: seconds to the first page and to the first image."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from canvas.errors import CanvasError
from canvas.server.launch import listening_port

APP = Path(__file__).resolve().parent.parent.parent / "app.py"
TIMEOUT = 120.0  # seconds
POLL_INTERVAL = 0.005  # seconds
GRADIO_HELLO_WORLD = """
import sys
import gradio as gr
gr.Interface(lambda name: f"Hello {name}", "text", "text").launch(server_port=int(sys.argv[1]))
"""


def measure_startup(rounds: int) -> dict[str, Any]:
    """Seconds per round, medians, and the ratio of the first page to a Gradio "Hello world".

    Raises CanvasError if a server does not start or does not generate an image.
    """
    seconds: dict[str, list[float]] = {"page": [], "picture": [], "gradio_hello_world": []}
    for _ in range(rounds):  # alternating, so that other load affects both
        with (
            tempfile.TemporaryDirectory() as folder,
            run_server([str(APP), "--data-dir", folder, "--port"]) as (started, port),
        ):
            seconds["page"].append(time.monotonic() - started)
            _generate_image(port)
            seconds["picture"].append(time.monotonic() - started)
        with run_server(["-c", GRADIO_HELLO_WORLD]) as (started, _):
            seconds["gradio_hello_world"].append(time.monotonic() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = medians["page"] / medians["gradio_hello_world"]
    return {"seconds": seconds, "medians": medians, "ratio": ratio}


@contextmanager
def run_server(arguments: list[str]) -> Iterator[tuple[float, int]]:
    """Run Python with the arguments and a port; yield the start time and port once it responds."""
    port = listening_port("127.0.0.1", 0)
    started = time.monotonic()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(  # noqa: S603 - our own programs only
            [sys.executable, *arguments, str(port)], stdout=subprocess.DEVNULL, stderr=errors
        )
        try:
            while not _responds(port):
                if process.poll() is not None or time.monotonic() - started > TIMEOUT:
                    errors.seek(0)
                    lines = errors.read().decode(errors="replace").strip().splitlines()
                    raise CanvasError(f"The server did not start: {lines[-1] if lines else ''}")
                time.sleep(POLL_INTERVAL)
            yield started, port
        finally:
            process.terminate()
            process.wait()


def _responds(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=TIMEOUT) as response:
            return bool(response.read())
    except (urllib.error.URLError, ConnectionError):
        return False


def _generate_image(port: int) -> None:
    http_request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/images/generations",
        b'{"prompt": "a red boat on a lake", "model": "starter"}',
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(http_request, timeout=TIMEOUT) as response:  # noqa: S310
            response.read()
    except OSError as error:
        raise CanvasError(f"The server did not generate an image: {error}") from error
