"""The checks of `doctor` and their hints."""

from __future__ import annotations

import shutil
import socket
import tomllib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from threading import Thread

import pytest

from canvas import Studio
from canvas.cli import doctor
from canvas.cli import main as cli
from canvas.cli.doctor import Check
from canvas.engine.device import Device
from canvas.history.repair import RepairResult
from canvas.models.hub_client import HubStatus, check_hub
from canvas.settings import Settings

GPU = Device("cuda", "float16", "H200")


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
    ("free", "ok", "warning"),
    [
        (10**9, False, False),
        (2 * 10**9 - 1, False, False),
        (2 * 10**9, True, True),
        (3 * 10**9, True, True),
        (6 * 10**9 - 1, True, True),
        (6 * 10**9, True, False),
        (9**11, True, False),
    ],
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
    assert check.ok and check.warning
    assert "built for CUDA 13.0; no GPU is usable" in check.message


def test_missing_optional_packages_are_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [(check.ok, check.warning) for check in doctor.check_quantized()] == [(True, False)] * 2

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


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (HubStatus(offline="No connection"), [("hub", True, True, "downloaded models work offline")]),
        (HubStatus(), [("hub", True, False, "reachable"), ("token", True, True, "not set")]),
        (HubStatus(user="ann"), [("hub", True, False, "reachable"), ("token", True, False, "account ann")]),
        (HubStatus(auth_error="Invalid"), [("hub", True, False, "reachable"), ("token", False, False, "set HF_TOKEN")]),
    ],
)
def test_the_hub_and_its_token_are_checked(
    monkeypatch: pytest.MonkeyPatch, status: HubStatus, expected: list[tuple[str, bool, bool, str]]
) -> None:
    monkeypatch.setattr("canvas.models.hub_client.check_hub", lambda: status)
    checks = list(doctor.check_hub_access())
    assert [(check.name, check.ok, check.warning) for check in checks] == [each[:3] for each in expected]
    for check, (*_, message) in zip(checks, expected, strict=True):
        assert message in check.message


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as raised:
        cli.main(list(arguments))
    return int(raised.value.code or 0)


@pytest.mark.parametrize("fails", [False, True])
def test_a_failed_check_is_marked_and_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, fails: bool
) -> None:
    checks = [Check("python", True, "3.11"), Check("hub", True, "offline", warning=True)]
    checks += [Check("port", False, "in use")] * fails
    monkeypatch.setattr(doctor, "_run_checks", lambda settings: iter(checks))
    assert run("doctor", "--data-dir", str(tmp_path)) == fails
    captured = capsys.readouterr()
    assert captured.out.splitlines() == ["ok   python: 3.11", "warn hub: offline", *["FAIL port: in use"] * fails]
    assert captured.err == ""


@pytest.fixture
def quick_checks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Settings:
    """The settings for checks without those of the network and the device."""
    monkeypatch.setattr("canvas.models.hub_client.check_hub", HubStatus)
    monkeypatch.setattr(doctor, "check_torch", lambda: Check("torch", True, "2.0"))
    monkeypatch.setattr(Studio, "device", GPU)
    return Settings(data_dir=tmp_path / "data", cache_dir=tmp_path / "cache", port=0, device="cpu", engine="torch")


@pytest.mark.parametrize(("free", "ok"), [(5 * 10**9, False), (5 * 10**9 + 1, True)])
def test_everything_is_checked(quick_checks: Settings, monkeypatch: pytest.MonkeyPatch, free: int, ok: bool) -> None:
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free))
    monkeypatch.setattr("canvas.engine.system_info.free_memory", lambda: 9 * 10**9)
    checks = {check.name: check for check in doctor._run_checks(quick_checks)}
    assert {name for name, check in checks.items() if not check.ok} == (set() if ok else {"disk"})
    assert ("delete models" in checks["disk"].message) == (not ok)
    assert {*doctor.PACKAGES, "python", "data folder", "device", "gpu", "memory"} <= set(checks)
    assert checks["torch"].message == "2.0"
    assert checks["device"].message == "cuda, float16: H200"
    assert "model starter" in checks


def test_a_missing_package_fails(quick_checks: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(package: str) -> str:
        if package == "gradio":
            raise PackageNotFoundError
        return "1.0"

    monkeypatch.setattr(doctor, "version", find)
    [failed] = [check for check in doctor._run_checks(quick_checks) if not check.ok]
    assert failed.name == "gradio"
    assert "pip install -r requirements.txt" in failed.message


def test_a_damaged_database_ends_the_checks(quick_checks: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("canvas.history.repair.integrity_error", lambda path: "page 7")
    *_, last = doctor._run_checks(quick_checks)
    assert (last.name, last.ok) == ("database", False)
    assert "damaged (page 7)" in last.message


def test_a_data_folder_that_cannot_be_used_fails(quick_checks: Settings) -> None:
    quick_checks.data_dir.write_text("no folder")
    *_, last = doctor._run_checks(quick_checks)
    assert (last.name, last.ok) == ("data folder", False)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (RepairResult(None, 0), "The database is not damaged"),
        (RepairResult(Path("old.db"), 7, 3), "7 images restored, 3 with their owners. The damaged file is now old.db"),
    ],
)
def test_a_database_is_rebuilt_only_when_asked(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    result: RepairResult,
    message: str,
) -> None:
    calls: list[Path] = []
    monkeypatch.setattr("canvas.history.repair.rebuild", lambda path, outputs: calls.append(path) or result)
    monkeypatch.setattr(doctor, "_run_checks", lambda settings: iter(()))
    assert run("doctor", "--data-dir", str(tmp_path)) == 0
    assert calls == []
    assert run("doctor", "--rebuild", "--data-dir", str(tmp_path)) == 0
    assert len(calls) == 1
    assert message in capsys.readouterr().err
