"""What the environment and the command line decide, read once at start-up."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from canvas import validation
from canvas.errors import InvalidInput, StorageError

PREFIX = "CANVAS_"


@dataclass(frozen=True)
class Settings:
    """Every option of the program; `from_environment` reads `CANVAS_` + the name in capitals.

    `memory_budget` is in bytes, for loaded pipelines; None means from what the machine has.
    `safety` is "off", "prompt" (a filter of words) or "full" (the model's own checker, too).
    `public` is on for strangers: a shared link or a Space. `trusted_hosts` are names under
    which a proxy before this machine's own address is asked for, with commas between them.
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

    @classmethod
    def from_environment(
        cls, environ: Mapping[str, str] | None = None, **overrides: Any
    ) -> Settings:
        """Settings from `environ` (default: the process's), with those overrides that are set."""
        environ = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        for item in fields(cls):
            variable = PREFIX + item.name.upper()
            if environ.get(variable):
                values[item.name] = _parse(variable, item.name, environ[variable])
        for name, value in overrides.items():
            if value is not None:
                values[name] = _parse(name, name, value) if isinstance(value, str) else value
        settings = cls(**values)
        validation.whole_number("port", settings.port, 0, 65535)
        return settings

    @classmethod
    def from_command_line(cls, arguments: list[str] | None = None) -> Settings:
        """Settings from the environment, overridden by the options of `python app.py`."""
        parser = argparse.ArgumentParser(prog="app.py", description="Magic Canvas")
        parser.add_argument("--host", help="address to listen on; 0.0.0.0 for all")
        parser.add_argument("--port", help="port to listen on")
        parser.add_argument("--share", action="store_true", default=None, help="a public link")
        parser.add_argument("--auth", metavar="USER:PASSWORD", help="ask for a login")
        parser.add_argument("--data-dir", help="folder of ai_images.db and outputs/")
        parser.add_argument("--model", metavar="KEY", help="the model that is picked at first")
        return cls.from_environment(**vars(parser.parse_args(arguments)))

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
    def safety_level(self) -> str:
        """`off`, `prompt` or `full`; where strangers come in, words are filtered unless told."""
        return self.safety or ("prompt" if self.is_public else "off")

    @property
    def inputs(self) -> Path:
        """The folder of pictures that were handed in."""
        return self.data_dir / "inputs"

    @property
    def loras(self) -> Path:
        """The folder of the user's LoRA files."""
        return self.data_dir / "loras"

    @property
    def database(self) -> Path:
        """The SQLite file that remembers every picture and download."""
        return self.data_dir / "ai_images.db"

    @property
    def outputs(self) -> Path:
        """The folder of the picture files."""
        return self.data_dir / "outputs"

    @property
    def models_file(self) -> Path:
        """The user's own models, a table each."""
        return self.data_dir / "models.toml"


def quiet_libraries(environ: dict[str, str] | os._Environ[str] | None = None) -> None:
    """Turn off the libraries' telemetry and busy waiting; call before they are imported."""
    environ = os.environ if environ is None else environ
    environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # torch's threads spin while they wait for each other: beside any other program that
    # keeps a core busy, a picture then takes ten times as long as with sleeping threads.
    environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _switch(field: str, value: str) -> bool:
    words = {"1": True, "true": True, "yes": True, "on": True}
    words |= {"0": False, "false": False, "no": False, "off": False}
    return words[validation.choice(field, value.lower(), words)]


def _whole(field: str, value: str) -> int:
    if not value.isdecimal():
        raise InvalidInput(field, value, "a whole number")
    return int(value)


def _login(field: str, value: str) -> tuple[str, str]:
    user, colon, password = value.partition(":")
    if not (user and colon and password):
        raise InvalidInput(field, "(hidden)", "USER:PASSWORD")
    return user, password


PARSERS: Mapping[str, Callable[[str, str], Any]] = {
    "data_dir": lambda _, value: Path(value).expanduser(),
    "cache_dir": lambda _, value: Path(value).expanduser(),
    "port": _whole,
    "memory_budget": _whole,
    "share": _switch,
    "public": _switch,
    "auth": _login,
    "trusted_hosts": lambda _, value: tuple(name.strip().lower() for name in value.split(",")),
    "safety": lambda field, value: validation.choice(field, value, ("off", "prompt", "full")),
    "device": lambda field, value: validation.choice(field, value, ("cpu", "cuda", "mps")),
    "dtype": lambda field, value: validation.choice(
        field, value, ("float32", "bfloat16", "float16")
    ),
}


def _parse(field: str, name: str, value: str) -> Any:
    return PARSERS.get(name, validation.text)(field, value)
