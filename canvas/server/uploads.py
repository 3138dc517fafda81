"""Limits the size of request bodies, notes who uploaded a file, and deletes old files of Gradio's temporary folder."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from canvas.jobs.inputs import TempFiles

UPLOAD_PATH = "/gradio_api/upload"
MIB = 2**20
MAX_UPLOAD = 100 * MIB  # bytes of one file: a large photograph in PNG
DEFAULT_LIMIT = 2 * MIB  # the events of the page, with the longest prompts
# Limits by the beginning of the path. Uploads have room for the multipart headers; the OpenAI and
# AUTOMATIC1111 APIs limit their bodies themselves, and answer in their own formats.
LIMITS: tuple[tuple[str, int | None], ...] = (
    (UPLOAD_PATH, MAX_UPLOAD + MIB),
    ("/gradio_api/mcp", 20 * MIB),  # images in base64
    ("/v1/", None),
    ("/sdapi/", None),
    ("/controlnet/", None),
)
MAX_AGE = 7200.0  # seconds
SWEEP_INTERVAL = 600.0  # seconds

# A response that rejects the request, or None, for each message of the body.
Check = Callable[[Message], Response | None]


class BodyLimitMiddleware:
    """Rejects bodies above the limit of their route with 413, also those without a Content-Length."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = limit_of(scope["path"]) if scope["type"] == "http" else None
        if limit is None:
            await self._app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "")
        if length.isdecimal() and (len(length) > 18 or int(length) > limit):
            await _too_large(limit)(scope, receive, send)
            return
        received = 0

        def check(message: Message) -> Response | None:
            nonlocal received
            received += len(message.get("body", b""))
            return _too_large(limit) if received > limit else None

        await call_checked(self._app, scope, receive, send, check)


def limit_of(path: str) -> int | None:
    """The most bytes of a request body for a path; None if its route has a limit of its own."""
    return next((limit for prefix, limit in LIMITS if path.startswith(prefix)), DEFAULT_LIMIT)


def _too_large(limit: int) -> Response:
    return JSONResponse({"detail": f"The request body must be at most {limit // MIB} MiB."}, 413)


async def call_checked(app: ASGIApp, scope: Scope, receive: Receive, send: Send, check: Check) -> None:
    """Call an app; the response of `check`, if any, ends the body and replaces the app's response."""
    is_multipart = Headers(scope=scope).get("content-type", "").lower().startswith("multipart/")
    rejection: Response | None = None
    started = False

    async def receive_checked() -> Message:
        nonlocal rejection
        message = await receive()
        rejection = rejection or check(message)
        if rejection is None:
            return message
        # After a MultiPartException, and only then, Gradio's parser deletes its files.
        raise MultiPartException("The body is rejected.") if is_multipart else HTTPException(rejection.status_code)

    async def send_unless_rejected(message: Message) -> None:
        nonlocal started
        if rejection is None:
            started = True
            await send(message)

    try:
        await app(scope, receive_checked, send_unless_rejected)
    except Exception:
        if rejection is None:
            raise
    if rejection is not None and not started:
        await rejection(scope, receive, send)


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
