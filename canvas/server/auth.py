"""The login: compared in constant time, slower after failures, with sessions that end."""

from __future__ import annotations

import hashlib
import hmac
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, MutableMapping
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse

from canvas.server.security import client_network

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOUR, DAY = 3600.0, 24 * 3600.0  # seconds
MAX_ADDRESSES = 10_000
HINT = "After three wrong tries the next one has to wait, longer each time."

Clock = Callable[[], float]


class Login:
    """One user and password; Gradio calls it with what a visitor typed.

    `sessions` takes the place of the dict in which Gradio would keep logins for ever. `now`
    is a clock that nobody can set.
    """

    def __init__(self, user: str, password: str, now: Clock = time.monotonic) -> None:
        self._user, self._password = _digest(user), _digest(password)
        self.now = now
        self.failures = LoginThrottle(self._seconds)
        self.sessions = Sessions(self._seconds)

    def __call__(self, user: str, password: str) -> bool:
        """Whether both are right; takes as long for a wrong user as for a wrong password."""
        same_user = hmac.compare_digest(_digest(user), self._user)
        same_password = hmac.compare_digest(_digest(password), self._password)
        return same_user & same_password

    def _seconds(self) -> float:
        return self.now()


class LoginThrottle:
    """How long an address has to wait after wrong passwords: 1 s after the third, then twice that.

    An address is an IPv4 address or an IPv6 network of 64 bits, which one person has.
    """

    FREE_ATTEMPTS = 3
    MAX_DELAY = 900.0  # seconds
    RESET_AFTER = DAY

    def __init__(self, now: Clock) -> None:
        self._now = now
        self._by_address: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def seconds_left(self, address: str) -> float:
        """Seconds until that address may try again."""
        times, last = self._by_address.get(client_network(address), (0, 0.0))
        if times < self.FREE_ATTEMPTS:
            return 0.0
        pause = min(self.MAX_DELAY, 2.0 ** min(times - self.FREE_ATTEMPTS, 30))
        return max(0.0, last + pause - self._now())

    def count(self, address: str) -> None:
        """One more failure."""
        network, now = client_network(address), self._now()
        times, last = self._by_address.pop(network, (0, now))
        if now - last > self.RESET_AFTER:
            times = 0
        self._by_address[network] = (times + 1, now)
        if len(self._by_address) > MAX_ADDRESSES:
            self._by_address.popitem(last=False)

    def forget(self, address: str) -> None:
        """The right password came from there."""
        self._by_address.pop(client_network(address), None)


class Sessions(MutableMapping[str, str]):
    """Who is logged in, by token: until logout, 12 hours without a request, or 7 days in all."""

    IDLE = 12 * HOUR
    LONGEST = 7 * DAY

    def __init__(self, now: Clock) -> None:
        self._now = now
        self._by_token: dict[str, tuple[str, float, float]] = {}  # user, begun, last used

    def __getitem__(self, token: str) -> str:
        user, begun, used = self._by_token[token]
        now = self._now()
        if now - used > self.IDLE or now - begun > self.LONGEST:
            self._by_token.pop(token, None)
            raise KeyError(token)
        self._by_token[token] = (user, begun, now)
        return user

    def __setitem__(self, token: str, user: str) -> None:
        now = self._now()
        for old in [one for one in list(self._by_token) if one not in self]:
            self._by_token.pop(old, None)
        self._by_token[token] = (user, now, now)

    def __delitem__(self, token: str) -> None:
        del self._by_token[token]

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._by_token))

    def __len__(self) -> int:
        return len(self._by_token)


class LoginMiddleware:
    """Makes an address wait that failed too often, before Gradio looks at the password."""

    def __init__(self, app: ASGIApp, *, failures: LoginThrottle) -> None:
        self._app = app
        self._failures = failures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request on its way in."""
        is_try = scope["type"] == "http" and scope["method"] == "POST"
        if not is_try or not scope["path"].rstrip("/").endswith("/login"):
            await self._app(scope, receive, send)
            return
        address = (scope.get("client") or ("",))[0]
        left = self._failures.seconds_left(address)
        if left:
            await _too_many_attempts(scope, left)(scope, receive, send)
            return
        # Counted before the answer: a hundred tries at once shall not all be the first.
        self._failures.count(address)

        async def send_and_note(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 200:
                self._failures.forget(address)
            await send(message)

        await self._app(scope, receive, send_and_note)


def current_user(scope: Scope) -> str | None:
    """Who has logged in to the Gradio app that serves this request."""
    app, cookies = scope["app"], cookie_parser(Headers(scope=scope).get("cookie", ""))
    for kind in ("access-token", "access-token-unsecure"):
        user: str | None = app.tokens.get(cookies.get(f"{kind}-{app.cookie_id}"))
        if user is not None:
            return user
    return None


def _digest(text: str) -> bytes:
    # Digests are of one length, so that the comparison tells nothing of it.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _too_many_attempts(scope: Scope, seconds: float) -> JSONResponse:
    whole = math.ceil(seconds)
    # Gradio's page (which names its origin) takes 400 for a wrong password, and shows nothing
    # for any other status.
    status = 400 if "origin" in Headers(scope=scope) else 429
    sentence = f"Too many wrong passwords from here. Try again in {whole} s."
    return JSONResponse({"detail": sentence}, status, {"Retry-After": str(whole)})
