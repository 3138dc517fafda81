"""The login: password check, delays after failures, sessions that expire; API keys for programs.

The only module that uses `tokens` and `cookie_id` of Gradio's app, where it keeps logins.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import math
import secrets
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple

from anyio.to_thread import run_sync
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from canvas.errors import MissingApiKey
from canvas.history.api_keys import ApiKeyStore
from canvas.server.rate_limits import network_of

if TYPE_CHECKING:
    from gradio import Blocks

HOUR, DAY = 3600.0, 24 * 3600.0  # seconds
YEAR = 365 * 24 * 3600  # seconds
MAX_FAILURES = 10_000  # accounts and addresses
DEVICE_COOKIE = "magic_canvas_device"
LOGIN_HINT = "After three failed attempts there is a delay, which doubles each time."
Clock = Callable[[], float]  # seconds, monotonic
_attempt: ContextVar[LoginAttempt] = ContextVar("_attempt")
AttemptKey = tuple[bytes, str]  # digest of the user, client
# Routes for programs only. Gradio's functions share their routes with the page, so they check
# `api_allowed` themselves.
OPENAI_PREFIX, A1111_PREFIXES = "/v1/", ("/sdapi/", "/controlnet/")
API_PREFIXES = (OPENAI_PREFIX, *A1111_PREFIXES, "/metrics", "/gradio_api/mcp")


class LoginAttempt(NamedTuple):
    """What a login depends on beside its credentials."""

    client: str  # "device:ID" of a browser that logged in before, otherwise "address:NETWORK"
    from_page: bool


UNKNOWN_CLIENT = LoginAttempt("", from_page=False)


class Login:
    """One user and password; Gradio calls it with the credentials of a login."""

    def __init__(self, user: str, password: str, now: Clock = time.monotonic) -> None:
        self._user, self._password = _digest(user), _digest(password)
        self.throttle = LoginThrottle(now)
        self.sessions = Sessions(now)

    def __call__(self, user: str, password: str) -> bool:
        """Whether both are right, compared in constant time; HTTPException during a delay."""
        attempt = _attempt.get(UNKNOWN_CLIENT)
        key = (_digest(user), attempt.client)
        seconds = self.throttle.start_attempt(key)
        if seconds:
            raise _too_many_attempts(seconds, attempt.from_page)
        same_user = hmac.compare_digest(_digest(user), self._user)
        same_password = hmac.compare_digest(_digest(password), self._password)
        if same_user & same_password:
            self.throttle.reset(key)
        return same_user & same_password


class LoginThrottle:
    """Delays after failed logins to an account from a client: 1 s after the third, then doubling."""

    FREE_ATTEMPTS = 3
    MAX_DELAY = 900.0  # seconds
    RESET_AFTER = DAY

    def __init__(self, now: Clock) -> None:
        self.now = now
        self._lock = threading.Lock()
        self._failures: dict[AttemptKey, tuple[int, float]] = {}  # number, last time

    def start_attempt(self, key: AttemptKey) -> float:
        """Seconds until the next attempt is allowed; 0 allows this one.

        It counts as failed until `reset`, so that concurrent attempts count as well.
        """
        with self._lock:
            now = self.now()
            failures, last = self._failures.get(key, (0, now))
            if now - last > self.RESET_AFTER:
                failures = 0
            if failures >= self.FREE_ATTEMPTS:
                delay = min(self.MAX_DELAY, 2.0 ** min(failures - self.FREE_ATTEMPTS, 30))
                if last + delay > now:
                    return last + delay - now
            if key not in self._failures and len(self._failures) >= MAX_FAILURES:
                # Not the oldest: invented names would push out the failures of the real one.
                del self._failures[min(self._failures, key=self._failures.__getitem__)]
            self._failures[key] = (failures + 1, now)
            return 0.0

    def reset(self, key: AttemptKey) -> None:
        """Forget the failures after a successful login."""
        with self._lock:
            self._failures.pop(key, None)


class Sessions(MutableMapping[str, str]):
    """The logged in user by session token. A session ends at logout, IDLE or MAX_AGE."""

    IDLE = 12 * HOUR
    MAX_AGE = 7 * DAY

    def __init__(self, now: Clock) -> None:
        self.now = now
        self._by_token: dict[str, tuple[str, float, float]] = {}  # user, created, last used

    def __getitem__(self, token: str) -> str:
        if self._is_expired(token):
            self._by_token.pop(token, None)
            raise KeyError(token)
        user, created, _ = self._by_token[token]
        self._by_token[token] = (user, created, self.now())
        return user

    def __setitem__(self, token: str, user: str) -> None:
        # Looking a token up with `in` would renew it.
        for expired in [known for known in list(self._by_token) if self._is_expired(known)]:
            self._by_token.pop(expired, None)
        now = self.now()
        self._by_token[token] = (user, now, now)

    def _is_expired(self, token: str) -> bool:
        """Raises KeyError for an unknown token."""
        _, created, used = self._by_token[token]
        now = self.now()
        return now - used > self.IDLE or now - created > self.MAX_AGE

    def __delitem__(self, token: str) -> None:
        del self._by_token[token]

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._by_token))

    def __len__(self) -> int:
        return len(self._by_token)


class LoginAttemptMiddleware:
    """Passes the client of a login to `Login`, and sets a signed cookie after a successful login.

    A browser with the cookie has a delay of its own: failures of others at the same address, such
    as a proxy that is not in CANVAS_TRUSTED_PROXIES, do not delay it (OWASP: device cookies).
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._secret = secrets.token_bytes(32)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        if not is_post or not scope["path"].rstrip("/").endswith("/login"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        device = self._known_device(headers)
        client = f"device:{device}" if device else f"address:{network_of(scope)}"
        _attempt.set(LoginAttempt(client, from_page="origin" in headers))

        async def send_with_device(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 200 and not device:
                new = secrets.token_hex(16)
                cookie = f"{DEVICE_COOKIE}={new}.{self._sign(new)}; Path=/; Max-Age={YEAR}; HttpOnly; SameSite=Lax"
                MutableHeaders(scope=message).append("set-cookie", cookie)
            await send(message)

        await self._app(scope, receive, send_with_device)

    def _known_device(self, headers: Headers) -> str:
        """The id in a device cookie of this server, or ""."""
        device, _, signature = cookie_parser(headers.get("cookie", "")).get(DEVICE_COOKIE, "").partition(".")
        return device if hmac.compare_digest(signature.encode(), self._sign(device).encode()) else ""

    def _sign(self, device: str) -> str:
        return hmac.new(self._secret, device.encode(), hashlib.sha256).hexdigest()


def _too_many_attempts(seconds: float, from_page: bool) -> HTTPException:
    whole = math.ceil(seconds)
    # Gradio's page, which sends its origin, shows a failed login for status 400 only.
    status = 400 if from_page else 429
    detail = f"Too many failed logins from this address. Try again in {whole} s."
    return HTTPException(status, detail, {"Retry-After": str(whole)})


def _digest(text: str) -> bytes:
    # Digests have the same length, so that the comparison does not reveal it.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def use_sessions(page: Blocks, sessions: Sessions) -> None:
    """Keep the logins of a launched page in `sessions` instead of a dict without expiry."""
    page.app.tokens = sessions  # type: ignore[assignment]  # annotated as dict by Gradio


def current_user(scope: Scope) -> str | None:
    """The user who is logged in to the Gradio app of this request."""
    app, cookies = scope["app"], cookie_parser(Headers(scope=scope).get("cookie", ""))
    for kind in ("access-token", "access-token-unsecure"):
        user: str | None = app.tokens.get(cookies.get(f"{kind}-{app.cookie_id}"))
        if user is not None:
            return user
    return None


@contextmanager
def temporary_session(scope: Scope, user: str) -> Iterator[None]:
    """Log the request in to Gradio until the block ends, so that no session outlives its key."""
    app, token = scope["app"], secrets.token_urlsafe(32)
    app.tokens[token] = user
    headers = MutableHeaders(scope=scope)
    cookie = f"access-token-unsecure-{app.cookie_id}={token}"
    sent = headers.get("cookie")
    headers["cookie"] = f"{sent}; {cookie}" if sent else cookie
    try:
        yield
    finally:
        app.tokens.pop(token, None)


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
