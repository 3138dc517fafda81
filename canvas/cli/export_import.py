"""`export` and `import`: pictures with their settings, out as a ZIP and in again."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from canvas.cli.console import (
    AsJson,
    DataDir,
    load_settings,
    print_error,
    print_json,
    print_line,
    with_examples,
)
from canvas.errors import InvalidInput, StorageError
from canvas.request import LOCAL_OWNER

if TYPE_CHECKING:
    from canvas.history.database import Database
    from canvas.history.image_files import ImageStorage

STDOUT = "-"


@with_examples(
    "python -m canvas export pictures.zip",
    "python -m canvas export boats.zip --text boat --format webp",
)
def export(
    target: Annotated[str, typer.Argument(metavar="FILE.zip", help="Where to; - is stdout.")],
    text: Annotated[str, typer.Option(help="Only with these words in the prompt.")] = "",
    model: Annotated[str | None, typer.Option(metavar="KEY", help="Only of this model.")] = None,
    favourites: Annotated[bool, typer.Option("--favourites", help="Only those.")] = False,
    image_format: Annotated[
        str | None, typer.Option("--format", help="Convert to png, jpeg or webp.")
    ] = None,
    json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Write all pictures with their settings into one ZIP."""
    from canvas.history.export_zip import export_zip
    from canvas.history.queries import Query

    query = Query(text=text, owner=LOCAL_OWNER, model_key=model, favourite=favourites or None)
    with _open_storage(data_dir) as (store, folder):
        pieces = export_zip(
            store, folder, query, image_format=image_format, filename=Path(target).name
        )
        if target == STDOUT:
            for piece in pieces:
                sys.stdout.buffer.write(piece)
        else:
            _write(Path(target), pieces)
            if json:
                print_json({"file": target, "bytes": Path(target).stat().st_size})
            else:
                print_line(target)


@with_examples(
    "python -m canvas import pictures.zip",
    "python -m canvas import ~/Pictures/generated",
)
def import_(
    source: Annotated[Path, typer.Argument(metavar="PATH", help="A ZIP, or a folder.")],
    json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Take in pictures of an export or of other programs, with what settings they carry."""
    from canvas.history.import_zip import import_folder, import_zip

    if not source.exists():
        raise InvalidInput("path", str(source), "a ZIP file or a folder that exists")
    with _open_storage(data_dir) as (store, folder):
        take = import_folder if source.is_dir() else import_zip
        done = take(store, folder, source, LOCAL_OWNER)
    for reason in done.refused:
        print_error(reason)
    if json:
        counts = {"added": done.added, "duplicates": done.duplicates}
        print_json({**counts, "refused": list(done.refused)})
    else:
        refused = len(done.refused)
        print_line(f"{done.added} added, {done.duplicates} here already, {refused} refused")


@contextmanager
def _open_storage(data_dir: Path | None) -> Iterator[tuple[Database, ImageStorage]]:
    # No studio: neither needs a model, and a server may be running beside.
    from canvas.history.database import Database
    from canvas.history.image_files import ImageStorage

    settings = load_settings(data_dir)
    store = Database(settings.database_path)
    try:
        yield store, ImageStorage(settings.outputs_dir)
    finally:
        store.close()


def _write(path: Path, pieces: Iterator[bytes]) -> None:
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            try:
                for piece in pieces:
                    file.write(piece)
                os.replace(file.name, path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written ({error.strerror}). Free some space there, give yourself "
            "the right to write, or choose another place."
        ) from error
