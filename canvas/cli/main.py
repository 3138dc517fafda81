"""Gathers the commands, and tells failures in one line with an exit code."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer.completion import completion_init

from canvas.cli import bench, deploy_space, doctor, export_import, generate, keys, models
from canvas.cli.console import AsJson, DataDir, print_error, print_json, print_line, with_examples
from canvas.errors import (
    CanvasError,
    GenerationCancelled,
)

NAME, VARIABLE = "canvas", "_CANVAS_COMPLETE"
ROOT = Path(__file__).resolve().parent.parent.parent
FUNCTIONS = {
    "bash": '{name}() {{ {run} "$@"; }}',
    "zsh": '{name}() {{ {run} "$@"; }}',
    "fish": "function {name}; {run} $argv; end",
}
# Where typer's scripts run the program by a name, which for a function of the shell is none.
CALLS = {
    "bash": ("complete_bash $1", "complete_bash {run}"),
    "zsh": ("complete_zsh canvas", "complete_zsh {run}"),
    "fish": ("(commandline -cp) canvas", "(commandline -cp) {run}"),
}


@with_examples(
    'eval "$(python -m canvas completion bash)"',
    "python -m canvas completion fish | source",
)
def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(help="Which shell.")],
) -> None:
    """Print what makes `canvas` a command of the shell that completes its options."""
    from typer.completion import get_completion_script

    run = f"env PYTHONPATH={shlex.quote(str(ROOT))} {shlex.quote(sys.executable)} -m canvas"
    script = get_completion_script(prog_name=NAME, complete_var=VARIABLE, shell=shell)
    by_name, by_path = CALLS[shell]
    print_line(FUNCTIONS[shell].format(name=NAME, run=run))
    print_line(script.replace(by_name, by_path.format(run=run)))


@with_examples(
    "python -m canvas serve --port 8000",
    "python -m canvas serve --host 0.0.0.0 --auth ann:secret",
)
def serve(  # noqa: PLR0913, PLR0917 - one parameter an option, as typer reads them
    host: Annotated[str | None, typer.Option(help="Address; 0.0.0.0 for all.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one.")] = None,
    share: Annotated[bool, typer.Option("--share", help="A public link.")] = False,
    auth: Annotated[
        str | None, typer.Option(metavar="USER:PASSWORD", help="Ask for a login.")
    ] = None,
    workers: Annotated[str | None, typer.Option(metavar="N", help="Processes that paint.")] = None,
    model: Annotated[str | None, typer.Option(metavar="KEY", help="Picked at first.")] = None,
    json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Serve the page and the API until Ctrl+C."""
    from canvas.server.launch import launch
    from canvas.settings import Settings
    from canvas.studio import Studio

    settings = Settings.from_environment(
        host=host,
        port=port,
        share=share or None,
        auth=auth,
        workers=workers,
        model=model,
        data_dir=data_dir.expanduser() if data_dir else None,
    )
    with Studio(settings) as studio:
        page = launch(studio, block=False, quiet=json)
        if json:
            print_json({"url": page.local_url})
        page.block_thread()


STOPPED = GenerationCancelled.exit_code  # of Ctrl+C, as in every shell
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
app.command()(export_import.export)
app.command("import")(export_import.import_)
app.add_typer(bench.app, name="bench")
app.add_typer(keys.app, name="keys")
app.command()(doctor.doctor)
app.command()(deploy_space.deploy)
app.command()(serve)
app.command()(completion)


def main(arguments: list[str] | None = None) -> None:
    """Run one command; leaves with 0, or with the failure's code after one line on stderr."""
    completion_init()  # typer does it only with options of its own for it
    try:
        code = app(arguments, standalone_mode=False, complete_var=VARIABLE)
        if code == STOPPED:  # typer makes this of Ctrl+C, and says nothing
            print_error("Stopped.")
    except CanvasError as error:
        print_error(str(error))
        code = error.exit_code
    except typer.TyperException as error:  # a wrong command line
        print_error(error.format_message())
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print_error("Stopped.")
        code = STOPPED
    except BrokenPipeError:  # whoever read our output has seen enough
        sys.stderr.close()  # else Python complains about it while it ends
        code = 0
    sys.exit(code)
