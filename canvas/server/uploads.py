"""Notes who uploaded a file, and deletes old files of Gradio's temporary folder."""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from canvas.jobs.inputs import TempFiles

UPLOAD_PATH = "/gradio_api/upload"
MAX_AGE = 7200.0  # seconds
SWEEP_INTERVAL = 600.0  # seconds


class UploadOwnerMiddleware:
    """Registers the files of an upload, which Gradio's response lists, for the owner of the request."""

    def __init__(self, app: ASGIApp, *, temp_files: TempFiles) -> None:
        self._app = app
        self._temp_files = temp_files

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_upload = scope["type"] == "http" and scope["path"].rstrip("/") == UPLOAD_PATH
        owner = scope.get("state", {}).get("owner")
        if not is_upload or owner is None:
            await self._app(scope, receive, send)
            return
        status, body = 0, b""

        async def send_and_register(message: Message) -> None:
            nonlocal status, body
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body" and status == 200:
                body += message.get("body", b"")
                if not message.get("more_body", False):
                    for path in json.loads(body):
                        self._temp_files.register(Path(path), owner)
            await send(message)

        await self._app(scope, receive, send_and_register)


def start_sweeping(folder: Path, temp_files: TempFiles) -> None:
    """Delete the old files of a folder every SWEEP_INTERVAL, in a thread, until the process ends."""

    def run() -> None:
        while True:
            time.sleep(SWEEP_INTERVAL)
            sweep(folder, MAX_AGE)
            temp_files.forget_deleted()

    threading.Thread(target=run, name="sweep-temp-files", daemon=True).start()


def sweep(folder: Path, max_age: float) -> int:
    """Delete the files that were last changed more than `max_age` seconds ago; returns how many."""
    oldest, deleted = time.time() - max_age, 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # another thread deletes files, too
            if path.is_dir() and not path.is_symlink():
                if path.stat().st_mtime < oldest:
                    path.rmdir()  # fails unless it is empty
            elif path.lstat().st_mtime < oldest:
                path.unlink()
                deleted += 1
    return deleted
