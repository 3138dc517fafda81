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

from canvas.cli.console import (
    AsJson,
    DataDir,
    load_settings,
    print_error,
    print_json,
    print_line,
    with_examples,
)
from canvas.errors import CanvasError
from canvas.formatting import format_bytes

if TYPE_CHECKING:
    from canvas.engine.device import Device
    from canvas.settings import Settings
    from canvas.studio import Studio

OLDEST = (3, 11)
LITTLE_MEMORY = 2 * 10**9  # bytes: the built-in model, torch and the page
ENOUGH_MEMORY = 6 * 10**9  # bytes: one Stable Diffusion model in float32


@dataclass(frozen=True)
class Check:
    """One thing that was looked at; `note` marks what only some need."""

    name: str
    well: bool
    sentence: str
    note: bool = False


def check_python() -> Check:
    """Whether this Python is new enough."""
    sentence = f"{platform.python_version()} on {platform.platform()}"
    if sys.version_info < OLDEST:
        return Check("python", False, f"{sentence}; install 3.11 or newer")
    return Check("python", True, sentence)


def check_memory(free: int, total: int) -> Check:
    """Whether models fit; bytes."""

    sentence = f"{format_bytes(free)} of {format_bytes(total)} free"
    if free < LITTLE_MEMORY:
        return Check("memory", False, f"{sentence}; close other programs")
    if free < ENOUGH_MEMORY:
        enough = "enough for starter; close other programs before you pick a larger model"
        return Check("memory", True, f"{sentence}: {enough}", note=True)
    return Check("memory", True, sentence)


def check_gpu(device: Device) -> Check:
    """Whether a GPU is there that torch does not use."""
    unused = device.name == "cpu" and shutil.which("nvidia-smi") is not None
    if unused:
        return Check(
            "gpu",
            False,
            "there is an NVIDIA driver, but this torch cannot use it; install the build for "
            "your CUDA from https://pytorch.org/get-started/locally/, or set CANVAS_DEVICE=cpu",
        )
    return Check("gpu", True, "none is needed" if device.name == "cpu" else device.reason)


def check_port(settings: Settings) -> Check:
    """Whether the page can be served where it is meant to be."""
    host, port = settings.host, settings.port
    if port == 0:
        return Check("port", True, "a free one is taken")
    try:
        with socket.create_server((host, port)):
            return Check("port", True, f"{port} is free")
    except OSError as error:
        if _is_ours(port):
            return Check("port", True, f"Magic Canvas answers on {port} already")
        why = f"{host}:{port} cannot be had ({error.strerror}); start with --port {port + 1}"
        return Check("port", False, why)


def _is_ours(port: int) -> bool:
    import httpx

    try:
        answer = httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=5)
        return "asks_for_keys" in answer.json()
    except (httpx.HTTPError, ValueError):
        return False


def check_hub_reachable() -> Iterator[Check]:
    """Whether models can be downloaded, and with whose token."""
    from canvas.models.hub_client import check_hub

    reach = check_hub()
    if reach.offline:
        yield Check("hub", True, f"{reach.offline}; what is on disk works without", note=True)
        return
    yield Check("hub", True, "answers")
    if reach.wrong:
        yield Check("token", False, f"{reach.wrong} and set HF_TOKEN")
    elif reach.name:
        yield Check("token", True, f"of {reach.name}")
    else:
        yield Check("token", True, "none; only models with terms need HF_TOKEN", note=True)


PACKAGES = ("gradio", "diffusers", "torch", "transformers", "huggingface_hub", "safetensors")
LITTLE_SPACE = 5 * 10**9  # bytes: one more model and some pictures


@with_examples(
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
        _rebuild(load_settings(data_dir))
    findings = []
    for finding in _run_checks(load_settings(data_dir)):
        findings.append(finding)
        if json:
            print_json(asdict(finding))
        else:
            grade = "BAD " if not finding.well else "note" if finding.note else "ok  "
            print_line(f"{grade} {finding.name}: {finding.sentence}")
    if not all(finding.well for finding in findings):
        raise typer.Exit(1)


def _rebuild(settings: Settings) -> None:
    from canvas.history.repair import rebuild

    done = rebuild(settings.database_path, settings.outputs_dir)
    if done.damaged is None:
        print_error("The database is well: there is nothing to rebuild.")
    else:
        print_error(
            f"{done.pictures} pictures are back, {done.owners} with their owners. "
            f"The damaged file is kept as {done.damaged}."
        )


def _run_checks(settings: Settings) -> Iterator[Check]:
    yield check_python()
    for package in PACKAGES:
        try:
            yield Check(package, True, version(package))
        except PackageNotFoundError:
            sentence = "is missing; run: pip install -r requirements.txt"
            yield Check(package, False, sentence)
    yield check_port(settings)
    yield from check_hub_reachable()
    from canvas.history.repair import integrity_error

    wrong = integrity_error(settings.database_path)
    if wrong:
        sentence = f"is damaged ({wrong}); stop the server and run doctor with --rebuild"
        yield Check("database", False, sentence)
        return
    try:
        from canvas.studio import Studio

        with Studio(settings) as studio:
            yield Check("data folder", True, str(settings.data_dir.resolve()))
            yield from _check_data_dir(studio)
    except CanvasError as error:
        yield Check("data folder", False, str(error))


def _check_data_dir(studio: Studio) -> Iterator[Check]:
    from canvas.engine import system_info

    free = shutil.disk_usage(studio.settings.data_dir).free
    enough = free > LITTLE_SPACE
    more = "" if enough else "; remove models in the tab Models, or choose another --data-dir"
    yield Check("disk", enough, f"{format_bytes(free)} free{more}")
    yield check_memory(system_info.free_memory(), system_info.total_memory())
    device = studio.device
    yield Check("device", True, f"{device.name}, {device.dtype}: {device.reason}")
    yield check_gpu(device)
    for key in studio.models:
        yield Check(f"model {key}", True, studio.model_status(key).text)
