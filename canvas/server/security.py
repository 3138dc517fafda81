"""What stands before every route: who may knock, which files go out, headers for the browser."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from anyio.to_thread import run_sync
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse

from canvas.validation import is_loopback

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Gradio's routes for files; without our check they hand out whatever lies in a static folder.
FILE = re.compile(r"/gradio_api/file[=/](.*)", re.DOTALL)
# Gradio fetches addresses that a visitor gives; nobody here needs it.
SSRF_ROUTES = re.compile(r"/gradio_api/(?:proxy=|file[=/]\s*https?:)", re.IGNORECASE)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # the address of a picture is what opens it
}
# As far as Gradio allows, which evaluates scripts and styles of its own. A script that got in
# could still send nothing away.
CSP = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'"
)
# Gradio shows in a Space whose it is.
HUB = "'self' data: blob: https://huggingface.co https://*.huggingface.co"
CSP_SPACE = f"; connect-src {HUB}; img-src {HUB}"
CSP_FRAME_ANCESTORS = "; frame-ancestors 'self' http://localhost:* http://127.0.0.1:*"
INVALID_HOST = (
    "This Magic Canvas answers only under the names of this machine. Open it as localhost, "
    "name yours in CANVAS_TRUSTED_HOSTS, or ask for a login with --auth.\n"
)
INVALID_ORIGIN = "Another site's page may not use this Magic Canvas.\n"


class SecurityMiddleware:
    """Refuses strange names and pages, and files that are no pictures of ours.

    `hosts` are the names under which the server may be asked for, None where any is good:
    with a login, or for strangers, a page that rebinds its name to this address wins nothing.
    `is_ours` tells whether a file in `outputs` is a kept picture.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Collection[str] | None,
        outputs: Path,
        is_stored_image: Callable[[Path], bool],
    ) -> None:
        self._app = app
        self._hosts = hosts
        self._outputs = outputs.resolve()
        self._is_ours = is_stored_image

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request or websocket on its way in."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                more = CSP_FRAME_ANCESTORS if self._hosts is not None else CSP_SPACE
                headers.setdefault("Content-Security-Policy", CSP + more)
            await send(message)

        _drop_cross_site_cookies(scope)
        refusal = self._check_host_and_origin(
            Headers(scope=scope)
        ) or await self._check_file_access(scope)
        await (refusal or self._app)(scope, receive, send_with_headers)

    def _check_host_and_origin(self, headers: Headers) -> PlainTextResponse | None:
        if self._hosts is None:
            return None
        if not self._is_known(f"//{headers.get('host', '')}"):
            return PlainTextResponse(INVALID_HOST, 421)
        origin = headers.get("origin")
        if origin is not None and not self._is_known(origin):
            return PlainTextResponse(INVALID_ORIGIN, 403)
        return None

    def _is_known(self, address: str) -> bool:
        try:
            name = (urlsplit(address).hostname or "").rstrip(".")
        except ValueError:
            return False
        return is_loopback(name) or name in (self._hosts or ())

    async def _check_file_access(self, scope: Scope) -> PlainTextResponse | None:
        path = scope["path"]
        asked = FILE.search(path)
        if SSRF_ROUTES.search(path) or (
            asked and not await run_sync(self._is_file_allowed, asked[1])
        ):
            return PlainTextResponse("There is no such file.\n", 404)
        return None

    def _is_file_allowed(self, asked: str) -> bool:
        try:
            named = Path(os.path.abspath(asked))
            path = named.resolve()
        except (OSError, ValueError, RuntimeError):  # NUL bytes, links in a circle
            return False
        # What is elsewhere is Gradio's to judge: its cache, and nothing more.
        if not path.is_relative_to(self._outputs):
            return True
        # A link to a picture has a name that may be guessed.
        return named.name == path.name and self._is_ours(path)


def _drop_cross_site_cookies(scope: Scope) -> None:
    """Make a stranger of what another site's page asks for in its visitor's browser.

    Gradio's login cookie goes along with such requests (`SameSite=None`, for frames), and
    Gradio lets their answers be read. Following a link is no such request.
    """
    headers = MutableHeaders(scope=scope)
    if headers.get("sec-fetch-site") not in ("cross-site", "same-site"):
        return
    follows_link = headers.get("sec-fetch-mode") == "navigate"
    if not (follows_link and scope.get("method") in ("GET", "HEAD")):
        del headers["cookie"]


def client_network(address: str) -> str:
    """What counts as one address: an IPv4 address, or 64 bits of an IPv6 one, as a person has."""
    try:
        known: Any = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:100]
    known = getattr(known, "ipv4_mapped", None) or known
    return str(ipaddress.ip_network((known, 32 if known.version == 4 else 64), strict=False))
