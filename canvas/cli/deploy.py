"""`deploy`: this program as a Hugging Face Space of yours."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from canvas.cli.terminal import AsJson, examples, say, say_json


@examples("python -m canvas deploy me/canvas --dry-run")
def deploy(
    space_id: Annotated[str, typer.Argument(metavar="USER/NAME", help="The Space.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would go up, and send nothing.")
    ] = False,
    private: Annotated[bool, typer.Option("--private", help="Only you may see it.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json: AsJson = False,
) -> None:
    """Create or update a Hugging Face Space; shows what goes up and asks before it does."""
    from canvas.engine import deploying
    from canvas.models import gigabytes

    deploying.check_space_id(space_id)
    files = deploying.space_files()
    for file in files:
        if json:
            say_json(asdict(file))
        else:
            say(f"{gigabytes(file.size):>9}  {file.path}")
    total = gigabytes(sum(file.size for file in files))
    words = f"{len(files)} files, {total}"
    if dry_run:
        if not json:
            say(f"{words} would go to the Space {space_id}; nothing was sent.")
        return
    if not yes:
        typer.confirm(f"Send these {words} to the Space {space_id}?", abort=True, err=True)
    address = deploying.send(space_id, files, private=private)
    if json:
        say_json({"space": space_id, "address": address})
    else:
        say(f"Sent. The Space builds itself now, in some minutes: {address}")
