"""`models` and `download`: what can be picked, and fetching it beforehand."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from canvas.cli.console import (
    AsJson,
    DataDir,
    load_settings,
    print_json,
    print_line,
    wait,
    with_examples,
)


@with_examples(
    "python -m canvas models",
    "python -m canvas models --json",
)
def models(json: AsJson = False, data_dir: DataDir = None) -> None:
    """List the models, where each is and what it is good for."""
    from canvas.studio import Studio

    with Studio(load_settings(data_dir)) as studio:
        width = max(map(len, studio.models))
        for spec in studio.models.values():
            state = studio.model_status(spec.key)
            if json:
                print_json({**asdict(spec), **asdict(state)})
            else:
                print_line(f"{spec.key:{width}}  {state.text}")
                print_line(f"{'':{width}}  {spec.description or spec.name}")


@with_examples(
    "python -m canvas download small",
)
def download(
    model_key: Annotated[str, typer.Argument(metavar="KEY", help="See `models`.")],
    json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Fetch a model, so that its first picture need not wait for it."""
    from canvas.studio import Studio

    with Studio(load_settings(data_dir)) as studio:
        job = studio.download_model(model_key)
        wait(job, model_key)
        state = studio.model_status(model_key)
        if json:
            print_json(asdict(state))
        else:
            print_line(f"{model_key}: {state.text}")
