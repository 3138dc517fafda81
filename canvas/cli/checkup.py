"""What the doctor looks at beside the program itself: memory, GPU, port, Hub and token."""

from __future__ import annotations

import platform
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from canvas.engine.device import Device
    from canvas.settings import Settings

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
    from canvas.models import gigabytes

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
    from canvas.engine.reaching import reach_hub

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
