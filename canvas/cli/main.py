"""The command line: exit codes, the entry point `magic-canvas`, and the commands that have no module of their own."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.completion import completion_init

from canvas.cli import deploy_space, doctor, generate, history
from canvas.cli.console import (
    AsJson,
    DataDir,
    load_settings,
    print_error,
    print_json,
    print_line,
    print_result,
    wait,
    with_examples,
)
from canvas.engine import configure_process
from canvas.errors import CanvasError, GenerationCancelled
from canvas.platform import program_version
from canvas.schedulers import SCHEDULERS
from canvas.styles import STYLES

if TYPE_CHECKING:
    from canvas.model_status import ModelStatus

CANCELLED = GenerationCancelled.exit_code  # also of Ctrl+C, as in shells
# Commands and options of version 0.1, still accepted.
OLD_NAMES = {
    "make": "create",
    "withdraw": "revoke",
    "where": "backend",
    "agree": "accept-terms",
    "beside": "compare-with",
    "turns": "rounds",
}
ROOT = Path(__file__).resolve().parent.parent.parent
SHELL_NAME, COMPLETE_VARIABLE = "canvas", "_CANVAS_COMPLETE"
SHELL_FUNCTIONS = {
    "bash": '{name}() {{ {run} "$@"; }}',
    "zsh": '{name}() {{ {run} "$@"; }}',
    "fish": "function {name}; {run} $argv; end",
}
# typer's scripts call the program by its name, which a shell function is not found by.
SCRIPT_CALLS = {
    "bash": ("complete_bash $1", "complete_bash {run}"),
    "zsh": ("complete_zsh canvas", "complete_zsh {run}"),
    "fish": ("(commandline -cp) canvas", "(commandline -cp) {run}"),
}


@with_examples("python -m canvas models", "python -m canvas models --json")
def models(json: AsJson = False, data_dir: DataDir = None) -> None:
    """List the models with their status and description."""
    from canvas.studio import Studio

    with Studio(load_settings(data_dir)) as studio:
        width = max(map(len, studio.models))
        for spec in studio.models.values():
            status = studio.model_status(spec.key)
            text = f"{spec.key:{width}}  {status.text}\n{'':{width}}  {spec.description or spec.name}"
            print_result(text, {**asdict(spec), **_status_fields(status)}, as_json=json)


@with_examples("python -m canvas download small", "python -m canvas download sd-turbo --accept-terms")
def download(
    model_key: Annotated[str, typer.Argument(metavar="KEY", help="A key that `models` lists.")],
    accept_terms: Annotated[bool, typer.Option("--accept-terms", help="Agree to the licence of the model.")] = False,
    json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Download a model without generating an image."""
    from canvas.studio import Studio

    with Studio(load_settings(data_dir)) as studio:
        if accept_terms:
            studio.accept_licence(model_key)
        wait(studio.download_model(model_key), model_key)
        status = studio.model_status(model_key)
        print_result(f"{model_key}: {status.text}", _status_fields(status), as_json=json)


def _status_fields(status: ModelStatus) -> dict[str, Any]:
    fields = {**asdict(status), "memory": str(status.memory or "")}
    return {"where": status.location, "gigaflops": status.spec.gflops_per_step, **fields}


@with_examples("python -m canvas styles", "python -m canvas styles --json")
def styles(json: AsJson = False) -> None:
    """List the styles with the words that they add."""
    width = max(map(len, STYLES))
    for name, style in STYLES.items():
        fields = {"name": name, "words": style.words, "negative_words": style.negative_words}
        print_result(f"{name:{width}}  {style.words}".rstrip(), fields, as_json=json)


@with_examples("python -m canvas schedulers", "python -m canvas schedulers --json")
def schedulers(json: AsJson = False) -> None:
    """List the schedulers."""
    for name, scheduler in SCHEDULERS.items():
        print_result(name, {"name": name, "class_name": scheduler.class_name}, as_json=json)


@with_examples('eval "$(python -m canvas completion bash)"', "python -m canvas completion fish | source")
def completion(shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(help="The shell.")]) -> None:
    """Print a script that defines the shell command `canvas` with completion."""
    from typer.completion import get_completion_script

    run = f"env PYTHONPATH={shlex.quote(str(ROOT))} {shlex.quote(sys.executable)} -m canvas"
    script = get_completion_script(prog_name=SHELL_NAME, complete_var=COMPLETE_VARIABLE, shell=shell)
    by_name, by_path = SCRIPT_CALLS[shell]
    print_line(SHELL_FUNCTIONS[shell].format(name=SHELL_NAME, run=run))
    print_line(script.replace(by_name, by_path.format(run=run)))


