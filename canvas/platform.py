"""What depends on the host: Hugging Face Spaces, environment variables, GPUs."""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Collection, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

from filelock import BaseFileLock, FileLock

TRUTHY = ("1", "t", "true", "yes", "on")
# What a Space with `hf_oauth: true` sets; Gradio's sign-in needs all of them.
OAUTH = ("OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "OAUTH_SCOPES", "OPENID_PROVIDER_URL")
DATA_MOUNT = "/data"  # where a Space's storage is mounted by default
# The proxies of a Space have private addresses.
SPACE_PROXIES = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")
TEMP_VARIABLE, TEMP_PREFIX = "GRADIO_TEMP_DIR", "magic-canvas-"
TRUSTED_PROXIES_VARIABLE = "FORWARDED_ALLOW_IPS"  # of uvicorn
DEVICES = Path("/dev")  # where Linux lists the GPUs that this process or its container may use


def program_version() -> str:
    """The version of a checkout, which may differ from an installed package, or else of the package."""
    project = Path(__file__).resolve().parent.parent / "pyproject.toml"
    if project.is_file():
        return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])
    try:
        return version("magic-canvas")
    except PackageNotFoundError:
        return "unknown"


def space_defaults(environ: Mapping[str, str]) -> dict[str, Any]:
    """Default settings on a Hugging Face Space; empty on other hosts.

    A Space is public, listens on all interfaces for its proxy, and stores data on the mounted
    storage or else in any writable folder.
    """
    if not environ.get("SPACE_ID"):
        return {}
    mount = Path(environ.get("CANVAS_BUCKET") or DATA_MOUNT)
    persistent = mount.is_dir() and is_writable(mount)
    data_dir = mount if persistent else first_writable(Path(), temp_dir())
    home_cache = Path(environ.get("HOME") or "/") / ".cache" / "magic-canvas"
    return {
        "space": environ["SPACE_ID"],
        "host": "0.0.0.0",  # noqa: S104 - only the Space's proxy reaches the container
        "public": True,
        "trusted_hosts": tuple(filter(None, [environ.get("SPACE_HOST", "").lower()])),
        "trusted_proxies": SPACE_PROXIES,
        "data_dir": data_dir,
        "cache_dir": first_writable(home_cache, data_dir / ".canvas"),
        "persistent": persistent,
        "zero_gpu": environ.get("SPACES_ZERO_GPU", "").lower() in TRUTHY,
        "sign_in": all(environ.get(name) for name in OAUTH),
    }


def configure_hf_home(environ: MutableMapping[str, str]) -> None:
    """Set HF_HOME to a writable folder on a Space whose home directory is read-only."""
    if not environ.get("SPACE_ID") or environ.get("HF_HOME") or environ.get("HF_HUB_CACHE"):
        return
    cache = Path(environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME") or "/") / ".cache")
    if not is_writable(cache / "huggingface"):
        environ["HF_HOME"] = str(temp_dir() / "huggingface")


def configure_runtime_env(environ: MutableMapping[str, str] | None = None) -> None:
    """Set environment variables of Gradio, huggingface_hub and torch that are not set yet.

    Turns off telemetry and busy waiting, and enables huge pages. Call before these libraries
    are imported.
    """
    environ = os.environ if environ is None else environ
    environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    # Otherwise Gradio computes statistics of its last 10,000 events after each event.
    environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", str(10**9))
    environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "1")
    environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # Warnings about parts that are not used, such as torchao's old tensor classes.
    environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    configure_hf_home(environ)
    # OpenMP threads busy-wait by default: beside another program that keeps a core busy, an
    # image then takes ten times as long.
    environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Spinning for some microseconds is worth it: the operations of a small model follow each
    # other closely, and its images take a quarter less time on an idle machine.
    environ.setdefault("GOMP_SPINCOUNT", "2000")
    # Huge pages (2 MB) for large tensors, on Linux: images of the built-in model take a fifth
    # less time.
    environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


