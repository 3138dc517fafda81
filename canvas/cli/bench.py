"""`bench`: how quick this machine is, measured when asked and never guessed."""

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
from json import loads
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from canvas import validation
from canvas.cli.console import (
    AsJson,
    load_settings,
    number_option,
    print_json,
    print_line,
    with_examples,
)
from canvas.errors import CanvasError, InvalidInput

if TYPE_CHECKING:
    from canvas.catalog import ModelSpec

ROOT = Path(__file__).resolve().parent.parent.parent
SYNTHETIC = "sd15"
PATIENCE = 120.0  # seconds until a server that does not answer is given up
PAUSE = 0.005  # seconds between two knocks
GRADIO_HELLO_WORLD = """
import sys
import gradio as gr
gr.Interface(lambda name: f"Hello {name}", "text", "text").launch(server_port=int(sys.argv[1]))
"""

app = typer.Typer()


@app.callback(invoke_without_command=True)
@with_examples(
    "python -m canvas bench --model starter",
    "python -m canvas bench --synthetic sd15 --size 512 --json",
    "python -m canvas bench startup --turns 3",
)
def bench(  # noqa: PLR0913, PLR0917 - each option of the command is one
    context: typer.Context,
    model: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="On disk; may be given again.")
    ] = None,
    synthetic: Annotated[
        str | None, typer.Option(metavar="sd15", help="That architecture, random weights.")
    ] = None,
    size: Annotated[
        int | None, number_option("size", "pixels a side, a multiple of 8", int)
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Whole pictures, however long.")] = False,
    turns: Annotated[int | None, number_option("turns", "how often each is timed", int)] = None,
    json: AsJson = False,
    write_readme: Annotated[
        bool, typer.Option("--write-readme", help="Also write the figures into README.md.")
    ] = False,
    beside: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="There: what --json said on another machine."),
    ] = None,
) -> None:
    """Measure this machine: the modes beside plain diffusers, or with `bench startup` the start."""
    from canvas.settings import configure_runtime_env

    configure_runtime_env()  # for both sides, and the processes started below inherit it
    if context.invoked_subcommand is not None:
        return
    if synthetic not in (None, SYNTHETIC):
        raise InvalidInput("synthetic", synthetic, SYNTHETIC)
    for field, value, high in (("size", size, 4096), ("turns", turns, 1000)):
        if value is not None:
            validation.integer(field, value, 1 if field == "turns" else 64, high)
    if size is not None:
        validation.multiple_of_8("size", size)
    from canvas.benchmark.report import format_markdown, format_table, replace_marked_section
    from canvas.benchmark.runner import BenchmarkReport, run_benchmark
    from canvas.engine.device import detect_device

    others = [BenchmarkReport.from_dict(_read(path)) for path in beside or ()]
    settings = load_settings(None)
    device = detect_device(settings.cache_dir, settings.device, settings.dtype)
    keys = model or ([] if synthetic else [settings.model])
    reports = []
    for spec in [*map(_on_disk, keys), *([None] if synthetic else [])]:
        report = run_benchmark(spec, device, size=size, full=full, turns=turns)
        reports.append(report)
        if json:
            print_json(report.to_dict())
        else:
            print_line("\n".join(format_table(report)))
    if write_readme:
        replace_marked_section(ROOT / "README.md", format_markdown([*reports, *others]))


def _read(path: Path) -> dict[str, Any]:
    try:
        told = loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInput("beside", str(path), "a file that --json wrote") from error
    if not isinstance(told, dict) or "rows" not in told:
        raise InvalidInput("beside", str(path), "a file that --json wrote")
    return told


def _on_disk(key: str) -> ModelSpec:
    from canvas.catalog import get_model
    from canvas.models.download import find_local

    spec = get_model(key)
    if find_local(spec) is None:
        raise InvalidInput(
            "model", key, f"a model on disk; fetch it: python -m canvas download {key}"
        )
    return spec


@app.command()
@with_examples("python -m canvas bench startup --turns 3")
def startup(
    turns: Annotated[int, number_option("turns", "how often each is started", int)] = 5,
    json: AsJson = False,
) -> None:
    """Seconds to the first page, beside a bare Gradio hello-world, and to the first picture."""
    validation.integer("turns", turns, 1, 1000)
    seconds: dict[str, list[float]] = {"page": [], "picture": [], "gradio_hello_world": []}
    for _ in range(turns):  # in turns, so that a busy minute meets both
        with tempfile.TemporaryDirectory() as folder:
            program = [str(ROOT / "app.py"), "--data-dir", folder, "--port"]
            with run_server(program) as (began, port):
                seconds["page"].append(time.monotonic() - began)
                _first_picture(port)
                seconds["picture"].append(time.monotonic() - began)
        with run_server(["-c", GRADIO_HELLO_WORLD]) as (began, _):
            seconds["gradio_hello_world"].append(time.monotonic() - began)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = medians["page"] / medians["gradio_hello_world"]
    if json:
        print_json({"seconds": seconds, "medians": medians, "ratio": ratio})
        return
    for name, values in seconds.items():
        listed = ", ".join(f"{value:.2f}" for value in values)
        print_line(
            f"{name.replace('_', ' '):20}{medians[name]:6.2f} s  (median of {turns}: {listed})"
        )
    print_line(f"{'page to hello world':20}{ratio:6.2f}")


@contextmanager
def run_server(arguments: list[str]) -> Iterator[tuple[float, int]]:
    """A server from its start to its first answer: when it began, and its port.

    The port is added to the Python arguments.
    """
    from canvas.server.launch import free_port

    port = free_port()
    began = time.monotonic()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(  # noqa: S603 - our own programs only
            [sys.executable, *arguments, str(port)], stdout=subprocess.DEVNULL, stderr=errors
        )
        try:
            while not _answers(port):
                if process.poll() is not None or time.monotonic() - began > PATIENCE:
                    errors.seek(0)
                    said = errors.read().decode(errors="replace").strip().splitlines()
                    raise CanvasError(f"The server did not start: {said[-1] if said else ''}")
                time.sleep(PAUSE)
            yield began, port
        finally:
            process.terminate()
            process.wait()


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=PATIENCE) as answer:
            return bool(answer.read())
    except (urllib.error.URLError, ConnectionError):
        return False


def _first_picture(port: int) -> None:
    body = b'{"prompt": "a red boat on a lake", "model": "starter"}'
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/images/generations",
        body,
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:  # noqa: S310
            answer.read()
    except OSError as error:
        raise CanvasError(f"The server made no picture: {error}") from error
