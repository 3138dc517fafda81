"""The Dockerfile's steps in a clean folder, without a container engine."""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PIP = 'pip() { command python -m pip "$@" --dry-run; }\n'  # all that the app needs is here


def steps() -> list[tuple[str, str]]:
    """Every instruction with its text, continued lines joined."""
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


def of(name: str) -> list[str]:
    return [text for kind, text in steps() if kind == name]


def environment() -> dict[str, str]:
    pairs = " ".join(of("ENV")).split()
    return dict(pair.split("=", 1) for pair in pairs)


def is_sent(path: str) -> bool:
    """Whether .dockerignore lets a file into the build; the last rule that fits decides."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        rule = line.removeprefix("!")
        if not rule or rule.startswith("#"):
            continue
        parts = path.split("/")
        beginnings = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
        if rule.startswith("**/"):
            fits = any(fnmatch.fnmatchcase(part, rule[3:]) for part in parts)
        else:
            fits = any(fnmatch.fnmatchcase(beginning, rule) for beginning in beginnings)
        if fits:
            sent = line.startswith("!")
    return sent


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean folder after the COPY steps, with what the build may see."""
    folder = tmp_path_factory.mktemp("app")
    for text in of("COPY"):
        *sources, target = text.split()
        for source in sources:
            assert is_sent(source), f"{source} is kept out by .dockerignore"
            paths = [ROOT / source, *(ROOT / source).rglob("*")]
            files = [path for path in paths if path.is_file()]
            assert files, f"{source} is not there"
            for path in files:
                inside = path.relative_to(ROOT).as_posix()
                if is_sent(inside):
                    to = folder / target / path.relative_to(ROOT / source)
                    to = to / path.name if path == ROOT / source else to
                    to.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, to)
    return folder


def test_what_is_copied_is_the_program_and_nothing_else(built: Path) -> None:
    top = {path.name for path in built.iterdir()}
    assert top == {"LICENSE", "README.md", "app.py", "requirements.txt", "assets", "canvas"}
    assert not (built / "canvas" / "training").exists()
    assert (built / "assets" / "starter" / "unet").is_dir()
    assert not [path for path in built.rglob("*") if path.name.startswith((".", "__pycache__"))]
    assert not is_sent("ai_images.db")
    assert not is_sent(".env")


@pytest.mark.parametrize(("device", "code"), [("cpu", 0), ("cuda", 0), ("abacus", 1)])
def test_the_packages_install(built: Path, device: str, code: int) -> None:
    [install] = [text for text in of("RUN") if "requirements.txt" in text]
    environ = {
        **os.environ,
        "DEVICE": device,
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
    }
    done = subprocess.run(
        ["sh", "-ec", PIP + install],
        cwd=built,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert ("abacus" in done.stderr) == bool(code)


@pytest.fixture
def running(built: Path, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The program as CMD starts it, with the environment that it has for the health check."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    inside = environment()
    assert {"/data", "/data/.canvas", "/data/.huggingface"} <= set(inside.values())
    inside = {name: value.replace("/data", str(tmp_path)) for name, value in inside.items()}
    environ = {**os.environ, **inside, "CANVAS_PORT": str(port), "CANVAS_DTYPE": "float32"}
    [command] = [json.loads(text) for text in of("CMD")]
    with subprocess.Popen(
        [sys.executable, *command[1:]], cwd=built, env=environ, stderr=subprocess.DEVNULL
    ) as child:
        yield environ
        child.terminate()


def test_it_starts_and_says_that_it_is_well(running: dict[str, str]) -> None:
    [check] = of("HEALTHCHECK")
    command = json.loads(check.partition("CMD ")[2])
    while subprocess.run(
        [sys.executable, *command[1:]], env=running, capture_output=True, check=False
    ).returncode:
        pass  # the test's own time limit ends it
    assert (Path(running["CANVAS_DATA_DIR"]) / "ai_images.db").is_file()


def test_it_runs_as_nobody_special() -> None:
    names = [name for name, _ in steps()]
    assert of("USER") == ["1000"]
    assert names.index("USER") > max(n for n, name in enumerate(names) if name == "RUN")
    assert of("VOLUME") == ["/data"]


def test_the_linter_has_nothing_to_say() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [str(linter), str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_compose_offers_a_processor_and_a_gpu() -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]
    assert services["canvas"]["volumes"] == ["data:/data"]
    assert services["cuda"]["build"]["args"] == {"DEVICE": "cuda"}
    [port] = services["canvas"]["ports"]
    assert port.startswith("127.0.0.1:")
