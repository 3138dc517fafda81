"""Middleware that protects all routes: response headers, host and origin, cookies, files, signed links."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from canvas.errors import MissingApiKey
from canvas.validation import is_loopback

# Gradio's file routes, which serve any file in a static directory.
FILE_ROUTE = re.compile(r"/gradio_api/file[=/](.*)", re.DOTALL)
# Gradio's routes that fetch a URL from the request; nothing here needs them.
SSRF_ROUTES = re.compile(r"/gradio_api/(?:proxy=|file[=/]\s*https?:)", re.IGNORECASE)
# All routes that serve image files.
IMAGE_ROUTES = ("/pictures/", "/thumbnails/", "/downloads/", "/export.zip", "/gradio_api/file")
SIGNED_FOLDERS = ("/pictures", "/thumbnails")
LINK_LIFETIME = 3600.0  # seconds
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
INVALID_ORIGIN = (
    "Requests from pages of other sites, or of other ports, are not allowed, unless the host of the page is listed "
    "in CANVAS_TRUSTED_HOSTS.\n"
)
GRADIO_CORS = "CustomCORSMiddleware"  # a private name of Gradio
DEFAULT_PORTS = {"http": 80, "https": 443}


def security_middleware(
    hosts: Collection[str] | None,
    outputs_dir: Path,
    is_stored_image: Callable[[Path], bool],
    *,
    own_name: str = "localhost",
) -> list[Middleware]:
    """All middleware of this module.

    `hosts` are the allowed host names beside `own_name`, the name that the server listens on, and
    those of this computer. None allows any: with a login, or where every visitor has a separate
    history, DNS rebinding gains nothing.
    """
    csp = CSP + (CSP_SPACE if hosts is None else CSP_FRAME_ANCESTORS)
    checks = [] if hosts is None else [Middleware(HostOriginMiddleware, hosts=hosts, own_name=own_name)]
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

    def __init__(self, app: ASGIApp, *, hosts: Collection[str], own_name: str) -> None:
        self._app = app
        self._hosts = hosts
        self._own_names = own_host_names() | {own_name.lower()}
        self._origins = re.compile(named_origins(hosts))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] in ("http", "websocket"):
            headers = Headers(scope=scope)
            host, origin = headers.get("host", "").lower(), headers.get("origin")
            if not self._is_own(host, scope):
                app = PlainTextResponse(INVALID_HOST, 421)
            elif origin is not None and not (is_same_host(origin, host) or self._origins.fullmatch(origin)):
                app = PlainTextResponse(INVALID_ORIGIN, 403)
        await app(scope, receive, send)

    def _is_own(self, host: str, scope: Scope) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        except ValueError:
            return False
        # The address that the client is connected to; only names can be rebound.
        address = (scope.get("server") or ("",))[0]
        own = is_loopback(name) or name in self._own_names or (name != "" and name == address)
        return own or name in self._hosts or host in self._hosts


def own_host_names() -> set[str]:
    """The names of this computer, without asking a name server."""
    name = socket.gethostname().lower()
    return {name, name.partition(".")[0], f"{name.partition('.')[0]}.local"} - {""}


def is_same_host(origin: str, host: str) -> bool:
    """Whether an origin has the name and the port of a Host header, in any of both schemes."""
    try:
        page, server = urlsplit(origin.lower()), urlsplit(f"//{host}")
        default = DEFAULT_PORTS[page.scheme]
        return (page.hostname, page.port or default) == (server.hostname, server.port or default)
    except (KeyError, ValueError):  # another scheme, not a URL, not a port
        return False


def named_origins(hosts: Collection[str]) -> str:
    """A regular expression of the origins of these hosts: on any port, unless one is named."""
    names = [re.escape(host) + ("" if ":" in host else r"(:\d+)?") for host in hosts]
    return f"https?://({'|'.join(names)})" if names else r"(?!)"


def named_origins_only(hosts: Collection[str]) -> Callable[[Starlette], AbstractAsyncContextManager[None]]:
    """A lifespan that replaces Gradio's CORS middleware, which lets every site read the responses."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        names = [getattr(middleware.cls, "__name__", "") for middleware in app.user_middleware]
        app.user_middleware[names.index(GRADIO_CORS)] = Middleware(
            CORSMiddleware,
            allow_origin_regex=named_origins(hosts),
            allow_credentials=True,
            allow_methods=["*"],
            allow_headers=["*"],
        )
        app.middleware_stack = None  # built again for the first request
        yield

    return lifespan


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


class SignedLinks:
    """Signs the file names of images, and checks the query strings of links to them.

    A link is valid for LINK_LIFETIME without a login.
    """

    def __init__(self, secret: bytes, now: Callable[[], float] = time.time) -> None:
        self._secret = secret
        self._now = now

    def query(self, filename: str) -> str:
        """The query string of a link that ends in LINK_LIFETIME."""
        expires = str(int(self._now() + LINK_LIFETIME))
        return f"expires={expires}&signature={self._sign(filename, expires)}"

    def is_valid(self, filename: str, query: str) -> bool:
        """Whether a query string is that of an unexpired link to this image."""
        values = parse_qs(query)
        [expires], [signature] = values.get("expires", [""])[:1], values.get("signature", [""])[:1]
        if not (expires.isascii() and expires.isdecimal() and len(expires) < 20):
            return False
        right = hmac.compare_digest(signature.encode(), self._sign(filename, expires).encode())
        return right and self._now() < int(expires)

    def _sign(self, filename: str, expires: str) -> str:
        # The first word separates these signatures from those of visitor cookies.
        return hmac.new(self._secret, f"link {expires} {filename}".encode(), hashlib.sha256).hexdigest()


class ImageLoginMiddleware:
    """Requires a login, where there is one, for every route that serves images: 401 without.

    The APIs' links, which `links` signs, are valid without one for a while: they are shown by
    other programs than the one that was given them.
    """

    def __init__(self, app: ASGIApp, *, links: SignedLinks | None = None) -> None:
        self._app = app
        self._links = links

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if self._links is not None and scope["type"] == "http":
            scope["state"]["sign_link"] = self._links.query
        is_image = scope["type"] == "http" and scope["path"].startswith(IMAGE_ROUTES)
        if is_image and scope["state"]["owner"] is None and not self._is_signed(scope):
            app = PlainTextResponse(f"{MissingApiKey()}\n", 401)
        await app(scope, receive, send)

    def _is_signed(self, scope: Scope) -> bool:
        folder, _, filename = scope["path"].rpartition("/")
        if self._links is None or folder not in SIGNED_FOLDERS:
            return False
        return self._links.is_valid(filename, scope["query_string"].decode("latin-1"))
