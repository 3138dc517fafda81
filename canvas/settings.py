"""What the environment and the command line decide, read once at start-up."""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from canvas import platform, validation
from canvas.errors import InvalidInput, StorageError

PREFIX = "CANVAS_"
MAX_WORKERS = 64
DEVICES = Path("/dev")  # where Linux lists the GPUs that this process, or its container, may use


@dataclass(frozen=True)
class Settings:
    """Every option of the program; `from_environment` reads `CANVAS_` + the name in capitals.

    `memory_budget` is in bytes, for loaded pipelines; None means from what the machine has.
    `safety` is "off", "prompt" (a filter of words) or "full" (the model's own checker, too).
    `public` is on for strangers: a shared link or a Space. `trusted_hosts` are names under
    which a proxy before this machine's own address is asked for, with commas between them.
    `space` is the id of the Hugging Face Space that this is, with what `places` found there.
    `admin` is the owner (a login, `key-NAME`, `hf-NUMBER`) who may see everybody's pictures.
    `key` is what the command line sends to a server that asks for one.
    `provider` and `provider_token` are for Hugging Face's Inference Providers (without the
    token HF_TOKEN counts), `remote` and `remote_key` for another Magic Canvas.
    """

    data_dir: Path = Path()
    cache_dir: Path = field(default_factory=lambda: Path.home() / ".cache" / "magic-canvas")
    host: str = "127.0.0.1"
    port: int = 7860
    share: bool = False
    auth: tuple[str, str] | None = None
    model: str = "starter"
    device: str | None = None
    dtype: str | None = None
    memory_budget: int | None = None
    public: bool = False
    safety: str | None = None
    trusted_hosts: tuple[str, ...] = ()
    workers: int | None = None
    space: str = ""
    persistent: bool = True
    zero_gpu: bool = False
    sign_in: bool = False
    admin: str | None = None
    api_key: str | None = field(default=None, repr=False)
    provider: str = "auto"
    provider_token: str | None = field(default=None, repr=False)
    remote: str | None = None
    remote_key: str | None = field(default=None, repr=False)
    remote_for_visitors: bool = False

    @classmethod
    def from_environment(
        cls, environ: Mapping[str, str] | None = None, **overrides: Any
    ) -> Settings:
        """Settings from `environ` (default: the process's), with those overrides that are set."""
        environ = os.environ if environ is None else environ
        values: dict[str, Any] = platform.space_defaults(environ)
        for item in fields(cls):
            variable = PREFIX + item.name.upper()
            if environ.get(variable):
                values[item.name] = _parse(variable, item.name, environ[variable])
        if environ.get("HF_TOKEN"):
            values.setdefault("provider_token", environ["HF_TOKEN"])
        for name, value in overrides.items():
            if value is not None:
                values[name] = _parse(name, name, value) if isinstance(value, str) else value
        settings = cls(**values)
        validation.integer("port", settings.port, 0, 65535)
        if settings.workers is not None:
            validation.integer("workers", settings.workers, 1, MAX_WORKERS)
        settings.check_admin()
        return settings

    @classmethod
    def from_command_line(cls, arguments: list[str] | None = None) -> Settings:
        """Settings from the environment, overridden by the options of `python app.py`."""
        parser = argparse.ArgumentParser(prog="app.py", description="Magic Canvas")
        parser.add_argument("--host", help="address to listen on; 0.0.0.0 for all")
        parser.add_argument("--port", help="port to listen on")
        parser.add_argument("--share", action="store_true", default=None, help="a public link")
        parser.add_argument("--auth", metavar="USER:PASSWORD", help="ask for a login")
        parser.add_argument("--admin", metavar="USER", help="the login that sees all pictures")
        parser.add_argument("--data-dir", help="folder of ai_images.db and outputs/")
        parser.add_argument("--workers", metavar="N", help="processes that paint; one a GPU")
        parser.add_argument("--model", metavar="KEY", help="the model that is picked at first")
        return cls.from_environment(**vars(parser.parse_args(arguments)))

    def check_admin(self) -> None:
        """Raise InvalidInput for an administrator who could never come in, or whom nobody knows."""
        if self.admin is None or (self.auth is not None and self.admin == self.auth[0]):
            return
        if not self.admin.startswith(("key-", "hf-") if self.sign_in else "key-"):
            allowed = "the USER of --auth, key-NAME for a key, or hf-NUMBER on a Space with sign-in"
            raise InvalidInput("admin", self.admin, allowed)

    def make_data_dir(self) -> None:
        """Make the data folder where there is none; raises StorageError."""
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"data_dir: {str(self.data_dir)!r} cannot be made ({error.strerror}); "
                "choose a folder that you may write to with --data-dir."
            ) from error

    @property
    def is_public(self) -> bool:
        """Whether strangers come in without a login: on a shared link, or told so."""
        return (self.public or self.share) and self.auth is None

    @property
    def requires_api_key(self) -> bool:
        """Whether anyone but the person at this computer can reach the server."""
        return bool(self.auth or self.is_public or not validation.is_loopback(self.host))

    @property
    def safety_level(self) -> str:
        """`off`, `prompt` or `full`; where strangers come in, words are filtered unless told."""
        return self.safety or ("prompt" if self.is_public else "off")

    @property
    def worker_count(self) -> int:
        """Processes that paint; unless told, one a GPU."""
        if self.workers is not None:
            return self.workers
        return max(1, len(visible_gpus())) if self.device in (None, "cuda") else 1

    @property
    def uploads_dir(self) -> Path:
        """The folder of pictures that were handed in."""
        return self.data_dir / "inputs"

    @property
    def loras_dir(self) -> Path:
        """The folder of the user's LoRA files."""
        return self.data_dir / "loras"

    @property
    def database_path(self) -> Path:
        """The SQLite file that remembers every picture and download."""
        return self.data_dir / "ai_images.db"

    @property
    def outputs_dir(self) -> Path:
        """The folder of the picture files."""
        return self.data_dir / "outputs"

    @property
    def models_file(self) -> Path:
        """The user's own models, a table each."""
        return self.data_dir / "models.toml"


