"""`models` and `download`: what can be picked, and fetching it beforehand."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from canvas.cli.console import AsJson, DataDir, examples, say, say_json, settings_of, wait


@examples(
    "python -m canvas models",
    "python -m canvas models --json",
)
def models(json: AsJson = False, data_dir: DataDir = None) -> None:
    """List the models, where each is and what it is good for."""
    from canvas.studio import Studio

    with Studio(settings_of(data_dir)) as studio:
        width = max(map(len, studio.models))
        for spec in studio.models.values():
            state = studio.model_state(spec.key)
            if json:
                say_json({**asdict(spec), **asdict(state)})
            else:
                say(f"{spec.key:{width}}  {state.sentence}")
                say(f"{'':{width}}  {spec.description or spec.name}")


@examples(
    "python -m canvas download small",
)
def download(
    model_key: Annotated[str, typer.Argument(metavar="KEY", help="See `models`.")],
    json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Fetch a model, so that its first picture need not wait for it."""
    from canvas.studio import Studio

    with Studio(settings_of(data_dir)) as studio:
        job = studio.download(model_key)
        wait(job, model_key)
        state = studio.model_state(model_key)
        if json:
            say_json(asdict(state))
        else:
            say(f"{model_key}: {state.sentence}")
