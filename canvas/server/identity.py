"""Who is asking: every request gets an owner before any front end sees it."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders

from canvas.request import LOCAL_OWNER

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "magic_canvas_visitor"
YEAR = 365 * 24 * 3600  # seconds
_SECRET = re.compile(r"[0-9a-f]{32}")


class IdentityMiddleware:
    """Sets `request.state.owner`, the name under which pictures and jobs are kept.

    `get_login` is given where the server asks for a login and names who is logged in, or
    None (then the owner is None, too, and nothing private may be answered). On a public
    server without login the account that `get_hf_account` names is the owner, else each
    visitor's secret cookie; otherwise the one person at this machine.
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
        self._login_of = get_login
        self._account_of = get_hf_account

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request or websocket on its way in."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        if self._login_of is not None or not self._public:
            state["owner"] = self._login_of(scope) if self._login_of else LOCAL_OWNER
            await self._app(scope, receive, send)
            return
        known = visitor_token(Headers(scope=scope).get("cookie", ""))
        secret = known or secrets.token_hex(16)
        account = self._account_of(scope) if self._account_of else None
        state["owner"] = account or visitor_owner_id(secret)

        async def send_with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start" and known is None:
                MutableHeaders(scope=message).append("set-cookie", _cookie(scope, secret))
            await send(message)

        await self._app(scope, receive, send_with_cookie)


def visitor_token(cookies: str) -> str | None:
    """The visitor's secret from a Cookie header, or None when there is no valid one."""
    try:
        morsel = SimpleCookie(cookies).get(COOKIE)
    except CookieError:
        return None
    return morsel.value if morsel and _SECRET.fullmatch(morsel.value) else None


def visitor_owner_id(secret: str) -> str:
    """The owner recorded for a visitor; a digest, so that the database tells no secret."""
    return "visitor-" + hashlib.sha256(secret.encode()).hexdigest()[:32]


def _cookie(scope: Scope, secret: str) -> str:
    cookie = f"{COOKIE}={secret}; Path=/; Max-Age={YEAR}; HttpOnly"
    # Behind a proxy the scheme is the proxy's; who lies about it harms their own cookie only.
    forwarded = Headers(scope=scope).get("x-forwarded-proto", "").partition(",")[0].strip()
    if (forwarded or scope.get("scheme")) in ("https", "wss"):
        # A Space lives in a frame of another site: there a cookie needs all three.
        return f"{cookie}; Secure; SameSite=None; Partitioned"
    return f"{cookie}; SameSite=Lax"