def data_dir_id(data_dir: Path) -> str:
    """An identifier of a data folder that does not reveal its path."""
    return hashlib.sha256(str(data_dir.resolve()).encode()).hexdigest()[:16]


def configure_runtime_env(environ: dict[str, str] | os._Environ[str] | None = None) -> None:
    """Turn off the libraries' telemetry and busy waiting, turn on large pages of memory.

    Call before they are imported.
    """
    environ = os.environ if environ is None else environ
    environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    # Else Gradio puts all of its last 10,000 events into statistics anew after each event.
    environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", str(10**9))
    environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "1")
    environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    platform.configure_hf_home(environ)
    # torch's threads spin while they wait for each other: beside any other program that
    # keeps a core busy, a picture then takes ten times as long as with sleeping threads.
    environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # A few microseconds they may spin: a small model's operations follow each other as closely,
    # and its pictures take a quarter less time on a machine that does nothing else.
    environ.setdefault("GOMP_SPINCOUNT", "2000")
    # Large tensors in pages of 2 MB rather than 4 KB, where Linux has them: the built-in
    # model's pictures take a fifth less time.
    environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def visible_gpus(environ: Mapping[str, str] | None = None, devices: Path = DEVICES) -> list[str]:
    """The NVIDIA GPUs that may be used, as CUDA_VISIBLE_DEVICES names them; loads no library."""
    environ = os.environ if environ is None else environ
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1")]
    numbers = [path.name.removeprefix("nvidia") for path in devices.glob("nvidia[0-9]*")]
    return [str(place) for place in range(sum(number.isdecimal() for number in numbers))]


def worker_environment(
    which: int, environ: Mapping[str, str] | None = None, devices: Path = DEVICES
) -> dict[str, str]:
    """The environment of worker `which`: it sees one GPU, where there are several in turn."""
    environ = dict(os.environ if environ is None else environ)
    # Where this program lies, however it was started.
    path = [str(Path(__file__).resolve().parent.parent), environ.get("PYTHONPATH", "")]
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    found = visible_gpus(environ, devices)
    if len(found) > 1:
        environ["CUDA_VISIBLE_DEVICES"] = found[which % len(found)]
    return environ


def _parse_bool(field: str, value: str) -> bool:
    words = {"1": True, "true": True, "yes": True, "on": True}
    words |= {"0": False, "false": False, "no": False, "off": False}
    return words[validation.choice(field, value.lower(), words)]


def _parse_url(field: str, value: str) -> str:
    if not value.startswith(("http://", "https://")):
        raise InvalidInput(field, value, "an address such as http://192.168.1.20:7860")
    return value


def _parse_int(field: str, value: str) -> int:
    if not value.isdecimal():
        raise InvalidInput(field, value, "a whole number")
    return int(value)


def _parse_auth(field: str, value: str) -> tuple[str, str]:
    user, colon, password = value.partition(":")
    if not (user and colon and password):
        raise InvalidInput(field, "(hidden)", "USER:PASSWORD")
    return user, password


PARSERS: Mapping[str, Callable[[str, str], Any]] = {
    "data_dir": lambda _, value: Path(value).expanduser(),
    "cache_dir": lambda _, value: Path(value).expanduser(),
    "port": _parse_int,
    "memory_budget": _parse_int,
    "workers": _parse_int,
    "share": _parse_bool,
    "remote": _parse_url,
    "remote_for_visitors": _parse_bool,
    "public": _parse_bool,
    "persistent": _parse_bool,
    "zero_gpu": _parse_bool,
    "sign_in": _parse_bool,
    "auth": _parse_auth,
    "trusted_hosts": lambda _, value: tuple(name.strip().lower() for name in value.split(",")),
    "safety": lambda field, value: validation.choice(field, value, ("off", "prompt", "full")),
    "device": lambda field, value: validation.choice(field, value, ("cpu", "cuda", "mps")),
    "dtype": lambda field, value: validation.choice(
        field, value, ("float32", "bfloat16", "float16")
    ),
}


def _parse(field: str, name: str, value: str) -> Any:
    return PARSERS.get(name, validation.text)(field, value)
