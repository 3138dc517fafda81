"""Assigns an owner to every request: login, Hugging Face account, visitor cookie, or local."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from http.cookies import CookieError, SimpleCookie
from pathlib import Path

from anyio.to_thread import run_sync
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from canvas.errors import StorageError
from canvas.jobs.queue import Visitor
from canvas.request import LOCAL_OWNER
from canvas.server.rate_limits import network_of

COOKIE = "magic_canvas_visitor"
YEAR = 365 * 24 * 3600  # seconds
SECRET_BYTES = 32
_COOKIE_VALUE = re.compile(r"([0-9a-f]{32})(?:\.([0-9a-f]{64}))?")  # token and signature


class IdentityMiddleware:
    """Sets `request.state.owner`, the owner of the images and jobs of the request.

    With `get_login` that is the logged in user, or None before the login. With `visitors`, on a
    public server, it is the account that `get_hf_account` returns or else the Visitor of a signed
    cookie, and otherwise LOCAL_OWNER.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        visitors: VisitorTokens | None = None,
        get_login: Callable[[Scope], str | None] | None = None,
        get_hf_account: Callable[[Scope], str | None] | None = None,
    ) -> None:
        self._app = app
        self._visitors = visitors
        self._get_login = get_login
        self._get_hf_account = get_hf_account

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        if self._get_login is not None or self._visitors is None:
            state["owner"] = self._get_login(scope) if self._get_login else LOCAL_OWNER
            await self._app(scope, receive, send)
            return
        token, new_value = await self._visitors.identify(Headers(scope=scope).get("cookie", ""))
        account = self._get_hf_account(scope) if self._get_hf_account else None
        state["owner"] = account or Visitor(visitor_owner_id(token), network_of(scope))

        async def send_with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start" and new_value is not None:
                MutableHeaders(scope=message).append("set-cookie", _cookie(scope, new_value))
            await send(message)

        await self._app(scope, receive, send_with_cookie)


class VisitorTokens:
    """Issues the tokens of visitors, signed with `secret`, and reads them from cookies.

    A token without a valid signature counts only if `owns_data` says that its owner has images or
    jobs: an earlier version issued it, or the secret was lost. Its 128 random bits are as good as a
    password, and nobody can invent one that owns something.
    """

    def __init__(self, secret: bytes, owns_data: Callable[[str], bool]) -> None:
        self._secret = secret
        self._owns_data = owns_data

    def cookie_value(self, token: str) -> str:
        """The token with its signature."""
        return f"{token}.{hmac.new(self._secret, token.encode(), hashlib.sha256).hexdigest()}"

    async def identify(self, cookies: str) -> tuple[str, str | None]:
        """The token in a Cookie header or a new one, and the cookie to set, if any."""
        token, signature = read_cookie(cookies)
        if token and hmac.compare_digest(f"{token}.{signature}", self.cookie_value(token)):
            return token, None
        new_token = secrets.token_hex(16)
        if token:
            try:
                known = await run_sync(self._owns_data, visitor_owner_id(token))
            except StorageError:
                return new_token, None  # for this request only: the visitor must not lose the images
            new_token = token if known else new_token
        return new_token, self.cookie_value(new_token)


def load_secret(file: Path) -> bytes:
    """The secret in a file, which is created if it does not exist; raises StorageError."""
    try:
        if file.exists() and file.stat().st_size < SECRET_BYTES:  # not written by this program
            file.unlink(missing_ok=True)
        if not file.exists():
            _create_secret(file)
        with suppress(OSError):  # a file of somebody else
            file.chmod(0o600)
        return file.read_bytes()
    except OSError as error:
        raise StorageError(
            f"The file {str(file)!r} cannot be used ({error.strerror}). Check its permissions and those of its "
            "folder, or choose another folder with --data-dir."
        ) from error


def _create_secret(file: Path) -> None:
    """Create the file complete and only once, also if two servers share the folder."""
    number, name = tempfile.mkstemp(dir=file.parent, prefix=file.name)  # with mode 600
    temporary = Path(name)
    try:
        with os.fdopen(number, "wb") as opened:
            opened.write(secrets.token_bytes(SECRET_BYTES))
        try:
            file.hardlink_to(temporary)
        except FileExistsError:
            pass  # the other server was faster
        except OSError:  # a file system without hard links
            temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def read_cookie(cookies: str) -> tuple[str, str]:
    """Token and signature of the visitor in a Cookie header, not verified; "" for what is missing."""
    try:
        morsel = SimpleCookie(cookies).get(COOKIE)
    except CookieError:
        return "", ""
    match = _COOKIE_VALUE.fullmatch(morsel.value) if morsel else None
    return (match[1], match[2] or "") if match else ("", "")


def visitor_owner_id(token: str) -> str:
    """The owner of a visitor's images: a digest, so that the database does not hold the token."""
    return "visitor-" + hashlib.sha256(token.encode()).hexdigest()[:32]


def hugging_face_account(scope: Scope) -> str | None:
    """The Hugging Face account that is signed in to a Space, from Gradio's signed session."""
    oauth_info = scope.get("session", {}).get("oauth_info")
    if oauth_info is None or oauth_info.get("expires_at", 0) < time.time():
        return None
    return f"hf-{oauth_info['userinfo']['sub']}"  # the id; a user name can change


def _cookie(scope: Scope, value: str) -> str:
    cookie = f"{COOKIE}={value}; Path=/; Max-Age={YEAR}; HttpOnly"
    # Behind a proxy the header has the scheme; a client that forges it changes its own cookie.
    forwarded = Headers(scope=scope).get("x-forwarded-proto", "").partition(",")[0].strip()
    if (forwarded or scope.get("scheme")) in ("https", "wss"):
        # In a Space the page is in a frame of another site, where cookies need all three.
        return f"{cookie}; Secure; SameSite=None; Partitioned"
    return f"{cookie}; SameSite=Lax"
