"""`models` and `download`: list the models and download one."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from canvas.cli.console import AsJson, DataDir, load_settings, print_result, wait, with_examples

if TYPE_CHECKING:
    from canvas.model_status import ModelStatus


@with_examples("python -m canvas models", "python -m canvas models --json")
def models(json: AsJson = False, data_dir: DataDir = None) -> None:
    """List the models with their status and description."""
    from canvas.studio import Studio

    with Studio(load_settings(data_dir)) as studio:
        width = max(map(len, studio.models))
        for spec in studio.models.values():
            status = studio.model_status(spec.key)
            text = f"{spec.key:{width}}  {status.text}\n{'':{width}}  {spec.description or spec.name}"
            print_result(text, {**asdict(spec), **_as_dict(status)}, as_json=json)


@with_examples("python -m canvas download small", "python -m canvas download sd-turbo --accept-terms")
def download(
    model_key: Annotated[str, typer.Argument(metavar="KEY", help="A key that `models` lists.")],
    accept_terms: Annotated[bool, typer.Option("--accept-terms", help="Agree to the licence of the model.")] = False,
    json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Download a model without generating an image."""
    from canvas.studio import Studio

    with Studio(load_settings(data_dir)) as studio:
        if accept_terms:
            studio.accept_licence(model_key)
        wait(studio.download_model(model_key), model_key)
        status = studio.model_status(model_key)
        print_result(f"{model_key}: {status.text}", _as_dict(status), as_json=json)


def _as_dict(status: ModelStatus) -> dict[str, Any]:
    fields = {**asdict(status), "memory": str(status.memory or "")}
    return {"where": status.location, "gigaflops": status.spec.gflops_per_step, **fields}
