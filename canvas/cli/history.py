"""`export`, `import` and `keys`: the commands on the history of images and on API keys."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from canvas.cli.console import (
    AsJson,
    DataDir,
    load_settings,
    print_error,
    print_json,
    print_result,
    with_examples,
    write_file,
)
from canvas.errors import InvalidInput
from canvas.request import LOCAL_OWNER

if TYPE_CHECKING:
    from canvas.history.api_keys import ApiKeyStore
    from canvas.history.database import Database
    from canvas.settings import Settings

STDOUT = "-"
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the key and its gallery.")]

keys = typer.Typer(help="API keys, required when others can reach the server.", no_args_is_help=True)


@with_examples("python -m canvas export images.zip", "python -m canvas export boats.zip --text boat --format webp")
def export(
    target: Annotated[str, typer.Argument(metavar="FILE.zip", help="Output file; - is stdout.")],
    text: Annotated[str, typer.Option(help="Only images with these words in the prompt.")] = "",
    model: Annotated[str | None, typer.Option(metavar="KEY", help="Only images of this model.")] = None,
    favourites: Annotated[bool, typer.Option("--favourites", help="Only favourites.")] = False,
    image_format: Annotated[str | None, typer.Option("--format", help="Convert to png, jpeg or webp.")] = None,
    json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Export images with their settings as a ZIP file."""
    from canvas.history.export_zip import export_zip
    from canvas.history.image_files import ImageStorage
    from canvas.history.queries import Query

    query = Query(text=text, owner=LOCAL_OWNER, model_key=model, favourite=favourites or None)
    settings = load_settings(data_dir)
    with _open_database(settings) as database:
        storage = ImageStorage(settings.outputs_dir)
        chunks = export_zip(database, storage, query, image_format=image_format, filename=Path(target).name)
        if target == STDOUT:
            for chunk in chunks:
                sys.stdout.buffer.write(chunk)
        else:
            write_file(Path(target), chunks)
            print_result(target, {"file": target, "bytes": Path(target).stat().st_size}, as_json=json)


@with_examples("python -m canvas import images.zip", "python -m canvas import ~/Pictures/generated")
def import_(
    source: Annotated[Path, typer.Argument(metavar="PATH", help="A ZIP file or a folder.")],
    json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Import images of an export or of other programs, with the settings stored in them."""
    from canvas.history.image_files import ImageStorage
    from canvas.history.import_zip import import_folder, import_zip

    if not source.exists():
        raise InvalidInput("path", str(source), "a ZIP file or a folder that exists")
    settings = load_settings(data_dir)
    with _open_database(settings) as database:
        load = import_folder if source.is_dir() else import_zip
        result = load(database, ImageStorage(settings.outputs_dir), source, LOCAL_OWNER)
    errors = list(result.errors)
    for error in errors:
        print_error(error)
    text = f"{result.added} added, {result.duplicates} duplicates, {len(errors)} errors"
    counts = {"added": result.added, "duplicates": result.duplicates}
    print_result(text, {**counts, "errors": errors, "refused": errors}, as_json=json)


@keys.command("create")
@with_examples("python -m canvas keys create laptop")
def create_key(name: Name, json: AsJson = False, data_dir: DataDir = None) -> None:
    """Create a key and print it. It cannot be shown again."""
    with _open_keys(data_dir) as store:
        secret = store.create(name)
    print_result(secret, {"name": name, "key": secret}, as_json=json)


@keys.command("list")
@with_examples("python -m canvas keys list")
def list_keys(json: AsJson = False, data_dir: DataDir = None) -> None:
    """List the names of the keys."""
    with _open_keys(data_dir) as store:
        for key in store.list():
            text = f"{key.name}  created {key.created_at} UTC"
            print_result(text, {**asdict(key), "owner": key.owner}, as_json=json)


@keys.command("revoke")
@with_examples("python -m canvas keys revoke laptop")
def revoke_key(name: Name, json: AsJson = False, data_dir: DataDir = None) -> None:
    """Revoke a key with immediate effect; its images stay."""
    with _open_keys(data_dir) as store:
        store.revoke(name)
    if json:
        print_json({"revoked": name, "withdrawn": name})


@contextmanager
def _open_keys(data_dir: Path | None) -> Iterator[ApiKeyStore]:
    from canvas.history.api_keys import ApiKeyStore

    with _open_database(load_settings(data_dir)) as database:
        yield ApiKeyStore(database)


def _open_database(settings: Settings) -> closing[Database]:
    # Without a Studio: no model is needed, and a server may be running on the same folder.
    from canvas.history.database import Database

    return closing(Database(settings.database_path))
