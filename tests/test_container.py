"""The steps of the Dockerfile, run in a folder instead of a container."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from canvas.errors import InvalidInput
from canvas.settings import Settings
from tests.test_requirements import Lock, read_lock

ROOT = Path(__file__).resolve().parent.parent
PIP = 'pip() { echo "pip $*"; }\n'  # the packages are installed already


def instructions() -> list[tuple[str, str]]:
    """Name and arguments of each instruction, continued lines joined."""
    found, pending = [], ""
    for line in (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines():
        if line.startswith("#") or not line.strip():
            continue
        pending += line.removesuffix("\\")
        if not line.endswith("\\"):
            name, _, text = pending.partition(" ")
            found.append((name, text.strip()))
            pending = ""
    return found


def arguments_of(name: str) -> list[str]:
    return [text for kind, text in instructions() if kind == name]


def environment() -> dict[str, str]:
    pairs = " ".join(arguments_of("ENV")).split()
    return dict(pair.split("=", 1) for pair in pairs)


def compose_environment() -> dict[str, str]:
    """The variables of compose.yaml without a file .env."""
    variables = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]["canvas"]["environment"]
    return {name: re.sub(r"\$\{\w+:-(.*)\}", r"\1", value) for name, value in variables.items()}


def in_context(path: str) -> bool:
    """Whether .dockerignore lets a file into the build context; the last matching rule wins."""
    included = True
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        rule = line.removeprefix("!")
        if not rule or rule.startswith("#"):
            continue
        parts = path.split("/")
        prefixes = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
        if rule.startswith("**/"):
            matches = any(fnmatch.fnmatchcase(part, rule[3:]) for part in parts)
        else:
            matches = any(fnmatch.fnmatchcase(prefix, rule) for prefix in prefixes)
        if matches:
            included = line.startswith("!")
    return included


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder after the COPY instructions."""
    folder = tmp_path_factory.mktemp("app")
    for text in arguments_of("COPY"):
        *sources, target = text.split()
        for source in sources:
            assert in_context(source), f"{source} is excluded by .dockerignore"
            paths = [ROOT / source, *(ROOT / source).rglob("*")]
            files = [path for path in paths if path.is_file()]
            assert files, f"{source} does not exist"
            for path in files:
                name = path.relative_to(ROOT).as_posix()
                if in_context(name):
                    to = folder / target / path.relative_to(ROOT / source)
                    to = to / path.name if path == ROOT / source else to
                    to.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, to)
    return folder


def test_only_the_program_is_copied(built: Path) -> None:
    top = {path.name for path in built.iterdir()}
    assert top == {"LICENSE", "README.md", "app.py", "requirements.lock", "assets", "canvas"}
    assert not (built / "canvas" / "training").exists()
    assert (built / "assets" / "starter" / "unet").is_dir()
    assert not [path for path in built.rglob("*") if path.name.startswith((".", "__pycache__"))]
    assert not in_context("ai_images.db")
    assert not in_context(".env")


def install(folder: Path, device: str) -> tuple[subprocess.CompletedProcess[str], Lock]:
    """Runs the installation in a copy of the folder; returns it and the lock that it installs."""
    [command] = [text for text in arguments_of("RUN") if "requirements.lock" in text]
    shutil.copyfile(ROOT / "requirements.lock", folder / "requirements.lock")
    environ = {**os.environ, "DEVICE": device}
    done = subprocess.run(
        ["sh", "-ec", PIP + command], cwd=folder, env=environ, capture_output=True, text=True, check=False
    )
    return done, read_lock((folder / "requirements.lock").read_text(encoding="utf-8"))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_packages_of_the_lock_are_installed_with_hashes(tmp_path: Path, device: str) -> None:
    done, installed = install(tmp_path, device)
    assert done.returncode == 0, done.stderr
    locked = read_lock()
    *first, last, check = done.stdout.splitlines()
    assert last == "pip install --no-cache-dir --no-deps --require-hashes -r requirements.lock"
    assert check == "pip check"
    if device == "cuda":
        assert not first
        assert installed == locked
        return
    index = "--index-url https://download.pytorch.org/whl/cpu"
    assert first == [f"pip install --no-cache-dir --no-deps {index} torch=={locked['torch'][0].version}"]
    removed = set(locked) - set(installed)
    assert removed == {name for name in locked if name.startswith(("nvidia-", "cuda-"))} | {"torch", "triton"}
    assert all(installed[name] == locked[name] for name in installed), "the other packages are complete"


def test_other_devices_are_refused(tmp_path: Path) -> None:
    done, _ = install(tmp_path, "tpu")
    assert done.returncode == 1
    assert "tpu" in done.stderr
    assert not done.stdout


def test_the_base_image_is_pinned_by_digest() -> None:
    default = dict(text.split("=", 1) for text in arguments_of("ARG"))["PYTHON_IMAGE"]
    assert re.fullmatch(r"python:3\.\d+-slim-bookworm@sha256:[0-9a-f]{64}", default)
    assert arguments_of("FROM") == ["${PYTHON_IMAGE}"]


def test_the_container_is_not_open_by_itself(tmp_path: Path) -> None:
    """`docker run` refuses to serve a network without a login; compose opens this computer only."""
    variables = {name: value for name, value in environment().items() if name.startswith("CANVAS_")}
    with pytest.raises(InvalidInput, match="--auth USER:PASSWORD"):
        Settings.from_environment(variables).check_exposure()
    compose = compose_environment()
    settings = Settings.from_environment(variables | compose)
    settings.check_exposure()
    assert settings.checks_host
    with pytest.raises(InvalidInput, match="--auth USER:PASSWORD"):
        Settings.from_environment(variables | compose | {"CANVAS_INSECURE": "0"}).check_exposure()
    assert Settings.from_environment(variables | compose | {"CANVAS_AUTH": "ann:secret"}).requires_api_key


@pytest.mark.slow
def test_health_check_succeeds_after_start(built: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    image_env = environment()
    assert {"/data", "/data/.canvas", "/data/.huggingface"} <= set(image_env.values())
    image_env = {name: value.replace("/data", str(tmp_path)) for name, value in image_env.items()}
    environ = {**os.environ, **image_env, "CANVAS_PORT": str(port), "CANVAS_DTYPE": "float32"} | compose_environment()
    [start] = [json.loads(text) for text in arguments_of("CMD")]
    [health] = [json.loads(text.partition("CMD ")[2]) for text in arguments_of("HEALTHCHECK")]
    check = [sys.executable, *health[1:]]
    with subprocess.Popen([sys.executable, *start[1:]], cwd=built, env=environ, stderr=subprocess.DEVNULL) as server:
        while subprocess.run(check, env=environ, capture_output=True, check=False).returncode:
            assert server.poll() is None, "the server ended"
        server.terminate()
    assert (tmp_path / "ai_images.db").is_file()


def test_it_runs_as_an_unprivileged_user() -> None:
    names = [name for name, _ in instructions()]
    assert arguments_of("USER") == ["1000"]
    assert names.index("USER") > max(n for n, name in enumerate(names) if name == "RUN")
    assert arguments_of("VOLUME") == ["/data"]


def test_dockerfile_passes_hadolint() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([str(linter), str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_compose_has_a_cpu_and_a_gpu_service() -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]
    assert services["canvas"]["volumes"] == ["data:/data"]
    assert services["cuda"]["build"]["args"] == {"DEVICE": "cuda"}
    [port] = services["canvas"]["ports"]
    assert port.startswith("127.0.0.1:")
