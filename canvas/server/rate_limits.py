"""Limits the uploads of each client address on a public server."""

from __future__ import annotations

import hashlib
import ipaddress
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from canvas.server.uploads import MIB, Check, call_checked

RATE_LIMITED = "Too many uploads from this address. Try again in an hour.\n"
FIELD_TOO_LARGE = "The fields of a form must be at most 1 MiB.\n"
CALLBACKS = (  # of the parser: the methods of FormCounter
    *("on_part_begin", "on_header_field", "on_header_value", "on_header_end", "on_headers_finished"),
    *("on_part_data", "on_part_end"),
)


class UploadLimitMiddleware:
    """Limits files and bytes per address and hour, if `public`; Gradio limits neither.

    Counts every request with a body, in multipart with the parser that Gradio and Starlette use. Also
    has Gradio remove the files of an upload that is aborted, which it keeps otherwise. A file that the
    address has uploaded before counts once, as it is stored once: the image editor of the page uploads
    its image again and again.
    """

    FILES = 200
    BYTES = 500 * MIB
    FREE = 64 * 1024  # bytes: the events of a page, which sends one per second, are smaller
    WINDOW = 3600.0  # seconds

    def __init__(self, app: ASGIApp, *, public: bool, now: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._public = public
        self._now = now
        self._window_start = now()
        self._files: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        self._known: dict[str, set[bytes]] = {}  # digests of the files

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        if self._now() - self._window_start > self.WINDOW:
            self._window_start = self._now()
            self._files.clear()
            self._bytes.clear()
            self._known.clear()
        network = network_of(scope)
        headers = Headers(scope=scope)
        form = FormCounter(headers.get("content-type", ""))
        length = headers.get("content-length", "")
        announced = int(length) if length.isdecimal() and len(length) < 18 else 0
        if (form.is_multipart or announced > self.FREE) and not self._within_quota(network, announced):
            await PlainTextResponse(RATE_LIMITED, 429)(scope, receive, send)
            return
        await call_checked(self._app, scope, receive, send, self._check(network, form))

    def _check(self, network: str, form: FormCounter) -> Check:
        received, complete = 0, False

        def check(message: Message) -> Response | None:
            nonlocal received, complete
            if message["type"] == "http.disconnect":
                if form.is_multipart and not complete:
                    raise MultiPartException("The client disconnected.")
                return None
            body = message.get("body", b"")
            complete = complete or not message.get("more_body", False)
            free = 0 if form.is_multipart else self.FREE
            self._bytes[network] += max(0, received + len(body) - free) - max(0, received - free)
            received += len(body)
            self._files[network] += form.feed(body)
            self._forget_repeated(network, form)
            if form.field_bytes > MIB:
                return PlainTextResponse(FIELD_TOO_LARGE, 413)
            if received <= free or self._within_quota(network, 0):
                return None
            return PlainTextResponse(RATE_LIMITED, 429)

        return check

    def _forget_repeated(self, network: str, form: FormCounter) -> None:
        known = self._known.setdefault(network, set())
        while form.finished:
            size, digest = form.finished.pop()
            if digest in known:
                self._files[network] -= 1
                self._bytes[network] -= size
            known.add(digest)

    def _within_quota(self, network: str, more_bytes: int) -> bool:
        if not self._public:
            return True
        within_bytes = self._bytes[network] + more_bytes <= self.BYTES
        return within_bytes and self._files[network] <= self.FILES


class FormCounter:
    """Counts the files and the bytes of the other fields of a multipart body while it arrives."""

    def __init__(self, content_type: str) -> None:
        kind, options = parse_options_header(content_type)
        self.is_multipart = kind.startswith(b"multipart/")
        self.field_bytes = 0
        self.finished: list[tuple[int, bytes]] = []  # size and digest of the files
        self._size, self._digest = 0, hashlib.sha256()
        self._files = 0
        self._disposition = b""
        self._name, self._value = b"", b""
        self._in_file = False
        boundary = options.get(b"boundary") if self.is_multipart else None
        callbacks: Any = {name: getattr(self, name) for name in CALLBACKS}
        self._parser = MultipartParser(boundary, callbacks) if boundary else None

    def feed(self, body: bytes) -> int:
        """The number of files that begin in the next part of the body."""
        before = self._files
        if self._parser is not None:
            try:
                self._parser.write(body)
            except FormParserError:  # the server's parser fails at the same byte
                self._parser = None
        return self._files - before

    def on_part_begin(self) -> None:
        self._disposition = self._name = self._value = b""

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name = self._value = b""

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._in_file = b"filename" in options
        self._files += self._in_file
        self._size, self._digest = 0, hashlib.sha256(options.get(b"filename", b"") + b"\n")

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._size += end - start
            self._digest.update(data[start:end])
        else:
            self.field_bytes += end - start

    def on_part_end(self) -> None:
        if self._in_file:
            self.finished.append((self._size, self._digest.digest()))


def network_of(scope: Scope) -> str:
    """The `client_network` of the client of a request."""
    return client_network((scope.get("client") or ("",))[0])


def client_network(address: str) -> str:
    """What counts as one client: an IPv4 address, or an IPv6 network of 64 bits."""
    try:
        known: Any = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:100]
    known = getattr(known, "ipv4_mapped", None) or known
    return str(ipaddress.ip_network((known, 32 if known.version == 4 else 64), strict=False))
