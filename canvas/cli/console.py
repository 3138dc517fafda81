"""What a command shows: words, JSON, and a bar where somebody looks."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from canvas.errors import GenerationCancelled, InvalidInput
from canvas.jobs.job import format_progress

if TYPE_CHECKING:
    from canvas.jobs.job import Job
    from canvas.settings import Settings

Command = TypeVar("Command", bound=Callable[..., Any])
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir", metavar="DIR", help="Folder of ai_images.db and outputs/.", show_default=False
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]


def number_option(field: str, allowed: str, kind: Callable[[str], Any]) -> Any:
    """An option that takes a number and, unlike typer, names the value that is none."""

    def parse(value: Any) -> Any:
        try:
            return kind(str(value))
        except ValueError as error:
            raise InvalidInput(field, value, allowed) from error

    return typer.Option(parser=parse, metavar="N", help=f"{allowed.capitalize()}.")


def with_examples(*lines: str) -> Callable[[Command], Command]:
    """Add examples to what a command's --help says."""

    def add(command: Command) -> Command:
        shown = "\n\n".join(f"  {line}" for line in lines)
        command.__doc__ = f"{command.__doc__}\n\nExamples:\n\n{shown}\n"
        return command

    return add


def load_settings(data_dir: Path | None, key: str | None = None) -> Settings:
    """The environment's settings with what the command line says of them."""
    from canvas.settings import Settings

    folder = data_dir.expanduser() if data_dir else None
    return Settings.from_environment(data_dir=folder, key=key)


def print_line(text: str) -> None:
    """One line of the answer."""
    typer.echo(text)


def print_json(value: Any) -> None:
    """One line of the answer for programs; JSON knows no infinity, so that becomes null."""
    typer.echo(json.dumps(_finite(value), ensure_ascii=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_error(text: str) -> None:
    """One line on stderr."""
    typer.echo(" ".join(text.split()), err=True)


def wait(job: Job, title: str) -> None:
    """Wait for a job with a bar on a terminal, in silence elsewhere; Ctrl+C stops the job.

    Raises why it failed.
    """
    try:
        with progress_bar(title) as show:
            for _ in job.subscribe():
                show(*format_progress(job.status, job.progress))
        job.wait()
    except KeyboardInterrupt:
        job.cancel()
        raise GenerationCancelled("Stopped.") from None


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[float, str], None]]:
    """Shows how far something is, 0 to 1, and a word on it; nothing where nobody looks."""
    if not sys.stderr.isatty():
        yield lambda fraction, note: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(title, total=1.0, note="")
        yield lambda fraction, note: shown.update(task, completed=fraction, note=note)