@with_examples("python -m canvas serve --port 8000", "python -m canvas serve --host 0.0.0.0 --auth ann:secret")
def serve(  # noqa: PLR0913, PLR0917 - one parameter per option, as typer requires
    host: Annotated[str | None, typer.Option(help="Address to listen on; 0.0.0.0 for all interfaces.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 for any free port.")] = None,
    share: Annotated[bool, typer.Option("--share", help="Create a public link.")] = False,
    auth: Annotated[str | None, typer.Option(metavar="USER:PASSWORD", help="Require a login.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Open to visitors without a login.")] = False,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow everyone on the network full access without a login.")
    ] = False,
    root_path: Annotated[
        str | None, typer.Option(metavar="PATH", help="Path under which a reverse proxy serves the app.")
    ] = None,
    admin: Annotated[str | None, typer.Option(metavar="USER", help="Login that sees the images of all users.")] = None,
    workers: Annotated[str | None, typer.Option(metavar="N", help="Worker processes; one per GPU by default.")] = None,
    cluster: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Ray cluster that generates the images.")
    ] = None,
    cores_per_worker: Annotated[
        str | None, typer.Option(metavar="N", help="CPU cores of each worker of the cluster; all of a node by default.")
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="KEY", help="Default model.")] = None,
    json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Start the web app and its APIs; stop with Ctrl+C."""
    from canvas.server.launch import block_until_stopped, exit_on_signals, launch
    from canvas.studio import Studio

    flags = {"share": share or None, "public": public or None, "insecure": insecure or None}
    options = {"host": host, "port": port, "auth": auth, "admin": admin, "root_path": root_path}
    workers_options = {"workers": workers, "cluster": cluster, "cores_per_worker": cores_per_worker}
    settings = load_settings(data_dir, model=model, **flags, **options, **workers_options)
    with exit_on_signals(), Studio(settings) as studio:
        with redirect_stdout(sys.stderr if json else sys.stdout):  # Gradio prints the MCP address
            page = launch(studio, block=False, quiet=json)
        if json:
            print_json({"url": page.local_url})
        block_until_stopped(page, studio)


def _bench_app() -> typer.Typer:
    if importlib.util.find_spec("canvas.benchmark") is not None:
        from canvas.benchmark.command import app as bench_app

        return bench_app
    stub = typer.Typer(context_settings={"ignore_unknown_options": True})

    @stub.callback(invoke_without_command=True)
    def bench(arguments: Annotated[list[str] | None, typer.Argument(hidden=True)] = None) -> None:
        """Not part of the installed package."""
        raise CanvasError(
            "The benchmarks are not part of the installed package; run `python -m canvas bench` in a copy of the "
            "source repository."
        )

    return stub


def _print_version(value: bool) -> None:
    if value:
        print_line(f"Magic Canvas {program_version()}")
        raise typer.Exit


def _version_option(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Magic Canvas: text to image on your own computer."""


app = typer.Typer(
    name="python -m canvas",
    help="Magic Canvas: text to image on your own computer.",
    no_args_is_help=True,
    epilog="Exit codes: 0 success, 1 failure, 2 invalid input, 3 model not available, "
    "4 data folder not usable, 5 missing or invalid API key, 130 cancelled.",
    pretty_exceptions_enable=False,
    add_completion=False,  # typer's own does not support `python -m`
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda name: OLD_NAMES.get(name, name),
    },
)
app.callback()(_version_option)
app.command()(generate.generate)
app.command()(generate.edit)
app.command()(generate.upscale)
app.command()(styles)
app.command()(schedulers)
app.command()(models)
app.command()(download)
app.command()(history.export)
app.command("import")(history.import_)
app.add_typer(_bench_app(), name="bench")
app.add_typer(history.keys, name="keys")
app.command()(doctor.doctor)
app.command()(deploy_space.deploy)
app.command()(serve)
app.command()(completion)


def main(arguments: list[str] | None = None, program: str = "python -m canvas") -> None:
    """Run a command and exit with its code; errors are one line on stderr."""
    configure_process()
    completion_init()  # typer calls it only for its own completion options
    try:
        code = app(arguments, prog_name=program, standalone_mode=False, complete_var=COMPLETE_VARIABLE)
        if code == CANCELLED:  # typer turns Ctrl+C into this code without a message
            print_error("Cancelled.")
    except CanvasError as error:
        print_error(error.full_text)
        code = error.exit_code
    except typer.TyperException as error:  # unknown commands and options
        print_error(error.format_message())
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print_error("Cancelled.")
        code = CANCELLED
    except SystemExit as exited:
        if not isinstance(exited.__context__, BrokenPipeError):
            raise
        code = 0  # the reader of our output has closed it; typer would exit with 1
    sys.exit(code)


def magic_canvas() -> None:
    """Entry point of the command `magic-canvas`: `serve` is the default command."""
    arguments = sys.argv[1:]
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        arguments = ["serve", *arguments]
    main(arguments, "magic-canvas")
