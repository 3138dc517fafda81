"""`keys`: made, listed and withdrawn, for programs that call from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from canvas.cli.console import AsJson, DataDir, load_settings, print_json, print_line, with_examples

if TYPE_CHECKING:
    from canvas.history.api_keys import ApiKeyStore

Name = Annotated[str, typer.Argument(metavar="NAME", help="Whose pictures they are.")]

app = typer.Typer(
    help="Keys for programs, needed where others can reach the server.", no_args_is_help=True
)


@app.command()
@with_examples("python -m canvas keys make laptop")
def create_key(name: Name, json: AsJson = False, data_dir: DataDir = None) -> None:
    """Make a key. It is shown now and never again."""
    with _keys(data_dir) as keys:
        secret = keys.create(name)
    if json:
        print_json({"name": name, "key": secret})
    else:
        print_line(secret)


@app.command("list")
@with_examples("python -m canvas keys list")
def list_keys(json: AsJson = False, data_dir: DataDir = None) -> None:
    """List the keys by name."""
    with _keys(data_dir) as keys:
        for key in keys.list():
            if json:
                print_json({**asdict(key), "owner": key.owner})
            else:
                print_line(f"{key.name}  made {key.created_at} UTC")


@app.command()
@with_examples("python -m canvas keys withdraw laptop")
def revoke_key(name: Name, json: AsJson = False, data_dir: DataDir = None) -> None:
    """Let a key count no more, at once; its pictures stay."""
    with _keys(data_dir) as keys:
        keys.revoke(name)
    if json:
        print_json({"withdrawn": name})


@contextmanager
def _keys(data_dir: Path | None) -> Iterator[ApiKeyStore]:
    from canvas.history.api_keys import ApiKeyStore
    from canvas.history.database import Database

    store = Database(load_settings(data_dir).database_path)
    try:
        yield ApiKeyStore(store)
    finally:
        store.close()
