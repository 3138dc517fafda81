"""`keys`: made, listed and withdrawn, for programs that call from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from canvas.cli.console import AsJson, DataDir, examples, say, say_json, settings_of

if TYPE_CHECKING:
    from canvas.history.api_keys import Keys

Name = Annotated[str, typer.Argument(metavar="NAME", help="Whose pictures they are.")]

app = typer.Typer(
    help="Keys for programs, needed where others can reach the server.", no_args_is_help=True
)


@app.command()
@examples("python -m canvas keys make laptop")
def make(name: Name, json: AsJson = False, data_dir: DataDir = None) -> None:
    """Make a key. It is shown now and never again."""
    with _keys(data_dir) as keys:
        secret = keys.make(name)
    if json:
        say_json({"name": name, "key": secret})
    else:
        say(secret)


@app.command("list")
@examples("python -m canvas keys list")
def list_keys(json: AsJson = False, data_dir: DataDir = None) -> None:
    """List the keys by name."""
    with _keys(data_dir) as keys:
        for key in keys.listed():
            if json:
                say_json({**asdict(key), "owner": key.owner})
            else:
                say(f"{key.name}  made {key.created_at} UTC")


@app.command()
@examples("python -m canvas keys withdraw laptop")
def withdraw(name: Name, json: AsJson = False, data_dir: DataDir = None) -> None:
    """Let a key count no more, at once; its pictures stay."""
    with _keys(data_dir) as keys:
        keys.withdraw(name)
    if json:
        say_json({"withdrawn": name})


@contextmanager
def _keys(data_dir: Path | None) -> Iterator[Keys]:
    from canvas.history.api_keys import Keys
    from canvas.history.database import Store

    store = Store(settings_of(data_dir).database)
    try:
        yield Keys(store)
    finally:
        store.close()
