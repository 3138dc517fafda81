"""Default settings on a Hugging Face Space."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import uvicorn
from filelock import FileLock

from canvas.platform import (
    OAUTH,
    TRUSTED_PROXIES_VARIABLE,
    configure_hf_home,
    configure_runtime_env,
    is_writable,
    trusted_proxies,
    use_own_temp_folder,
)
from canvas.settings import Settings


@pytest.fixture
def environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of a Space, with storage mounted at a folder of the test."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bucket").mkdir()
    return {
        "SPACE_ID": "ann/canvas",
        "SYSTEM": "spaces",
        "HOME": str(tmp_path / "home"),
        "CANVAS_BUCKET": str(tmp_path / "bucket"),
    }


def test_there_are_no_space_defaults_elsewhere() -> None:
    assert Settings.from_environment({}) == Settings()


def test_a_space_is_public_and_stores_data_on_its_mount(environ: dict[str, str]) -> None:
    settings = Settings.from_environment(environ)
    assert settings.space == "ann/canvas"
    assert settings.is_public
    assert settings.safety_level == "prompt"
    assert settings.host == "0.0.0.0"  # noqa: S104
    assert settings.data_dir == Path(environ["CANVAS_BUCKET"])
    assert settings.persistent
    assert not settings.zero_gpu
    assert not settings.sign_in


def test_without_a_mount_data_is_not_persistent(environ: dict[str, str]) -> None:
    environ["CANVAS_BUCKET"] = "/nowhere"
    settings = Settings.from_environment(environ)
    assert settings.data_dir == Path()
    assert not settings.persistent


def test_variables_override_the_defaults_of_a_space(environ: dict[str, str]) -> None:
    environ |= {"CANVAS_PUBLIC": "no", "CANVAS_DATA_DIR": "/other"}
    settings = Settings.from_environment(environ)
    assert not settings.is_public
    assert settings.data_dir == Path("/other")


def test_zero_gpu_and_sign_in_are_detected(environ: dict[str, str]) -> None:
    environ |= dict.fromkeys(OAUTH, "given") | {"SPACES_ZERO_GPU": "true"}
    settings = Settings.from_environment(environ)
    assert settings.zero_gpu
    assert settings.sign_in
    del environ["OAUTH_SCOPES"]
    assert not Settings.from_environment(environ).sign_in


def test_hf_home_is_set_only_if_the_home_is_not_writable(environ: dict[str, str]) -> None:
    (Path(environ["HOME"]) / ".cache").mkdir(parents=True)
    configure_hf_home(environ)
    assert "HF_HOME" not in environ
    environ["HOME"] = "/proc/1/nowhere"
    environ["HF_HOME"] = "/kept"
    configure_runtime_env(environ)
    assert environ["HF_HOME"] == "/kept"
    del environ["HF_HOME"]
    configure_runtime_env(environ)
    assert is_writable(Path(environ["HF_HOME"]))


def test_is_writable(tmp_path: Path) -> None:
    assert is_writable(tmp_path / "not" / "yet")
    assert not is_writable(Path("/proc/1/nowhere"))
    (tmp_path / "file").write_text("")
    assert not is_writable(tmp_path / "file")


def test_gradio_has_a_temporary_folder_of_this_process(tmp_path: Path) -> None:
    killed = tmp_path / "magic-canvas-1-abc"
    (killed / "upload").mkdir(parents=True)
    (killed / "upload" / "a.png").write_bytes(b"left by a process that was killed")
    killed.with_suffix(".lock").touch()
    running = tmp_path / "magic-canvas-2-abc"
    running.mkdir()
    (tmp_path / "other").mkdir()
    environ = {"GRADIO_TEMP_DIR": str(tmp_path)}
    with FileLock(running.with_suffix(".lock")):
        folder = use_own_temp_folder(environ)
        assert environ["GRADIO_TEMP_DIR"] == str(folder)
        assert folder.parent == tmp_path
        assert folder.stat().st_mode & 0o777 == 0o700
        assert use_own_temp_folder(environ) == folder, "another server of this process"
        assert not killed.exists()
        assert running.exists()
        assert (tmp_path / "other").exists()


def test_the_temporary_folder_is_deleted_with_the_process(tmp_path: Path) -> None:
    code = "from canvas.platform import use_own_temp_folder as use; (use() / 'a.png').write_bytes(b''); print(use())"
    environ = {**os.environ, "GRADIO_TEMP_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).parent == tmp_path
    assert not list(tmp_path.iterdir())


def test_gradio_writes_no_type_stubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "import gradio as gr\n\nclass Mine(gr.JSON):\n    is_template = True\n"
    (tmp_path / "own_component.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("own_component")
    assert not (tmp_path / "own_component.pyi").exists(), "Gradio has changed: see TypeStubBlocker"


def test_trusted_proxies_are_named_for_uvicorn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TRUSTED_PROXIES_VARIABLE, raising=False)
    for proxies in ((), ("10.0.0.7", "192.168.0.0/16")):
        with trusted_proxies(proxies):
            config = uvicorn.Config(lambda: None)
        assert config.forwarded_allow_ips == ",".join(proxies), "none, instead of this machine"
        assert TRUSTED_PROXIES_VARIABLE not in os.environ
    monkeypatch.setenv(TRUSTED_PROXIES_VARIABLE, "10.0.0.1")
    with trusted_proxies(()):
        assert os.environ[TRUSTED_PROXIES_VARIABLE] == "10.0.0.1", "the administrator named one"
    with trusted_proxies(("10.0.0.2",)):
        assert os.environ[TRUSTED_PROXIES_VARIABLE] == "10.0.0.2"
    assert os.environ[TRUSTED_PROXIES_VARIABLE] == "10.0.0.1"
