"""`bench`: how quick this machine is, measured when asked and never guessed."""

from __future__ import annotations

import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Annotated

import typer

from canvas.cli.terminal import AsJson, say, say_json
from canvas.errors import CanvasError

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE = 120.0  # seconds until a server that does not answer is given up
PAUSE = 0.005  # seconds between two knocks
HELLO = """
import sys
import gradio as gr
gr.Interface(lambda name: f"Hello {name}", "text", "text").launch(server_port=int(sys.argv[1]))
"""

app = typer.Typer(help="Measure this machine.", no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Measure this machine."""


@app.command()
def startup(
    turns: Annotated[int, typer.Option(min=1, help="Starts of each.")] = 5, json: AsJson = False
) -> None:
    """Seconds from the start to the first answered page, beside a bare Gradio hello-world."""
    from canvas.settings import quiet_libraries

    quiet_libraries()  # for both: the processes started below inherit it
    ours: list[float] = []
    bare: list[float] = []
    for _ in range(turns):  # in turns, so that a busy minute meets both
        with tempfile.TemporaryDirectory() as folder:
            app_py = str(ROOT / "app.py")
            ours.append(first_answer([app_py, "--data-dir", folder, "--port"]))
        bare.append(first_answer(["-c", HELLO]))
    mine, theirs = statistics.median(ours), statistics.median(bare)
    if json:
        answer = {"magic_canvas": ours, "gradio_hello_world": bare, "ratio": mine / theirs}
        say_json(answer)
        return
    say(f"Magic Canvas        {mine:.2f} s  (median of {turns}: {_listed(ours)})")
    say(f"Gradio hello-world  {theirs:.2f} s  (median of {turns}: {_listed(bare)})")
    say(f"ratio               {mine / theirs:.2f}")


def first_answer(arguments: list[str]) -> float:
    """Seconds until a server answers; its port is added to the Python arguments."""
    port = _free_port()
    started = time.monotonic()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(  # noqa: S603 - our own programs only
            [sys.executable, *arguments, str(port)], stdout=subprocess.DEVNULL, stderr=errors
        )
        try:
            while not _answers(port):
                if process.poll() is not None or time.monotonic() - started > PATIENCE:
                    errors.seek(0)
                    said = errors.read().decode(errors="replace").strip().splitlines()
                    raise CanvasError(f"The server did not start: {said[-1] if said else ''}")
                time.sleep(PAUSE)
            return time.monotonic() - started
        finally:
            process.terminate()
            process.wait()


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=PATIENCE) as answer:
            return bool(answer.read())
    except (urllib.error.URLError, ConnectionError):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listed(seconds: list[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in seconds)