class TypeStubBlocker(MetaPathFinder):
    """Keeps Gradio from writing type stubs of all components, which takes a third of its import.

    At every start it parses their sources, and it writes the stubs beside them, ours included.
    """

    MODULE = "gradio.component_meta"

    @classmethod
    def install(cls) -> None:
        """Act on the first import of Gradio, unless it is imported already."""
        if cls.MODULE not in sys.modules and not any(isinstance(finder, cls) for finder in sys.meta_path):
            sys.meta_path.insert(0, cls())

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        """Gradio's module whose classes write the stubs, without the function that does it."""
        if fullname != self.MODULE:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            module.create_or_modify_pyi = lambda *_: None  # type: ignore[attr-defined]

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def use_own_temp_folder(environ: MutableMapping[str, str] | None = None) -> Path:
    """Have Gradio keep its temporary files in a folder of this process; returns the folder.

    It is deleted when the process ends. Those of processes that were killed are deleted now: their
    lock is free. Call before Gradio is imported.
    """
    environ = os.environ if environ is None else environ
    base = Path(environ.get(TEMP_VARIABLE) or tempfile.gettempdir()).resolve()
    own = f"{TEMP_PREFIX}{os.getpid()}-"
    if base.name.startswith(own):  # another server of this process has set it
        return base
    base.mkdir(parents=True, exist_ok=True)
    for lock_file in base.glob(f"{TEMP_PREFIX}*.lock"):
        with suppress(OSError), FileLock(lock_file, timeout=0):
            _delete_temp_folder(lock_file)
    lock = FileLock(base / f"{own}{secrets.token_hex(4)}.lock", timeout=0, mode=0o600, thread_local=False)
    lock.acquire()
    folder = Path(lock.lock_file).with_suffix("")
    folder.mkdir(mode=0o700)
    environ[TEMP_VARIABLE] = str(folder)
    atexit.register(_release_temp_folder, lock)
    return folder


def _release_temp_folder(lock: BaseFileLock) -> None:
    _delete_temp_folder(Path(lock.lock_file))
    lock.release()


def _delete_temp_folder(lock_file: Path) -> None:
    shutil.rmtree(lock_file.with_suffix(""), ignore_errors=True)
    with suppress(OSError):
        lock_file.unlink()


def visible_gpus(environ: Mapping[str, str] | None = None, devices: Path = DEVICES) -> list[str]:
    """The usable NVIDIA GPUs in the notation of CUDA_VISIBLE_DEVICES; imports no library."""
    environ = os.environ if environ is None else environ
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1")]
    numbers = [path.name.removeprefix("nvidia") for path in devices.glob("nvidia[0-9]*")]
    return [str(index) for index in range(sum(number.isdecimal() for number in numbers))]


def worker_environment(
    worker: int, environ: Mapping[str, str] | None = None, devices: Path = DEVICES
) -> dict[str, str]:
    """The environment of a worker process; of several GPUs it sees one, in turn."""
    environ = dict(os.environ if environ is None else environ)
    # The folder of this package, however the program was started.
    path = [str(Path(__file__).resolve().parent.parent), environ.get("PYTHONPATH", "")]
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    gpus = visible_gpus(environ, devices)
    if len(gpus) > 1:
        environ["CUDA_VISIBLE_DEVICES"] = gpus[worker % len(gpus)]
    return environ


def temp_dir() -> Path:
    """This program's folder in the system's temporary directory."""
    return Path(tempfile.gettempdir()) / "magic-canvas"


def first_writable(*folders: Path) -> Path:
    """The first writable folder, or the last one if there is none."""
    return next((folder for folder in folders if is_writable(folder)), folders[-1])


def is_writable(folder: Path) -> bool:
    """Whether files can be created in a folder, which may not exist yet."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


@contextmanager
def trusted_proxies(proxies: Collection[str]) -> Iterator[None]:
    """Have uvicorn believe the X-Forwarded headers of these addresses and networks only.

    Its default, which Gradio cannot change, is to believe all programs of this machine.
    """
    before = os.environ.get(TRUSTED_PROXIES_VARIABLE)
    if proxies or before is None:
        os.environ[TRUSTED_PROXIES_VARIABLE] = ",".join(proxies)
    try:
        yield
    finally:
        if before is None:
            del os.environ[TRUSTED_PROXIES_VARIABLE]
        else:
            os.environ[TRUSTED_PROXIES_VARIABLE] = before
