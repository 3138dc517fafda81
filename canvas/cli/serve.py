"""`serve`: the same as `python app.py`."""

from __future__ import annotations

from typing import Annotated

import typer

from canvas.cli.terminal import AsJson, DataDir, examples, say_json


@examples(
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
    from canvas.serve import launch
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
            say_json({"url": page.local_url})
        page.block_thread()
