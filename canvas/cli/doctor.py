"""`doctor`: checks the installation and says how to fix what fails."""

from __future__ import annotations

import platform
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Annotated, Any

import typer

from canvas.cli.console import AsJson, DataDir, load_settings, print_error, print_result, with_examples
from canvas.errors import CanvasError
from canvas.formatting import format_bytes

if TYPE_CHECKING:
    from canvas.engine.device import Device
    from canvas.settings import Settings
    from canvas.studio import Studio

MIN_PYTHON = (3, 11)
MIN_MEMORY = 2 * 10**9  # bytes: the built-in model, torch and the server
AMPLE_MEMORY = 6 * 10**9  # bytes: one Stable Diffusion model in float32
MIN_DISK = 5 * 10**9  # bytes: one more model and some images
PACKAGES = ("gradio", "diffusers", "torch", "transformers", "huggingface_hub", "safetensors")


@dataclass(frozen=True)
class Check:
    """The result of one check; `warning` marks a limitation that matters only to some users."""

    name: str
    ok: bool
    message: str
    warning: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As JSON, with the names of version 0.1, too."""
        return {**asdict(self), "well": self.ok, "sentence": self.message, "note": self.warning}


def check_python() -> Check:
    """The version of Python."""
    message = f"{platform.python_version()} on {platform.platform()}"
    if sys.version_info < MIN_PYTHON:
        return Check("python", False, f"{message}; install 3.11 or newer")
    return Check("python", True, message)


def check_memory(free: int, total: int) -> Check:
    """Memory for models, in bytes."""
    message = f"{format_bytes(free)} of {format_bytes(total)} free"
    if free < MIN_MEMORY:
        return Check("memory", False, f"{message}; close other programs")
    if free < AMPLE_MEMORY:
        hint = "enough for starter; close other programs before loading a larger model"
        return Check("memory", True, f"{message}: {hint}", warning=True)
    return Check("memory", True, message)


def check_gpu(device: Device) -> Check:
    """Whether torch can use the GPU of this computer."""
    if device.name != "cpu":
        return Check("gpu", True, device.reason)
    if shutil.which("nvidia-smi") is None:
        return Check("gpu", True, "none, not required")
    return Check(
        "gpu",
        False,
        "an NVIDIA driver is installed, but this build of torch cannot use it; install the build "
        "for your CUDA version from https://pytorch.org/get-started/locally/, or set "
        "CANVAS_DEVICE=cpu",
    )


def check_torch() -> Check:
    """The version of torch, and for which device it was built."""
    from canvas.engine.system_info import torch_build

    build, usable = torch_build()
    message = f"{version('torch')}, built for {build}"
    if not usable:
        hint = "no GPU is usable, so the smaller build would do: see Installation in README.md"
        return Check("torch", True, f"{message}; {hint}", warning=True)
    return Check("torch", True, message)


def check_quantized() -> Iterator[Check]:
    """The optional packages for int8 weights and GGUF files."""
    for package, use in (("torchao", "int8 weights of large models"), ("gguf", "GGUF files")):
        try:
            yield Check(package, True, version(package))
        except PackageNotFoundError:
            yield Check(package, True, f"not installed, needed for {use}: pip install torchao gguf", warning=True)


def check_port(settings: Settings) -> Check:
    """Whether the server can listen on its port."""
    host, port = settings.host, settings.port
    if port == 0:
        return Check("port", True, "any free port")
    try:
        with socket.create_server((host, port)):
            return Check("port", True, f"{port} is free")
    except OSError as error:
        if _is_magic_canvas(port):
            return Check("port", True, f"Magic Canvas is already running on {port}")
        return Check("port", False, f"{host}:{port} is not available ({error.strerror}); use --port {port + 1}")


def _is_magic_canvas(port: int) -> bool:
    import httpx

    try:
        return "asks_for_keys" in httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=5).json()
    except (httpx.HTTPError, ValueError):
        return False


def check_hub_access() -> Iterator[Check]:
    """Whether models can be downloaded, and the account of the token."""
    from canvas.models.hub_client import check_hub

    status = check_hub()
    if status.offline:
        yield Check("hub", True, f"{status.offline}; downloaded models work offline", warning=True)
        return
    yield Check("hub", True, "reachable")
    if status.auth_error:
        yield Check("token", False, f"{status.auth_error} and set HF_TOKEN")
    elif status.user:
        yield Check("token", True, f"account {status.user}")
    else:
        yield Check("token", True, "not set; only gated models need HF_TOKEN", warning=True)


@with_examples("python -m canvas doctor", "python -m canvas doctor --rebuild")
def doctor(
    json: AsJson = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Rebuild a damaged database from the image files.")
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Check the installation; exits with 1 if a check fails."""
    settings = load_settings(data_dir)
    if rebuild:
        _rebuild(settings)
    failed = False
    for check in _run_checks(settings):
        failed |= not check.ok
        grade = "FAIL" if not check.ok else "warn" if check.warning else "ok  "
        print_result(f"{grade} {check.name}: {check.message}", check.to_dict(), as_json=json)
    if failed:
        raise typer.Exit(1)


def _rebuild(settings: Settings) -> None:
    from canvas.history.repair import rebuild

    result = rebuild(settings.database_path, settings.outputs_dir)
    if result.damaged is None:
        print_error("The database is not damaged: nothing to rebuild.")
    else:
        print_error(
            f"{result.images} images restored, {result.owners} with their owners. "
            f"The damaged file is now {result.damaged}."
        )


def _run_checks(settings: Settings) -> Iterator[Check]:
    yield check_python()
    for package in PACKAGES:
        try:
            yield check_torch() if package == "torch" else Check(package, True, version(package))
        except PackageNotFoundError:
            yield Check(package, False, "not installed; run: pip install -r requirements.txt")
    yield from check_quantized()
    yield check_port(settings)
    yield from check_hub_access()
    from canvas.history.repair import integrity_error

    if damage := integrity_error(settings.database_path):
        yield Check("database", False, f"damaged ({damage}); stop the server and run doctor with --rebuild")
        return
    try:
        from canvas.studio import Studio

        with Studio(settings) as studio:
            yield Check("data folder", True, str(settings.data_dir.resolve()))
            yield from _check_studio(studio)
    except CanvasError as error:
        yield Check("data folder", False, error.full_text)


def _check_studio(studio: Studio) -> Iterator[Check]:
    from canvas.engine import system_info

    free = shutil.disk_usage(studio.settings.data_dir).free
    ok = free > MIN_DISK
    hint = "" if ok else "; delete models in the Models tab, or choose another --data-dir"
    yield Check("disk", ok, f"{format_bytes(free)} free{hint}")
    yield check_memory(system_info.free_memory(), system_info.total_memory())
    device = studio.device
    yield Check("device", True, f"{device.name}, {device.dtype}: {device.reason}")
    yield check_gpu(device)
    for key in studio.models:
        yield Check(f"model {key}", True, studio.model_status(key).text)
