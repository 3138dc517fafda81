"""Middleware that protects all routes: response headers, host and origin, cookies, files."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection
from pathlib import Path
from urllib.parse import urlsplit

from anyio.to_thread import run_sync
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from canvas.validation import is_loopback

# Gradio's file routes, which serve any file in a static directory.
FILE_ROUTE = re.compile(r"/gradio_api/file[=/](.*)", re.DOTALL)
# Gradio's routes that fetch a URL from the request; nothing here needs them.
SSRF_ROUTES = re.compile(r"/gradio_api/(?:proxy=|file[=/]\s*https?:)", re.IGNORECASE)
# As strict as Gradio allows, which needs inline scripts and eval; no data can be sent to
# another host.
CSP = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'"
)
CSP_FRAME_ANCESTORS = "; frame-ancestors 'self' http://localhost:* http://127.0.0.1:*"
# In a Space, which huggingface.co embeds in a frame, Gradio shows the owner's avatar.
HUB_SOURCES = "'self' data: blob: https://huggingface.co https://*.huggingface.co"
CSP_SPACE = f"; connect-src {HUB_SOURCES}; img-src {HUB_SOURCES}"
INVALID_HOST = (
    "Host must be a name of this computer, such as localhost, or listed in "
    "CANVAS_TRUSTED_HOSTS. With --auth any host name is allowed.\n"
)
INVALID_ORIGIN = "Requests from pages of other sites are not allowed.\n"


def security_middleware(
    hosts: Collection[str] | None, outputs_dir: Path, is_stored_image: Callable[[Path], bool]
) -> list[Middleware]:
    """All middleware of this module.

    `hosts` are the allowed host names beside those of this computer. None allows any: where a
    login or an API key is required, DNS rebinding gains nothing.
    """
    csp = CSP + (CSP_SPACE if hosts is None else CSP_FRAME_ANCESTORS)
    checks = [] if hosts is None else [Middleware(HostOriginMiddleware, hosts=hosts)]
    return [
        Middleware(SecurityHeadersMiddleware, csp=csp),
        *checks,
        Middleware(CrossSiteCookieMiddleware),
        Middleware(FileAccessMiddleware, outputs_dir=outputs_dir, is_stored_image=is_stored_image),
    ]


class SecurityHeadersMiddleware:
    """Adds security headers and the Content-Security-Policy to every response."""

    def __init__(self, app: ASGIApp, *, csp: str) -> None:
        self._app = app
        self._headers = {
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "same-origin",  # the URL of an image is all one needs to see it
            "Content-Security-Policy": csp,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers)


class HostOriginMiddleware:
    """Rejects foreign Host (DNS rebinding) and Origin headers (requests of other sites)."""

    def __init__(self, app: ASGIApp, *, hosts: Collection[str]) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] in ("http", "websocket"):
            headers = Headers(scope=scope)
            if not self._is_allowed(f"//{headers.get('host', '')}"):
                app = PlainTextResponse(INVALID_HOST, 421)
            elif "origin" in headers and not self._is_allowed(headers["origin"]):
                app = PlainTextResponse(INVALID_ORIGIN, 403)
        await app(scope, receive, send)

    def _is_allowed(self, url: str) -> bool:
        try:
            name = (urlsplit(url).hostname or "").rstrip(".")
        except ValueError:
            return False
        return is_loopback(name) or name in self._hosts


class CrossSiteCookieMiddleware:
    """Removes the cookies of requests that pages of other sites make.

    Gradio's login cookie is `SameSite=None`, for frames, and Gradio's CORS headers let other
    sites read the responses. Following a link from another site keeps the cookies.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            headers = MutableHeaders(scope=scope)
            is_link = headers.get("sec-fetch-mode") == "navigate" and scope.get("method") in ("GET", "HEAD")
            if headers.get("sec-fetch-site") in ("cross-site", "same-site") and not is_link:
                del headers["cookie"]
        await self._app(scope, receive, send)


class FileAccessMiddleware:
    """Restricts Gradio's file routes in `outputs_dir` to stored images, and to local files."""

    def __init__(self, app: ASGIApp, *, outputs_dir: Path, is_stored_image: Callable[[Path], bool]) -> None:
        self._app = app
        self._outputs_dir = outputs_dir.resolve()
        self._is_stored_image = is_stored_image

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app, path = self._app, scope.get("path", "")
        match = FILE_ROUTE.search(path)
        if SSRF_ROUTES.search(path) or (match and not await run_sync(self._is_allowed, match[1])):
            app = PlainTextResponse("File not found.\n", 404)
        await app(scope, receive, send)

    def _is_allowed(self, file: str) -> bool:
        try:
            path = Path(os.path.abspath(file))
            resolved = path.resolve()
        except (OSError, ValueError, RuntimeError):  # NUL bytes, symlink loops
            return False
        # Gradio checks everything outside: it serves only its own cache.
        if not resolved.is_relative_to(self._outputs_dir):
            return True
        # The name of a symlink to an image can be guessed.
        return path.name == resolved.name and self._is_stored_image(resolved)
