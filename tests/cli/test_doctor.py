"""What the doctor says of a machine, and what to do about it."""

from __future__ import annotations

import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from canvas import Studio
from canvas.cli import doctor
from canvas.engine.device import Device
from canvas.models.hub_client import check_hub
from canvas.settings import Settings


def test_too_old_a_python_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_python().well
    monkeypatch.setattr(doctor, "OLDEST", (4, 0))
    assert "install 3.11" in doctor.check_python().sentence


@pytest.mark.parametrize(
    ("free", "well", "note"), [(10**9, False, False), (3 * 10**9, True, True), (9**11, True, False)]
)
def test_little_memory_is_said(free: int, well: bool, note: bool) -> None:
    found = doctor.check_memory(free, 16 * 10**9)
    assert (found.well, found.note) == (well, note)
    assert ("close other programs" in found.sentence) == (not well or note)


def test_a_driver_without_a_torch_for_it_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    cpu = Device("cpu", "float32", "because no GPU was found")
    assert doctor.check_gpu(cpu).well
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert "pytorch.org" in doctor.check_gpu(cpu).sentence
    assert doctor.check_gpu(Device("cuda", "float16", "H200 is there")).well


def test_a_taken_port_is_found_and_another_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert doctor.check_port(Settings(port=port)).well
    assert doctor.check_port(Settings(port=0)).well
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as other:
        Thread(target=other.serve_forever, args=(0.05,)).start()
        taken = other.server_address[1]
        found = doctor.check_port(Settings(port=taken))
        other.shutdown()
    assert not found.well
    assert f"--port {taken + 1}" in found.sentence


class Hub(BaseHTTPRequestHandler):
    """Knows one token."""

    def do_GET(self) -> None:
        good = self.headers.get("Authorization") == "Bearer hf_good"
        self.send_response(200 if good else 401)
        self.end_headers()
        self.wfile.write(b'{"name": "ann"}')

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


def test_the_hub_is_asked_who_we_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        Thread(target=server.serve_forever, args=(0.05,)).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        assert check_hub(address, "hf_good").name == "ann"
        bad = check_hub(address, "hf_bad")
        assert "settings/tokens" in bad.wrong
        assert "hf_bad" not in bad.wrong
        server.shutdown()
    gone = check_hub(address, "hf_good")
    assert "check the connection" in gone.offline


def test_a_running_server_is_no_fault(studio: Studio) -> None:
    from canvas.server.launch import launch

    page = launch(studio, block=False)
    port = page.server_port
    found = doctor.check_port(Settings(port=port))
    page.close()
    assert found.well
    assert "already" in found.sentence
