"""The checks of `doctor` and their hints."""

from __future__ import annotations

import socket
import tomllib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from threading import Thread

import pytest

from canvas import Studio
from canvas.cli import doctor
from canvas.engine.device import Device
from canvas.models.hub_client import check_hub
from canvas.settings import Settings


def test_old_python_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_python().ok
    monkeypatch.setattr(doctor, "MIN_PYTHON", (4, 0))
    check = doctor.check_python()
    assert not check.ok
    assert "install 3.11" in check.message


def test_oldest_python_is_that_of_the_package() -> None:
    project = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=" + ".".join(map(str, doctor.MIN_PYTHON))


@pytest.mark.parametrize(
    ("free", "ok", "warning"), [(10**9, False, False), (3 * 10**9, True, True), (9**11, True, False)]
)
def test_low_memory_fails_or_warns(free: int, ok: bool, warning: bool) -> None:
    check = doctor.check_memory(free, 16 * 10**9)
    assert (check.ok, check.warning) == (ok, warning)
    assert ("close other programs" in check.message) == (not ok or warning)


def test_nvidia_driver_without_cuda_build_of_torch_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    cpu = Device("cpu", "float32", "because no GPU was found")
    assert doctor.check_gpu(cpu).ok
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert not doctor.check_gpu(cpu).ok
    assert "pytorch.org" in doctor.check_gpu(cpu).message
    assert doctor.check_gpu(Device("cuda", "float16", "H200")).ok


def test_torch_build_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_torch().ok
    assert "built for CPU" in doctor.check_torch().message
    monkeypatch.setattr("canvas.engine.system_info.torch_build", lambda: ("CUDA 13.0", False))
    check = doctor.check_torch()
    assert check.warning
    assert "built for CUDA 13.0; no GPU is usable" in check.message


def test_missing_optional_packages_are_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [check.warning for check in doctor.check_quantized()] == [False, False]

    def missing(_: str) -> str:
        raise PackageNotFoundError

    monkeypatch.setattr(doctor, "version", missing)
    for check in doctor.check_quantized():
        assert check.ok and check.warning
        assert "pip install torchao gguf" in check.message


def test_port_in_use_fails_and_suggests_another() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert doctor.check_port(Settings(port=port)).ok
    assert doctor.check_port(Settings(port=0)).ok
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as other:
        Thread(target=other.serve_forever, args=(0.05,)).start()
        used = other.server_address[1]
        check = doctor.check_port(Settings(port=used))
        other.shutdown()
    assert not check.ok
    assert f"--port {used + 1}" in check.message


class Hub(BaseHTTPRequestHandler):
    """Accepts one token."""

    def do_GET(self) -> None:
        valid = self.headers.get("Authorization") == "Bearer hf_good"
        self.send_response(200 if valid else 401)
        self.end_headers()
        self.wfile.write(b'{"name": "ann"}')

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


def test_hub_status_has_account_invalid_token_or_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        Thread(target=server.serve_forever, args=(0.05,)).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        assert check_hub(url, "hf_good").user == "ann"
        invalid = check_hub(url, "hf_bad")
        assert "settings/tokens" in invalid.auth_error
        assert "hf_bad" not in invalid.auth_error
        server.shutdown()
    assert "check the connection" in check_hub(url, "hf_good").offline


def test_port_of_a_running_magic_canvas_is_ok(studio: Studio) -> None:
    from canvas.server.launch import launch

    page = launch(studio, block=False)
    check = doctor.check_port(Settings(port=page.server_port))
    page.close()
    assert check.ok
    assert "already running" in check.message
