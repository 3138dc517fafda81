"""Settings of the program, from Python, the environment and the command line."""

from __future__ import annotations

import argparse
import hashlib
import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from canvas import platform, validation
from canvas.errors import InvalidInput, StorageError

PREFIX = "CANVAS_"
MAX_WORKERS = 64
SECRETS = ("auth", "api_key", "provider_token", "remote_key")
# Environment variables of version 0.1, still read.
OLD_VARIABLES: Mapping[str, str] = {
    "CANVAS_KEY": "CANVAS_API_KEY",
    "CANVAS_LASTING": "CANVAS_PERSISTENT",
    "CANVAS_ELSEWHERE_FOR_VISITORS": "CANVAS_REMOTE_FOR_VISITORS",
}
# By pydantic's type of error, where its own text is long.
ALLOWED: Mapping[str, str] = {
    "int_parsing": "a whole number",
    "bool_parsing": "one of 1, true, yes, on, 0, false, no, off",
}


def _matching(pattern: str, allowed: str) -> AfterValidator:
    """A validator of texts that have a pattern; `allowed` is what its error says."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(allowed)
        return value

    return AfterValidator(check)


Folder = Annotated[Path, BeforeValidator(lambda path: Path(path).expanduser() if isinstance(path, str) else path)]
HostName = Annotated[str, AfterValidator(lambda host: host.removeprefix("[").removesuffix("]"))]  # IPv6 as in URLs
UrlPath = Annotated[
    str, _matching(r"(/[A-Za-z0-9._~-]+)*/?", "a path such as /canvas"), AfterValidator(lambda path: path.rstrip("/"))
]
HttpUrl = Annotated[str, _matching(r"(?s)https?://.*", "a URL such as http://192.168.1.20:7860")]
ClusterAddress = Annotated[str, _matching(r"auto|(ray://)?[^/\s]+:\d+", "auto, HOST:PORT or ray://HOST:PORT")]


class Settings(BaseSettings):
    """All settings. `from_environment` reads each from `CANVAS_` + its name in capitals.

    `engine`: what computes images on a CPU; None measures which is faster for each model.
    `quantization`, `offload`: override the memory plan of every model (None: as the plan says).
    `memory_budget`: bytes for loaded pipelines; None derives it from the machine's memory.
    `safety`: "off", "prompt" (word filter) or "full" (also the model's image checker).
    `public`: open to unknown visitors (a shared link or a Space).
    `insecure`: listen on a network although there is neither a login nor public mode.
    `trusted_hosts`: host names, or `name:port`, beside those of this machine, which may be used in
    Host and Origin headers.
    `trusted_proxies`: addresses and networks whose X-Forwarded-For and -Proto headers are believed.
    `root_path`: the path under which a reverse proxy serves the app, such as /canvas.
    `space`: id of the Hugging Face Space that the program runs on, else "".
    `admin`: the owner id (a login, `key-NAME` or `hf-NUMBER`) who sees the images of all users.
    `api_key`: what the command line sends to a server that requires a key.
    `provider`, `provider_token`: Hugging Face Inference Providers (default token: HF_TOKEN).
    `cluster`: address of a Ray cluster, such as ray://head:10001, or "auto" on one of its nodes,
    where Ray ends this process if the head is lost.
    `cores_per_worker`: CPU cores of each of its workers on nodes without a GPU; None: all of a node.
    `scale_down_after`: seconds without a job after which the workers end; None: never. With it Ray's
    autoscaler starts nodes for waiting jobs.
    `remote`, `remote_key`: address and API key of another Magic Canvas.

    Raises InvalidInput.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, enable_decoding=False, extra="forbid", frozen=True)

    data_dir: Folder = Path()
    cache_dir: Folder = Field(default_factory=lambda: Path.home() / ".cache" / "magic-canvas")
    host: HostName = "127.0.0.1"
    port: int = Field(7860, ge=0, le=65535)
    share: bool = False
    auth: tuple[str, str] | None = Field(None, repr=False)
    model: str = "starter"
    device: Literal["cpu", "cuda", "mps"] | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    engine: Literal["torch", "openvino"] | None = None
    quantization: Literal["none", "int8", "int8-dynamic"] | None = None
    offload: Literal["none", "model", "group", "encode-first"] | None = None
    memory_budget: int | None = Field(None, ge=0)
    public: bool = False
    insecure: bool = False
    safety: Literal["off", "prompt", "full"] | None = None
    trusted_hosts: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    root_path: UrlPath = ""
    workers: int | None = Field(None, ge=1, le=MAX_WORKERS)
    cluster: ClusterAddress | None = None
    cores_per_worker: int | None = Field(None, ge=1)
    scale_down_after: int | None = Field(None, ge=1)
    space: str = ""
    persistent: bool = True
    zero_gpu: bool = False
    sign_in: bool = False
    admin: str | None = None
    api_key: str | None = Field(None, repr=False)
    provider: str = "auto"
    provider_token: str | None = Field(None, repr=False)
    remote: HttpUrl | None = None
    remote_key: str | None = Field(None, repr=False)
    remote_for_visitors: bool = False

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """`Settings(…)` takes its arguments only; see `from_environment`."""
        return (init_settings,)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
        """Settings from `environ` (default: the process's), then the overrides that are not None.

        Raises InvalidInput naming the variable or the override.
        """
        environ = os.environ if environ is None else environ
        renamed = {new: environ.get(old, "") for old, new in OLD_VARIABLES.items()}
        environ = renamed | {name: value for name, value in environ.items() if value}
        source = EnvSettingsSource(cls)
        source.env_vars = {name.lower(): value for name, value in environ.items() if value}
        from_variables = source()
        values = platform.space_defaults(environ) | from_variables
        if environ.get("HF_TOKEN"):
            values.setdefault("provider_token", environ["HF_TOKEN"])
        overrides = {name: value for name, value in overrides.items() if value is not None}
        try:
            return cls(**values | overrides)
        except InvalidInput as error:
            if error.field in overrides or error.field not in from_variables:
                raise
            name = PREFIX + error.field.upper()
            raise InvalidInput(name, error.value, error.allowed) from None

    @classmethod
    def from_command_line(cls, arguments: list[str] | None = None) -> Settings:
        """Settings from the environment, overridden by the options of `python app.py`."""
        parser = argparse.ArgumentParser(prog="app.py", description="Magic Canvas")
        parser.add_argument("--host", help="address to listen on; 0.0.0.0 for all interfaces")
        parser.add_argument("--port", help="port to listen on")
        parser.add_argument("--share", action="store_true", default=None, help="create a public link")
        parser.add_argument("--auth", metavar="USER:PASSWORD", help="require a login")
        parser.add_argument("--public", action="store_true", default=None, help="open to visitors without a login")
        parser.add_argument(
            "--insecure", action="store_true", default=None, help="allow everyone on the network full access"
        )
        parser.add_argument("--root-path", metavar="PATH", help="path under which a reverse proxy serves the app")
        parser.add_argument("--admin", metavar="USER", help="login that sees the images of all users")
        parser.add_argument("--data-dir", help="folder of ai_images.db and outputs/")
        parser.add_argument("--workers", metavar="N", help="worker processes (default: 1 per GPU)")
        parser.add_argument("--cluster", metavar="ADDRESS", help="Ray cluster that generates the images")
        parser.add_argument("--cores-per-worker", metavar="N", help="CPU cores of each worker of the cluster")
        parser.add_argument("--model", metavar="KEY", help="default model")
        return cls.from_environment(**vars(parser.parse_args(arguments)))

    @field_validator("auth", mode="before")
    @classmethod
    def _split_auth(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        user, colon, password = value.partition(":")
        if not (user and colon and password):
            raise ValueError("USER:PASSWORD")
        return user, password

    @field_validator("trusted_hosts", "trusted_proxies", mode="before")
    @classmethod
    def _split_list(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(name.strip().lower() for name in value.split(",") if name.strip())

    @field_validator("trusted_proxies")
    @classmethod
    def _check_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for network in value:
            try:
                ipaddress.ip_network(network)
            except ValueError:
                raise ValueError("addresses or networks, such as 127.0.0.1,10.0.0.0/8") from None
        return value

    @field_validator("*", mode="wrap")  # the last one: it wraps the others
    @classmethod
    def _explain(cls, value: object, validate: ValidatorFunctionWrapHandler, info: ValidationInfo) -> object:
        """Raise InvalidInput instead of pydantic's errors; clean up strings."""
        field = info.field_name or ""
        if isinstance(value, str) and field not in ("data_dir", "cache_dir"):
            value = validation.text(field, value)
        try:
            return validate(value)
        except ValidationError as error:
            details = error.errors()[0]
            allowed = ALLOWED.get(details["type"]) or details["msg"]
            allowed = allowed.removeprefix("Input should be ").removeprefix("Value error, ")
        raise InvalidInput(field, "(hidden)" if field in SECRETS else value, allowed)

    @model_validator(mode="after")
    def _check_admin(self) -> Settings:
        """Refuse an administrator who could never log in, or whose name anyone could take."""
        if self.admin is None or (self.auth is not None and self.admin == self.auth[0]):
            return self
        if not self.admin.startswith(("key-", "hf-") if self.sign_in else "key-"):
            allowed = "the USER of --auth, key-NAME for a key, or hf-NUMBER on a Space with sign-in"
            raise InvalidInput("admin", self.admin, allowed)
        return self

    @model_validator(mode="after")
    def _check_cluster(self) -> Settings:
        """Refuse settings that would have no effect."""
        if self.cluster is not None and self.workers is not None:
            raise InvalidInput("workers", self.workers, "unset with a cluster, which has a worker per GPU or node")
        for field in ("cores_per_worker", "scale_down_after"):
            if self.cluster is None and getattr(self, field) is not None:
                raise InvalidInput(field, getattr(self, field), "unset without a cluster")
        return self

    def make_data_dir(self) -> None:
        """Create the data folder; raises StorageError."""
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"The data folder {str(self.data_dir)!r} cannot be created ({error.strerror}). "
                "Choose a writable folder with --data-dir."
            ) from error

    @property
    def is_public(self) -> bool:
        """Whether unknown visitors may use the server without a login."""
        return (self.public or self.share) and self.auth is None

    @property
    def checks_host(self) -> bool:
        """Whether Host and Origin are checked: nothing else keeps the pages of other sites out."""
        return self.auth is None and not self.is_public

    def check_exposure(self) -> None:
        """Refuse to listen on a network without protection; raises InvalidInput."""
        if not self.checks_host or self.insecure or validation.is_loopback(self.host):
            return
        message = (
            f"Listening on {self.host} lets everyone on the network see and delete all images: add "
            "--auth USER:PASSWORD to require a login, --public to give each visitor a separate history, or "
            "--insecure if you trust everyone on the network."
        )
        raise InvalidInput("host", self.host, message=message)

    @property
    def proxies(self) -> tuple[str, ...]:
        """`trusted_proxies`, and this machine if it runs the tunnel of a share link."""
        return (*self.trusted_proxies, "127.0.0.1", "::1") if self.share else self.trusted_proxies

    @property
    def requires_api_key(self) -> bool:
        """Whether programs need an API key: unless only this computer can reach the server."""
        return bool(self.auth or self.is_public or not validation.is_loopback(self.host))

    @property
    def safety_level(self) -> str:
        """`safety`, by default "prompt" on a public server and otherwise "off"."""
        return self.safety or ("prompt" if self.is_public else "off")

    @property
    def worker_count(self) -> int:
        """Processes that generate images; by default one per GPU."""
        if self.workers is not None:
            return self.workers
        return max(1, len(platform.visible_gpus())) if self.device in (None, "cuda") else 1

    @property
    def uploads_dir(self) -> Path:
        return self.data_dir / "inputs"

    @property
    def loras_dir(self) -> Path:
        return self.data_dir / "loras"

    @property
    def embeddings_dir(self) -> Path:
        return self.data_dir / "embeddings"

    @property
    def controlnets_dir(self) -> Path:
        return self.data_dir / "controlnets"

    @property
    def ip_adapters_dir(self) -> Path:
        return self.data_dir / "ip_adapters"

    @property
    def database_path(self) -> Path:
        return self.data_dir / "ai_images.db"

    @property
    def visitor_secret_file(self) -> Path:
        return self.data_dir / ".visitor_secret"

    @property
    def outputs_dir(self) -> Path:
        return self.data_dir / "outputs"

    @property
    def wildcards_dir(self) -> Path:
        return self.data_dir / "wildcards"

    @property
    def models_file(self) -> Path:
        return self.data_dir / "models.toml"


def data_dir_id(data_dir: Path) -> str:
    """An identifier of a data folder that does not reveal its path."""
    return hashlib.sha256(str(data_dir.resolve()).encode()).hexdigest()[:16]
