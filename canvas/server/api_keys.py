"""Requires an API key from programs, where others can reach the server."""

from __future__ import annotations

import base64
import hmac
from contextlib import nullcontext, suppress

from anyio.to_thread import run_sync
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from canvas.errors import MissingApiKey
from canvas.history.api_keys import ApiKeyStore
from canvas.server.auth import temporary_session

# Routes for programs only. Gradio's functions share their routes with the page, so they check
# `api_allowed` themselves.
OPENAI_PREFIX, A1111_PREFIXES = "/v1/", ("/sdapi/", "/controlnet/")
API_PREFIXES = (OPENAI_PREFIX, *A1111_PREFIXES, "/metrics", "/gradio_api/mcp")


class ApiKeyMiddleware:
    """Sets `request.state.api_allowed`, and the owner if the request has a valid key.

    Runs after IdentityMiddleware. Without `required`, or with a login, no key is needed. With
    `login_required` a key also logs the request in to Gradio; `internal_token` does only
    that, for the server's requests to itself.
    """

    def __init__(
        self, app: ASGIApp, *, api_keys: ApiKeyStore, required: bool, login_required: bool, internal_token: str
    ) -> None:
        self._app = app
        self._api_keys = api_keys
        self._required = required
        self._login_required = login_required
        self._internal_token = internal_token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        key = key_from_headers(Headers(scope=scope).get("authorization", ""))
        owner = await run_sync(self._api_keys.get_owner, key) if key else None
        if owner is not None:
            state["owner"] = owner
        is_internal = hmac.compare_digest(key.encode(), self._internal_token.encode())
        is_logged_in = self._login_required and state.get("owner") is not None
        state["api_allowed"] = bool(owner or is_logged_in or not self._required)
        if scope["path"].startswith(API_PREFIXES) and not state["api_allowed"]:
            await _unauthorized(scope["path"])(scope, receive, send)
            return
        needs_session = self._login_required and (owner or is_internal)
        with temporary_session(scope, owner or "") if needs_session else nullcontext():
            await self._app(scope, receive, send)


def key_from_headers(authorization: str) -> str:
    """The key in an Authorization header: a bearer token, or the password of HTTP Basic."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        with suppress(ValueError):  # binascii.Error, UnicodeDecodeError, non-ASCII characters
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
    return ""


def _unauthorized(path: str) -> JSONResponse:
    """The error in the format of the API that the path belongs to."""
    error = MissingApiKey()
    if path.startswith(A1111_PREFIXES):
        return JSONResponse({"detail": str(error)}, error.http_status, {"WWW-Authenticate": "Basic"})
    kind = "invalid_request_error" if path.startswith(OPENAI_PREFIX) else "error"
    body = {"message": str(error), "type": kind, "param": None, "code": error.code}
    return JSONResponse({"error": body}, error.http_status, {"WWW-Authenticate": "Bearer"})
