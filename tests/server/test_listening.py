"""Addresses that the server can, cannot and must not listen on, as users start it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from canvas.errors import InvalidInput
from canvas.server.discovery import find_server
from canvas.server.launch import listening_port
from canvas.settings import Settings
from tests.app_server import serving

ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAMS = [["app.py"], ["-m", "canvas", "serve"]]


def start(tmp_path: Path, program: list[str], *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A start that must fail."""
    environ = {**os.environ, "CANVAS_CACHE_DIR": str(tmp_path / "cache"), **variables}
    command = [sys.executable, *program, "--data-dir", str(tmp_path / "data"), *options]
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120, check=False)


@contextmanager
def occupied(host: str, family: socket.AddressFamily = socket.AF_INET) -> Iterator[int]:
    with socket.create_server((host, 0), family=family) as server:
        yield server.getsockname()[1]


def has_ipv6() -> bool:
    try:
        with occupied("::1", socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_port_in_use_is_one_sentence(tmp_path: Path, program: list[str]) -> None:
    with occupied("127.0.0.1") as port:
        done = start(tmp_path, program, "--port", str(port))
    assert done.returncode in (1, 2)
    [line] = done.stderr.splitlines()
    assert f"Port {port} is in use" in line
    assert "--port" in line
    assert "GRADIO" not in done.stderr


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_open_server_on_a_network_is_refused(tmp_path: Path, program: list[str]) -> None:
    """It was open to everyone, without a word."""
    for options, variables in (
        (("--host", "0.0.0.0"), {}),  # noqa: S104
        ((), {"CANVAS_HOST": "0.0.0.0"}),  # noqa: S104
    ):
        done = start(tmp_path, program, "--port", "0", *options, **variables)
        assert done.returncode in (1, 2)
        [line] = done.stderr.splitlines()
        for way in ("0.0.0.0", "--auth USER:PASSWORD", "--public", "--insecure"):  # noqa: S104
            assert way in line


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"host": "0.0.0.0"}, True),  # noqa: S104
        ({"host": "::"}, True),
        ({"host": "[::]"}, True),
        ({"host": "192.168.1.7"}, True),
        ({"host": "my-machine"}, True),
        ({"host": "0.0.0.0", "insecure": True}, False),  # noqa: S104
        ({"host": "0.0.0.0", "public": True}, False),  # noqa: S104
        ({"host": "0.0.0.0", "share": True}, False),  # noqa: S104
        ({"host": "0.0.0.0", "auth": ("ann", "secret")}, False),  # noqa: S104
        ({}, False),
        ({"host": "localhost"}, False),
        ({"host": "::1"}, False),
        ({"host": "[::1]"}, False),
    ],
)
def test_only_open_servers_are_refused(options: dict[str, Any], refused: bool) -> None:
    if refused:
        with pytest.raises(InvalidInput, match="--insecure"):
            Settings(**options).check_exposure()
    else:
        Settings(**options).check_exposure()


def test_a_space_is_not_refused() -> None:
    Settings.from_environment({"SPACE_ID": "ann/canvas"}).check_exposure()


def test_addresses_of_others_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"--host 192\.0\.2\.1 --port 7861 .*: use an address of this computer"):
        listening_port("192.0.2.1", 7861)
    with pytest.raises(InvalidInput, match=r"--host no-such-name\.invalid is not a known address"):
        listening_port("no-such-name.invalid", 7861)


def test_a_reserved_port_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def bind(self: socket.socket, address: object) -> None:  # root may use any port
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", bind)
    with pytest.raises(InvalidInput, match=r"Port 80 is reserved .* --port"):
        listening_port("127.0.0.1", 80)


def test_a_port_that_another_address_uses_is_refused() -> None:
    """Gradio refuses a port that is in use on 127.0.0.1, whatever the host."""
    with occupied("127.0.0.1") as port, pytest.raises(InvalidInput, match="in use"):
        listening_port("127.0.0.2", port)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such state of a port")
def test_a_port_whose_last_connections_end_can_be_used() -> None:
    with socket.socket() as client:
        server = socket.create_server(("127.0.0.1", 0))
        port = server.getsockname()[1]
        client.connect(("127.0.0.1", port))
        accepted, _ = server.accept()
        accepted.close()  # the end that closes first waits
        server.close()
        assert client.recv(1) == b""
    assert listening_port("127.0.0.1", port) == port


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_all_ipv6_addresses_do_not_include_those_of_ipv4() -> None:
    with occupied("127.0.0.2") as port:
        assert listening_port("::", port) == port


def test_a_free_port_is_found() -> None:
    port = listening_port("127.0.0.1", 0)
    assert listening_port("127.0.0.1", port) == port


@pytest.mark.slow
@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize(
    ("host", "options"), [("::1", {}), ("[::1]", {}), ("::", {"insecure": True}), ("::", {"auth": ("ann", "secret")})]
)
def test_ipv6_works(tmp_path: Path, host: str, options: dict[str, Any]) -> None:
    with serving(tmp_path, host=host, **options) as studio:
        found = find_server(tmp_path)
        assert found
        assert found.url.startswith("http://[::1]:")
        assert httpx.get(f"{found.url}/healthz").json()["status"] == "ok"
        page = httpx.get(f"{found.url}/", headers={"Origin": found.url})
        assert page.status_code == 200
        assert studio.page.local_url == f"{found.url}/"  # type: ignore[attr-defined]


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_a_port_in_use_on_ipv6_is_refused() -> None:
    with occupied("::1", socket.AF_INET6) as port, pytest.raises(InvalidInput, match=f"Port {port} is in use"):
        listening_port("::1", port)
