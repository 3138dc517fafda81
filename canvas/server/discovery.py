"""Where the server of a data folder is, so that the command line need not load a model twice."""

from __future__ import annotations

import json
import logging
import os
import secrets
import urllib.request
from pathlib import Path
from typing import NamedTuple

from canvas.settings import data_dir_id

TIMEOUT = 2.0  # seconds for a server on this machine to answer

log = logging.getLogger(__name__)


def write_server_file(data_dir: Path, url: str) -> None:
    """Leave a note in the data folder that it is served at `url`."""
    note = _server_file(data_dir)
    part = note.with_name(f"{secrets.token_hex(8)}.part")
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(url, encoding="utf-8")
        os.replace(part, note)
    except OSError as error:  # the server is well without; only the command line loads twice
        log.warning("The command line will not find this server: %s", error)


class RunningServer(NamedTuple):
    """A server that runs, and whether it asks for a key."""

    url: str
    asks_for_keys: bool


def find_server(data_dir: Path) -> RunningServer | None:
    """The server that runs over this data folder, or None."""
    try:
        url = _server_file(data_dir).read_text(encoding="utf-8").strip().rstrip("/")
        if not url.startswith("http://"):
            return None
        with urllib.request.urlopen(f"{url}/healthz", timeout=TIMEOUT) as answer:  # noqa: S310
            health = json.load(answer)
    except (OSError, ValueError):  # none was ever here, it has ended, or another program answers
        return None
    is_ours = isinstance(health, dict) and health.get("folder") == data_dir_id(data_dir)
    return RunningServer(url, bool(health.get("asks_for_keys"))) if is_ours else None


def _server_file(data_dir: Path) -> Path:
    return data_dir / ".canvas" / "server"
