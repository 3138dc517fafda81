"""Assigns an owner to every request: login, Hugging Face account, visitor cookie, or local."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from canvas.request import LOCAL_OWNER

COOKIE = "magic_canvas_visitor"
YEAR = 365 * 24 * 3600  # seconds
_TOKEN = re.compile(r"[0-9a-f]{32}")


class IdentityMiddleware:
    """Sets `request.state.owner`, the owner of the images and jobs of the request.

    With `get_login` that is the logged in user, or None before the login. On a public server
    it is the account that `get_hf_account` returns or else the visitor of a secret cookie,
    and otherwise LOCAL_OWNER.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        public: bool = False,
        get_login: Callable[[Scope], str | None] | None = None,
        get_hf_account: Callable[[Scope], str | None] | None = None,
    ) -> None:
        self._app = app
        self._public = public
        self._get_login = get_login
        self._get_hf_account = get_hf_account

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        if self._get_login is not None or not self._public:
            state["owner"] = self._get_login(scope) if self._get_login else LOCAL_OWNER
            await self._app(scope, receive, send)
            return
        known = visitor_token(Headers(scope=scope).get("cookie", ""))
        token = known or secrets.token_hex(16)
        account = self._get_hf_account(scope) if self._get_hf_account else None
        state["owner"] = account or visitor_owner_id(token)

        async def send_with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start" and known is None:
                MutableHeaders(scope=message).append("set-cookie", _cookie(scope, token))
            await send(message)

        await self._app(scope, receive, send_with_cookie)


def visitor_token(cookies: str) -> str | None:
    """The visitor's token from a Cookie header; None if there is no valid one."""
    try:
        morsel = SimpleCookie(cookies).get(COOKIE)
    except CookieError:
        return None
    return morsel.value if morsel and _TOKEN.fullmatch(morsel.value) else None


def visitor_owner_id(token: str) -> str:
    """The owner of a visitor's images: a digest, so that the database does not hold the token."""
    return "visitor-" + hashlib.sha256(token.encode()).hexdigest()[:32]


def hugging_face_account(scope: Scope) -> str | None:
    """The Hugging Face account that is signed in to a Space, from Gradio's signed session."""
    oauth_info = scope.get("session", {}).get("oauth_info")
    if oauth_info is None or oauth_info.get("expires_at", 0) < time.time():
        return None
    return f"hf-{oauth_info['userinfo']['sub']}"  # the id; a user name can change


def _cookie(scope: Scope, token: str) -> str:
    cookie = f"{COOKIE}={token}; Path=/; Max-Age={YEAR}; HttpOnly"
    # Behind a proxy the header has the scheme; a client that forges it changes its own cookie.
    forwarded = Headers(scope=scope).get("x-forwarded-proto", "").partition(",")[0].strip()
    if (forwarded or scope.get("scheme")) in ("https", "wss"):
        # In a Space the page is in a frame of another site, where cookies need all three.
        return f"{cookie}; Secure; SameSite=None; Partitioned"
    return f"{cookie}; SameSite=Lax"
