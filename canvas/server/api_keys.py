"""Who may call: keys for programs, wherever the server can be reached by others."""

from __future__ import annotations

import base64
import binascii
import hmac
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from anyio.to_thread import run_sync
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.responses import JSONResponse

from canvas.errors import MissingApiKey
from canvas.history.api_keys import ApiKeyStore

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from canvas.studio import Studio

# Where only programs call; the functions of Gradio's API ask for the key themselves,
# because they share their paths with the page.
OPENAI, SDAPI = "/v1/", "/sdapi/"
API_PREFIXES = (OPENAI, SDAPI, "/metrics", "/gradio_api/mcp")


def api_key_middleware(studio: Studio, inner_secret: str) -> Middleware:
    """Stands behind the identity middleware and puts the key's owner in the visitor's place."""
    return Middleware(
        ApiKeyMiddleware,
        keys=studio.api_keys,
        required=studio.settings.requires_api_key,
        login=studio.settings.auth is not None,
        inner_secret=inner_secret,
    )


class ApiKeyMiddleware:
    """Sets `request.state.may_program`, and the owner where the request brings a key.

    Who has logged in may call as well. `login`: Gradio asks for one, so a key has to open
    that door, too; `inner_secret` opens that one only, for the server's calls to itself.
    """

    def __init__(
        self, app: ASGIApp, *, keys: ApiKeyStore, required: bool, login: bool, inner_secret: str
    ) -> None:
        self._app = app
        self._keys = keys
        self._required = required
        self._login = login
        self._inner_secret = inner_secret

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request on its way in."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        secret = key_from_headers(Headers(scope=scope).get("authorization", ""))
        # In a thread: the database may be busy, and everybody's requests pass here.
        owner = await run_sync(self._keys.get_owner, secret) if secret else None
        if owner is not None:
            state["owner"] = owner
        is_inner = hmac.compare_digest(secret.encode(), self._inner_secret.encode())
        logged_in = self._login and state.get("owner") is not None
        state["may_program"] = bool(owner or logged_in or not self._required)
        if scope["path"].startswith(API_PREFIXES) and not state["may_program"]:
            await _refusal(scope["path"])(scope, receive, send)
            return
        with (
            _temporary_session(scope, owner or "")
            if self._login and (owner or is_inner)
            else nullcontext()
        ):
            await self._app(scope, receive, send)


def key_from_headers(authorization: str) -> str:
    """The key in an Authorization header: a bearer token, or the password of HTTP Basic."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return ""


def _refusal(path: str) -> JSONResponse:
    error = MissingApiKey()
    if path.startswith(SDAPI):
        return JSONResponse({"detail": str(error)}, 401, {"WWW-Authenticate": "Basic"})
    kind = "invalid_request_error" if path.startswith(OPENAI) else "error"
    body = {"message": str(error), "type": kind, "param": None, "code": error.code}
    return JSONResponse({"error": body}, 401, {"WWW-Authenticate": "Bearer"})


@contextmanager
def _temporary_session(scope: Scope, owner: str) -> Iterator[None]:
    """Let Gradio see a login for this one request, so that a withdrawn key leaves none behind."""
    app, token = scope["app"], secrets.token_urlsafe(32)
    app.tokens[token] = owner
    headers = MutableHeaders(scope=scope)
    cookie = f"access-token-unsecure-{app.cookie_id}={token}"
    known = headers.get("cookie")
    headers["cookie"] = f"{known}; {cookie}" if known else cookie
    try:
        yield
    finally:
        app.tokens.pop(token, None)
