"""Gathers the commands, and tells failures in one line with an exit code."""

from __future__ import annotations

import sys

import typer
from typer.completion import completion_init

from canvas.cli import (
    archive,
    bench,
    completion,
    deploy,
    doctor,
    generate,
    keys,
    models,
    serve,
)
from canvas.cli.terminal import complain
from canvas.errors import (
    CanvasError,
    GenerationCancelled,
    InvalidInput,
    ModelUnavailable,
    NotAllowed,
    StorageError,
)

STOPPED = 130  # what Ctrl+C gives everywhere
# 2 is what a wrong command line gives, too.
EXIT_CODES: tuple[tuple[type[CanvasError], int], ...] = (
    (InvalidInput, 2),
    (ModelUnavailable, 3),
    (StorageError, 4),
    (NotAllowed, 5),
    (GenerationCancelled, STOPPED),
)

app = typer.Typer(
    name="python -m canvas",
    help="Magic Canvas: text to image on the machine that you have.",
    no_args_is_help=True,
    epilog="Leaves with 0, or 1 after a failure: 2 wrong input, 3 model not to be had, "
    "4 data folder not usable, 5 no key that counts, 130 stopped.",
    pretty_exceptions_enable=False,
    add_completion=False,  # typer's own knows no `python -m`
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(generate.generate)
app.command()(models.models)
app.command()(models.download)
app.command()(archive.export)
app.command("import")(archive.import_)
app.add_typer(bench.app, name="bench")
app.add_typer(keys.app, name="keys")
app.command()(doctor.doctor)
app.command()(deploy.deploy)
app.command()(serve.serve)
app.command()(completion.completion)


def main(arguments: list[str] | None = None) -> None:
    """Run one command; leaves with 0, or with the failure's code after one line on stderr."""
    completion_init()  # typer does it only with options of its own for it
    try:
        code = app(arguments, standalone_mode=False, complete_var=completion.VARIABLE)
        if code == STOPPED:  # typer makes this of Ctrl+C, and says nothing
            complain("Stopped.")
    except CanvasError as error:
        complain(str(error))
        code = exit_code(error)
    except typer.TyperException as error:  # a wrong command line
        complain(error.format_message())
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        complain("Stopped.")
        code = STOPPED
    except BrokenPipeError:  # whoever read our output has seen enough
        sys.stderr.close()  # else Python complains about it while it ends
        code = 0
    sys.exit(code)


def exit_code(error: CanvasError) -> int:
    """The exit code of a failure; 1 for all without one of their own."""
    return next((code for kind, code in EXIT_CODES if isinstance(error, kind)), 1)
