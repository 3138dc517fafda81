"""`doctor`: what works here, and what to do about what does not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Annotated

import typer

from canvas.cli import checkup
from canvas.cli.checkup import Finding
from canvas.cli.terminal import AsJson, DataDir, complain, examples, say, say_json, settings_of
from canvas.errors import CanvasError

if TYPE_CHECKING:
    from canvas.settings import Settings
    from canvas.studio import Studio

PACKAGES = ("gradio", "diffusers", "torch", "transformers", "huggingface_hub", "safetensors")
LITTLE_SPACE = 5 * 10**9  # bytes: one more model and some pictures


@examples(
    "python -m canvas doctor",
    "python -m canvas doctor --rebuild",
)
def doctor(
    json: AsJson = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Make a damaged database anew from the pictures.")
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Look at everything that the program needs; leaves with 1 when something is wrong."""
    if rebuild:
        _rebuild(settings_of(data_dir))
    findings = []
    for finding in _look(settings_of(data_dir)):
        findings.append(finding)
        if json:
            say_json(asdict(finding))
        else:
            grade = "BAD " if not finding.well else "note" if finding.note else "ok  "
            say(f"{grade} {finding.name}: {finding.sentence}")
    if not all(finding.well for finding in findings):
        raise typer.Exit(1)


def _rebuild(settings: Settings) -> None:
    from canvas.history.rebuild import rebuild

    done = rebuild(settings.database, settings.outputs)
    if done.damaged is None:
        complain("The database is well: there is nothing to rebuild.")
    else:
        complain(
            f"{done.pictures} pictures are back, {done.owners} with their owners. "
            f"The damaged file is kept as {done.damaged}."
        )


def _look(settings: Settings) -> Iterator[Finding]:
    yield checkup.look_at_python()
    for package in PACKAGES:
        try:
            yield Finding(package, True, version(package))
        except PackageNotFoundError:
            sentence = "is missing; run: pip install -r requirements.txt"
            yield Finding(package, False, sentence)
    yield checkup.look_at_port(settings)
    yield from checkup.look_at_hub()
    from canvas.history.rebuild import damage

    wrong = damage(settings.database)
    if wrong:
        sentence = f"is damaged ({wrong}); stop the server and run doctor with --rebuild"
        yield Finding("database", False, sentence)
        return
    try:
        from canvas.studio import Studio

        with Studio(settings) as studio:
            yield Finding("data folder", True, str(settings.data_dir.resolve()))
            yield from _look_into(studio)
    except CanvasError as error:
        yield Finding("data folder", False, str(error))


def _look_into(studio: Studio) -> Iterator[Finding]:
    from canvas.engine import machine
    from canvas.models import gigabytes

    free = shutil.disk_usage(studio.settings.data_dir).free
    enough = free > LITTLE_SPACE
    more = "" if enough else "; remove models in the tab Models, or choose another --data-dir"
    yield Finding("disk", enough, f"{gigabytes(free)} free{more}")
    yield checkup.look_at_memory(machine.free_memory(), machine.total_memory())
    device = studio.device
    yield Finding("device", True, f"{device.name}, {device.dtype}: {device.reason}")
    yield checkup.look_at_gpu(device)
    for key in studio.models:
        yield Finding(f"model {key}", True, studio.model_state(key).sentence)
