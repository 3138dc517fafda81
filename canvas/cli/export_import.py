"""`export` and `import`: images with their settings, to and from a ZIP file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from canvas.cli.console import AsJson, DataDir, load_settings, print_error, print_result, with_examples, write_file
from canvas.errors import InvalidInput
from canvas.request import LOCAL_OWNER

if TYPE_CHECKING:
    from canvas.history.database import Database
    from canvas.history.image_files import ImageStorage

STDOUT = "-"


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
    from canvas.history.queries import Query

    query = Query(text=text, owner=LOCAL_OWNER, model_key=model, favourite=favourites or None)
    with _open_storage(data_dir) as (database, storage):
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
    from canvas.history.import_zip import import_folder, import_zip

    if not source.exists():
        raise InvalidInput("path", str(source), "a ZIP file or a folder that exists")
    with _open_storage(data_dir) as (database, storage):
        load = import_folder if source.is_dir() else import_zip
        result = load(database, storage, source, LOCAL_OWNER)
    errors = list(result.errors)
    for error in errors:
        print_error(error)
    text = f"{result.added} added, {result.duplicates} duplicates, {len(errors)} errors"
    counts = {"added": result.added, "duplicates": result.duplicates}
    print_result(text, {**counts, "errors": errors, "refused": errors}, as_json=json)


@contextmanager
def _open_storage(data_dir: Path | None) -> Iterator[tuple[Database, ImageStorage]]:
    # Without a Studio: no model is needed, and a server may be running on the same folder.
    from canvas.history.database import Database
    from canvas.history.image_files import ImageStorage

    settings = load_settings(data_dir)
    with closing(Database(settings.database_path)) as database:
        yield database, ImageStorage(settings.outputs_dir)
