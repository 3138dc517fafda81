"""The wheel: its files, its requirements, and the command `magic-canvas` after installation."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import venv
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

import httpx
import pytest
from packaging.requirements import Requirement
from PIL import Image

from tests.test_requirements import optional, required

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--no-cache-dir", "--wheel-dir", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", *options, str(ROOT)], check=True)
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def command(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`magic-canvas` in a fresh environment that sees the dependencies installed here."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    [packages] = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    subprocess.run([*pip, "install", "-q", "--no-deps", "--no-index", str(wheel)], check=True)
    return folder / "bin" / "magic-canvas"


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    """Options of subprocess: an empty working directory, and nothing of the checkout."""
    environ = {**os.environ, "CANVAS_DEVICE": "cpu", "CANVAS_DTYPE": "float32"}
    environ["CANVAS_CACHE_DIR"] = str(tmp_path / "cache")
    environ.pop("PYTHONPATH", None)
    (tmp_path / "empty").mkdir()
    return {"cwd": tmp_path / "empty", "env": environ, "text": True}


@pytest.mark.slow
def test_wheel_has_the_package_and_its_assets(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assets = {path.relative_to(ROOT) for path in (ROOT / "assets").rglob("*") if path.is_file()}
    modules = {path.relative_to(ROOT) for path in (ROOT / "canvas").rglob("*.py")}
    expected = {path.as_posix() for path in modules} | {f"canvas/{path}" for path in assets}
    excluded = ("canvas/training/", "canvas/benchmark/", "canvas/assets/screenshots/")
    assert names == {name for name in expected if not name.startswith(excluded)}


@pytest.mark.slow
def test_wheel_requires_the_packages_of_requirements_txt(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith("/METADATA")]
        metadata = Parser().parsestr(archive.read(name).decode())
    requirements = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    extras = [one for one in requirements if "extra ==" in str(one.marker)]
    always = {str(one.specifier) for one in requirements if one not in extras}
    assert always == {str(one.specifier) for one in required().values()}
    assert {one.name for one in extras} == optional()


@pytest.mark.slow
def test_installed_command_generates_an_image(command: Path, options: dict[str, Any]) -> None:
    help_text = subprocess.run([command, "--help"], **options, capture_output=True, check=True)
    assert "Usage: magic-canvas" in help_text.stdout
    arguments = ["generate", "a fox", "--steps", "1", "--output", "fox.png"]
    subprocess.run([command, *arguments], **options, check=True)
    with Image.open(options["cwd"] / "fox.png") as image:
        assert image.size == (256, 256)


@pytest.mark.slow
def test_bench_is_not_installed(command: Path, options: dict[str, Any]) -> None:
    done = subprocess.run([command, "bench"], **options, capture_output=True, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "source repository" in done.stderr


@pytest.mark.long
def test_installed_command_serves_by_default(command: Path, options: dict[str, Any]) -> None:
    arguments = [command, "--port", "0", "--json"]
    with subprocess.Popen(arguments, **options, stdout=subprocess.PIPE) as server:
        assert server.stdout
        try:
            url = json.loads(server.stdout.readline())["url"]
            assert "Magic Canvas" in httpx.get(url).text
            assert httpx.get(f"{url}healthz").status_code == 200
        finally:
            server.terminate()
