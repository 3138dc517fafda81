"""Finds the running server of a data folder, so that the CLI does not load a model again."""

from __future__ import annotations

import json
import logging
import urllib.request
from pathlib import Path
from typing import NamedTuple

from canvas.files import atomic_write
from canvas.settings import data_dir_id

TIMEOUT = 2.0  # seconds for a local server to respond

log = logging.getLogger(__name__)


class RunningServer(NamedTuple):
    """The server of a data folder."""

    url: str
    requires_api_key: bool


def write_server_file(data_dir: Path, url: str) -> None:
    """Record in the data folder that a server at `url` uses it."""
    path = _server_file(data_dir)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(url.encode())
    except OSError as error:  # the server works without
        log.warning("The command line will not find this server: %s", error)


def find_server(data_dir: Path) -> RunningServer | None:
    """The running server of this data folder, or None."""
    try:
        url = _server_file(data_dir).read_text(encoding="utf-8").strip().rstrip("/")
        if not url.startswith("http://"):
            return None
        with urllib.request.urlopen(f"{url}/healthz", timeout=TIMEOUT) as response:  # noqa: S310
            health = json.load(response)
    except (OSError, ValueError):  # no file, no server, or another program on its port
        return None
    if not isinstance(health, dict) or health.get("folder") != data_dir_id(data_dir):
        return None
    # Servers before version 0.2 have only the second.
    return RunningServer(url, bool(health.get("requires_api_key", health.get("asks_for_keys"))))


def _server_file(data_dir: Path) -> Path:
    return data_dir / ".canvas" / "server"
