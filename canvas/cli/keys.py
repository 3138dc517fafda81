"""`keys`: create, list and revoke API keys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from canvas.cli.console import AsJson, DataDir, load_settings, print_json, print_result, with_examples

if TYPE_CHECKING:
    from canvas.history.api_keys import ApiKeyStore

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the key and its gallery.")]

app = typer.Typer(help="API keys, required when others can reach the server.", no_args_is_help=True)


@app.command("create")
@with_examples("python -m canvas keys create laptop")
def create_key(name: Name, json: AsJson = False, data_dir: DataDir = None) -> None:
    """Create a key and print it. It cannot be shown again."""
    with _open_keys(data_dir) as keys:
        secret = keys.create(name)
    print_result(secret, {"name": name, "key": secret}, as_json=json)


@app.command("list")
@with_examples("python -m canvas keys list")
def list_keys(json: AsJson = False, data_dir: DataDir = None) -> None:
    """List the names of the keys."""
    with _open_keys(data_dir) as keys:
        for key in keys.list():
            text = f"{key.name}  created {key.created_at} UTC"
            print_result(text, {**asdict(key), "owner": key.owner}, as_json=json)


@app.command("revoke")
@with_examples("python -m canvas keys revoke laptop")
def revoke_key(name: Name, json: AsJson = False, data_dir: DataDir = None) -> None:
    """Revoke a key with immediate effect; its images stay."""
    with _open_keys(data_dir) as keys:
        keys.revoke(name)
    if json:
        print_json({"revoked": name, "withdrawn": name})


@contextmanager
def _open_keys(data_dir: Path | None) -> Iterator[ApiKeyStore]:
    from canvas.history.api_keys import ApiKeyStore
    from canvas.history.database import Database

    with closing(Database(load_settings(data_dir).database_path)) as database:
        yield ApiKeyStore(database)
