"""Default settings on a Hugging Face Space."""

from __future__ import annotations

from pathlib import Path

import pytest

from canvas.platform import OAUTH, configure_hf_home, configure_runtime_env, is_writable
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
