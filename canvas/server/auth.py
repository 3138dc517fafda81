"""The login: password check, delays after failures, sessions that expire.

The only module that uses `tokens` and `cookie_id` of Gradio's app, where it keeps logins.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from canvas.server.rate_limits import client_network

if TYPE_CHECKING:
    from gradio import Blocks

HOUR, DAY = 3600.0, 24 * 3600.0  # seconds
MAX_NETWORKS = 10_000
LOGIN_HINT = "After three failed attempts there is a delay, which doubles each time."

Clock = Callable[[], float]  # seconds, monotonic


class Login:
    """One user and password; Gradio calls it with the credentials of a login."""

    def __init__(self, user: str, password: str, now: Clock = time.monotonic) -> None:
        self._user, self._password = _digest(user), _digest(password)
        self.throttle = LoginThrottle(now)
        self.sessions = Sessions(now)

    def __call__(self, user: str, password: str) -> bool:
        """Whether both are right, compared in constant time."""
        same_user = hmac.compare_digest(_digest(user), self._user)
        same_password = hmac.compare_digest(_digest(password), self._password)
        return same_user & same_password


class LoginThrottle:
    """Delays after failed logins from a network: 1 s after the third, then doubling."""

    FREE_ATTEMPTS = 3
    MAX_DELAY = 900.0  # seconds
    RESET_AFTER = DAY

    def __init__(self, now: Clock) -> None:
        self.now = now
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()  # number, last time

    def seconds_left(self, address: str) -> float:
        """Seconds until that address may try again."""
        failures, last = self._failures.get(client_network(address), (0, 0.0))
        if failures < self.FREE_ATTEMPTS:
            return 0.0
        delay = min(self.MAX_DELAY, 2.0 ** min(failures - self.FREE_ATTEMPTS, 30))
        return max(0.0, last + delay - self.now())

    def record_failure(self, address: str) -> None:
        network, now = client_network(address), self.now()
        failures, last = self._failures.pop(network, (0, now))
        if now - last > self.RESET_AFTER:
            failures = 0
        self._failures[network] = (failures + 1, now)
        if len(self._failures) > MAX_NETWORKS:
            self._failures.popitem(last=False)

    def reset(self, address: str) -> None:
        """Forget the failures after a successful login."""
        self._failures.pop(client_network(address), None)


class Sessions(MutableMapping[str, str]):
    """The logged in user by session token. A session ends at logout, IDLE or MAX_AGE."""

    IDLE = 12 * HOUR
    MAX_AGE = 7 * DAY

    def __init__(self, now: Clock) -> None:
        self.now = now
        self._by_token: dict[str, tuple[str, float, float]] = {}  # user, created, last used

    def __getitem__(self, token: str) -> str:
        user, created, used = self._by_token[token]
        now = self.now()
        if now - used > self.IDLE or now - created > self.MAX_AGE:
            self._by_token.pop(token, None)
            raise KeyError(token)
        self._by_token[token] = (user, created, now)
        return user

    def __setitem__(self, token: str, user: str) -> None:
        now = self.now()
        for expired in [known for known in list(self._by_token) if known not in self]:
            self._by_token.pop(expired, None)
        self._by_token[token] = (user, now, now)

    def __delitem__(self, token: str) -> None:
        del self._by_token[token]

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._by_token))

    def __len__(self) -> int:
        return len(self._by_token)


class LoginThrottleMiddleware:
    """Rejects logins from networks with failed attempts, before Gradio checks the password."""

    def __init__(self, app: ASGIApp, *, throttle: LoginThrottle) -> None:
        self._app = app
        self._throttle = throttle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        if not is_post or not scope["path"].rstrip("/").endswith("/login"):
            await self._app(scope, receive, send)
            return
        address = (scope.get("client") or ("",))[0]
        seconds = self._throttle.seconds_left(address)
        if seconds:
            await _too_many_attempts(scope, seconds)(scope, receive, send)
            return
        # Counted before the response, so that concurrent attempts count as well.
        self._throttle.record_failure(address)

        async def send_and_reset(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 200:
                self._throttle.reset(address)
            await send(message)

        await self._app(scope, receive, send_and_reset)


def _too_many_attempts(scope: Scope, seconds: float) -> JSONResponse:
    whole = math.ceil(seconds)
    # Gradio's page, which sends its origin, shows a failed login for status 400 only.
    status = 400 if "origin" in Headers(scope=scope) else 429
    detail = f"Too many failed logins from this address. Try again in {whole} s."
    return JSONResponse({"detail": detail}, status, {"Retry-After": str(whole)})


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
