"""Limits uploads per client address on a public server."""

from __future__ import annotations

import ipaddress
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

FILE_PART = b'filename="'  # marks a file in a multipart body
RATE_LIMITED = "Too many uploads from this address. Try again in an hour.\n"


class UploadLimitMiddleware:
    """Limits files and bytes per address and hour, if `public`; Gradio limits neither.

    Also has Gradio remove the files of an upload that is aborted, which it keeps otherwise.
    """

    FILES = 200
    BYTES = 500 * 2**20
    WINDOW = 3600.0  # seconds

    def __init__(self, app: ASGIApp, *, public: bool, now: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._public = public
        self._now = now
        self._window_start = now()
        self._files: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "").rstrip("/")
        if scope["type"] != "http" or scope["method"] != "POST" or not path.endswith("/upload"):
            await self._app(scope, receive, send)
            return
        if self._now() - self._window_start > self.WINDOW:
            self._window_start = self._now()
            self._files.clear()
            self._bytes.clear()
        network = client_network((scope.get("client") or ("",))[0])
        length = Headers(scope=scope).get("content-length", "")
        if not self._within_quota(network, int(length) if length.isdecimal() else 0):
            await PlainTextResponse(RATE_LIMITED, 429)(scope, receive, send)
            return
        tail, complete = b"", False

        async def receive_counted() -> Message:
            nonlocal tail, complete
            message = await receive()
            body = message.get("body", b"")
            self._bytes[network] += len(body)
            self._files[network] += (tail + body).count(FILE_PART)
            tail = (tail + body)[-len(FILE_PART) + 1 :]
            # Gradio's parser removes its files after this exception only.
            if message["type"] == "http.disconnect" and not complete:
                raise MultiPartException("The client disconnected.")
            if not self._within_quota(network, 0):
                raise MultiPartException(RATE_LIMITED)
            complete = complete or not message.get("more_body", False)
            return message

        await self._app(scope, receive_counted, send)

    def _within_quota(self, network: str, more_bytes: int) -> bool:
        if not self._public:
            return True
        within_bytes = self._bytes[network] + more_bytes <= self.BYTES
        return within_bytes and self._files[network] <= self.FILES


def client_network(address: str) -> str:
    """What counts as one client: an IPv4 address, or an IPv6 network of 64 bits."""
    try:
        known: Any = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:100]
    known = getattr(known, "ipv4_mapped", None) or known
    return str(ipaddress.ip_network((known, 32 if known.version == 4 else 64), strict=False))
