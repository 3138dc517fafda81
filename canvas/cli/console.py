"""Shared options, output and progress bar of the commands."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from canvas.errors import GenerationCancelled, InvalidInput, StorageError
from canvas.files import atomic_write
from canvas.formatting import format_progress

if TYPE_CHECKING:
    from canvas.jobs.job import Job
    from canvas.settings import Settings

Command = TypeVar("Command", bound=Callable[..., Any])
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", metavar="DIR", help="Folder of ai_images.db and outputs/.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]


def number_option(field: str, allowed: str, kind: Callable[[str], Any]) -> Any:
    """A numeric option; unlike typer's own, its error names the value and what is allowed."""

    def parse(value: Any) -> Any:
        try:
            return kind(str(value))
        except ValueError as error:
            raise InvalidInput(field, value, allowed) from error

    return typer.Option(parser=parse, metavar="N", help=f"{allowed.capitalize()}.")


def with_examples(*lines: str) -> Callable[[Command], Command]:
    """Append examples to the help text of a command."""

    def add(command: Command) -> Command:
        examples = "\n\n".join(f"  {line}" for line in lines)
        command.__doc__ = f"{command.__doc__}\n\nExamples:\n\n{examples}\n"
        return command

    return add


def load_settings(data_dir: Path | None, **options: Any) -> Settings:
    """Settings from the environment, overridden by command line options."""
    from canvas.settings import Settings

    return Settings.from_environment(data_dir=data_dir.expanduser() if data_dir else None, **options)


def print_line(text: str) -> None:
    """Print one line of the result."""
    typer.echo(text)


def print_json(value: Any) -> None:
    """Print one line of JSON; infinite numbers, which JSON does not have, become null."""
    typer.echo(json.dumps(_finite(value), ensure_ascii=False))


def print_result(text: str, value: Any, *, as_json: bool) -> None:
    """Print a result as text, or as one line of JSON."""
    if as_json:
        print_json(value)
    else:
        print_line(text)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_error(text: str) -> None:
    """Print one line to stderr."""
    typer.echo(" ".join(text.split()), err=True)


def write_file(path: Path, chunks: Iterable[bytes]) -> None:
    """Write a file whole or not at all; raises StorageError."""
    try:
        with atomic_write(path) as file:
            for chunk in chunks:
                file.write(chunk)
    except OSError as error:
        raise StorageError(
            f"{str(path)!r} cannot be written ({error.strerror}). Free some disk space, check "
            "the permissions or choose another path."
        ) from error


def wait(job: Job, title: str) -> None:
    """Wait for a job with a progress bar; Ctrl+C cancels it. Raises the job's error."""
    try:
        with progress_bar(title) as show:
            for _ in job.subscribe():
                show(*format_progress(job.status, job.progress))
        job.wait()
    except KeyboardInterrupt:
        job.cancel()
        raise GenerationCancelled("Cancelled.") from None


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[float, str], None]]:
    """A function that shows a fraction (0 to 1) and a note; silent unless stderr is a terminal."""
    if not sys.stderr.isatty():
        yield lambda fraction, note: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=1.0, note="")
        yield lambda fraction, note: progress.update(task, completed=fraction, note=note)
