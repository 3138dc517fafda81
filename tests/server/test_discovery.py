from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from canvas.server.discovery import RunningServer, find_server, write_server_file
from canvas.settings import data_dir_id


@pytest.fixture
def serve_health() -> Iterator[Callable[[Any], str]]:
    """Starts a server with this /healthz; returns its address."""
    servers: list[HTTPServer] = []

    def serve(health: Any) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps(health).encode())

            def log_message(self, format: str, *args: object) -> None: ...

        servers.append(HTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.05,)).start()
        return f"http://127.0.0.1:{servers[-1].server_address[1]}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("field", ["requires_api_key", "asks_for_keys"])
def test_servers_of_earlier_versions_are_found(tmp_path: Path, serve_health: Callable[[Any], str], field: str) -> None:
    url = serve_health({"folder": data_dir_id(tmp_path), field: True})
    write_server_file(tmp_path, url)
    assert find_server(tmp_path) == RunningServer(url, requires_api_key=True)


def test_a_server_records_itself_in_a_new_folder_and_again(tmp_path: Path, serve_health: Callable[[Any], str]) -> None:
    folder = tmp_path / "new" / "data"
    write_server_file(folder, "http://127.0.0.1:1/")
    url = serve_health({"folder": data_dir_id(folder)})
    write_server_file(folder, f"{url}/")
    assert find_server(folder) == RunningServer(url, requires_api_key=False)


@pytest.mark.parametrize("health", [{"folder": "of another folder"}, {}, ["folder"], None, "folder"])
def test_another_server_on_the_port_is_not_taken_for_ours(
    tmp_path: Path, serve_health: Callable[[Any], str], health: Any
) -> None:
    write_server_file(tmp_path, serve_health(health))
    assert find_server(tmp_path) is None


def test_only_http_addresses_are_asked(tmp_path: Path) -> None:
    (tmp_path / "healthz").write_text(json.dumps({"folder": data_dir_id(tmp_path)}))
    write_server_file(tmp_path, tmp_path.as_uri())
    assert find_server(tmp_path) is None
