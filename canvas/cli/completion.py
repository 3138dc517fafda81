"""`completion`: a short name for the program in a shell, which completes what is typed."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from canvas.cli.terminal import examples, say

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


@examples(
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
    say(FUNCTIONS[shell].format(name=NAME, run=run))
    say(script.replace(by_name, by_path.format(run=run)))
