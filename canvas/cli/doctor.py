"""`doctor`: what works here, and what to do about what does not."""

from __future__ import annotations

import platform
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Annotated

import typer

from canvas.cli.console import AsJson, DataDir, complain, examples, say, say_json, settings_of
from canvas.errors import CanvasError

if TYPE_CHECKING:
    from canvas.engine.device import Device
    from canvas.settings import Settings
    from canvas.studio import Studio

OLDEST = (3, 11)
LITTLE_MEMORY = 2 * 10**9  # bytes: the built-in model, torch and the page
ENOUGH_MEMORY = 6 * 10**9  # bytes: one Stable Diffusion model in float32


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `note` marks what only some need."""

    name: str
    well: bool
    sentence: str
    note: bool = False


def look_at_python() -> Finding:
    """Whether this Python is new enough."""
    sentence = f"{platform.python_version()} on {platform.platform()}"
    if sys.version_info < OLDEST:
        return Finding("python", False, f"{sentence}; install 3.11 or newer")
    return Finding("python", True, sentence)


def look_at_memory(free: int, total: int) -> Finding:
    """Whether models fit; bytes."""
    from canvas.formatting import gigabytes

    sentence = f"{gigabytes(free)} of {gigabytes(total)} free"
    if free < LITTLE_MEMORY:
        return Finding("memory", False, f"{sentence}; close other programs")
    if free < ENOUGH_MEMORY:
        enough = "enough for starter; close other programs before you pick a larger model"
        return Finding("memory", True, f"{sentence}: {enough}", note=True)
    return Finding("memory", True, sentence)


def look_at_gpu(device: Device) -> Finding:
    """Whether a GPU is there that torch does not use."""
    unused = device.name == "cpu" and shutil.which("nvidia-smi") is not None
    if unused:
        return Finding(
            "gpu",
            False,
            "there is an NVIDIA driver, but this torch cannot use it; install the build for "
            "your CUDA from https://pytorch.org/get-started/locally/, or set CANVAS_DEVICE=cpu",
        )
    return Finding("gpu", True, "none is needed" if device.name == "cpu" else device.reason)


def look_at_port(settings: Settings) -> Finding:
    """Whether the page can be served where it is meant to be."""
    host, port = settings.host, settings.port
    if port == 0:
        return Finding("port", True, "a free one is taken")
    try:
        with socket.create_server((host, port)):
            return Finding("port", True, f"{port} is free")
    except OSError as error:
        if _is_ours(port):
            return Finding("port", True, f"Magic Canvas answers on {port} already")
        why = f"{host}:{port} cannot be had ({error.strerror}); start with --port {port + 1}"
        return Finding("port", False, why)


def _is_ours(port: int) -> bool:
    import httpx

    try:
        answer = httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=5)
        return "asks_for_keys" in answer.json()
    except (httpx.HTTPError, ValueError):
        return False


def look_at_hub() -> Iterator[Finding]:
    """Whether models can be downloaded, and with whose token."""
    from canvas.models.hub_client import reach_hub

    reach = reach_hub()
    if reach.offline:
        yield Finding("hub", True, f"{reach.offline}; what is on disk works without", note=True)
        return
    yield Finding("hub", True, "answers")
    if reach.wrong:
        yield Finding("token", False, f"{reach.wrong} and set HF_TOKEN")
    elif reach.name:
        yield Finding("token", True, f"of {reach.name}")
    else:
        yield Finding("token", True, "none; only models with terms need HF_TOKEN", note=True)


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
    from canvas.history.repair import rebuild

    done = rebuild(settings.database, settings.outputs)
    if done.damaged is None:
        complain("The database is well: there is nothing to rebuild.")
    else:
        complain(
            f"{done.pictures} pictures are back, {done.owners} with their owners. "
            f"The damaged file is kept as {done.damaged}."
        )


def _look(settings: Settings) -> Iterator[Finding]:
    yield look_at_python()
    for package in PACKAGES:
        try:
            yield Finding(package, True, version(package))
        except PackageNotFoundError:
            sentence = "is missing; run: pip install -r requirements.txt"
            yield Finding(package, False, sentence)
    yield look_at_port(settings)
    yield from look_at_hub()
    from canvas.history.repair import damage

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
    from canvas.engine import system_info
    from canvas.formatting import gigabytes

    free = shutil.disk_usage(studio.settings.data_dir).free
    enough = free > LITTLE_SPACE
    more = "" if enough else "; remove models in the tab Models, or choose another --data-dir"
    yield Finding("disk", enough, f"{gigabytes(free)} free{more}")
    yield look_at_memory(system_info.free_memory(), system_info.total_memory())
    device = studio.device
    yield Finding("device", True, f"{device.name}, {device.dtype}: {device.reason}")
    yield look_at_gpu(device)
    for key in studio.models:
        yield Finding(f"model {key}", True, studio.model_state(key).sentence)
