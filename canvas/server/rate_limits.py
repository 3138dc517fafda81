"""Limits uploads per address on a public server."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException
from starlette.responses import PlainTextResponse

from canvas.server.security import client_network

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

FILE_PART = b'filename="'  # of a file in a multipart body


RATE_LIMITED = "You have handed in a great many files. Try again in an hour.\n"


class UploadLimitMiddleware:
    """Lets an address hand in so many files and bytes an hour, where `strangers` come in.

    Gradio counts neither. A request that goes beyond is cut off, and what came of it removed:
    so is what a visitor sent who hung up, which Gradio would leave on the disk.
    """

    FILES = 200
    BYTES = 500 * 2**20
    HOUR = 3600.0  # seconds

    def __init__(
        self, app: ASGIApp, *, public: bool, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._app = app
        self._strangers = public
        self._now = now
        self._since = now()
        self._files: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request on its way in."""
        path = scope.get("path", "").rstrip("/")
        if scope["type"] != "http" or scope["method"] != "POST" or not path.endswith("/upload"):
            await self._app(scope, receive, send)
            return
        if self._now() - self._since > self.HOUR:
            self._since = self._now()
            self._files.clear()
            self._bytes.clear()
        address = client_network((scope.get("client") or ("",))[0])
        length = Headers(scope=scope).get("content-length", "")
        if not self._within_quota(address, int(length) if length.isdecimal() else 0):
            await PlainTextResponse(RATE_LIMITED, 429)(scope, receive, send)
            return
        tail, whole = b"", False

        async def counted() -> Message:
            nonlocal tail, whole
            message = await receive()
            body = message.get("body", b"")
            self._bytes[address] += len(body)
            self._files[address] += (tail + body).count(FILE_PART)
            tail = (tail + body)[-len(FILE_PART) + 1 :]
            # Gradio's parser cleans up after this error, and after no other.
            if message["type"] == "http.disconnect" and not whole:
                raise MultiPartException("The visitor hung up.")
            if not self._within_quota(address, 0):
                raise MultiPartException(RATE_LIMITED)
            whole = whole or not message.get("more_body", False)
            return message

        await self._app(scope, counted, send)

    def _within_quota(self, address: str, more: int) -> bool:
        if not self._strangers:
            return True
        return self._files[address] <= self.FILES and self._bytes[address] + more <= self.BYTES
