"""The login over HTTP: delays after failures, and sessions that expire."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest
from starlette.exceptions import HTTPException

from canvas import Studio
from canvas.history.api_keys import ApiKeyStore
from canvas.server.auth import DAY, HOUR, Login, LoginAttemptMiddleware, LoginThrottle, Sessions
from canvas.server.rate_limits import client_network
from tests.app_server import serving
from tests.server.asgi import call, http_scope, response_of

RIGHT = {"username": "ann", "password": "pässword"}
WRONG = {"username": "ann", "password": "passwort"}
LOGIN_PATHS = ["/login", "/login/", "/%6cogin", "/login?x=1"]


class Clock:
    """Time that only the test advances."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


class Server:
    """A served studio with a login whose clock the test controls; its proxy is this machine."""

    def __init__(self, studio: Studio) -> None:
        self.studio, self.clock = studio, Clock()
        self.login: Login = studio.page.auth  # type: ignore[attr-defined]
        self.login.throttle.now = self.login.sessions.now = self.clock

    def client(self, address: str = "") -> httpx.Client:
        """A client, at the address of the X-Forwarded-For header if given."""
        headers = {"X-Forwarded-For": address} if address else {}
        return httpx.Client(base_url=self.studio.url, headers=headers, timeout=60)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("login")
    with serving(folder, auth=("ann", "pässword"), trusted_proxies=("127.0.0.1",)) as studio:
        yield Server(studio)


@pytest.fixture(scope="module")
def direct(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server without trusted proxies."""
    with serving(tmp_path_factory.mktemp("direct"), auth=("ann", "pässword")) as studio:
        yield Server(studio)


def log_in(client: httpx.Client, credentials: dict[str, str]) -> int:
    return client.post("/login", data=credentials).status_code


def test_failures_delay_the_next_attempt_longer_each_time(server: Server) -> None:
    with server.client("192.0.2.1") as client, server.client("192.0.2.2") as other:
        assert [log_in(client, WRONG) for _ in range(3)] == [400] * 3
        delays = []
        for _ in range(12):
            response = client.post("/login", data=RIGHT)
            assert response.status_code == 429, "even the right password is not checked"
            delays.append(int(response.headers["retry-after"]))
            assert f"{delays[-1]} s" in response.json()["detail"]
            server.clock.seconds += delays[-1] - 0.01
            assert log_in(client, RIGHT) == 429
            server.clock.seconds += 0.02
            assert log_in(client, WRONG) == 400
        assert delays == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900]
        assert log_in(other, RIGHT) == 200, "other addresses have no delay"
        server.clock.seconds += 900
        assert log_in(client, RIGHT) == 200
        assert [log_in(client, WRONG) for _ in range(3)] == [400] * 3, "a success resets"


@pytest.mark.parametrize("path", LOGIN_PATHS)
def test_failures_count_on_every_login_path(server: Server, path: str) -> None:
    statuses = []
    for number in range(1, 6):
        with server.client(f"2001:db8:1:{LOGIN_PATHS.index(path)}::{number}") as client:
            statuses.append(client.post(path, data=WRONG).status_code)
    assert statuses[3:] == [429, 429], "all addresses of an IPv6 network count as one"


def test_forwarded_addresses_are_believed_from_trusted_proxies_only(direct: Server) -> None:
    statuses = []
    for number in range(1, 6):
        with direct.client(f"192.0.2.{number}") as client:
            statuses.append(log_in(client, WRONG | {"username": "bob"}))
    assert statuses == [400, 400, 400, 429, 429], "invented addresses are the same client"


def test_clients_cannot_choose_their_address_behind_a_proxy(server: Server) -> None:
    """A proxy appends the address that it sees to the header of the client."""
    statuses = []
    for number in range(1, 6):
        with server.client(f"192.0.2.{100 + number}, 192.0.2.5") as client:
            statuses.append(log_in(client, WRONG))
    assert statuses == [400, 400, 400, 429, 429]


def test_a_delay_is_for_one_account(direct: Server) -> None:
    with direct.client() as client:
        for name in ("root", "admin"):
            assert [log_in(client, {"username": name, "password": "x"}) for _ in range(4)] == [400, 400, 400, 429]
        assert log_in(client, RIGHT) == 200


def test_failures_of_others_at_the_same_address_do_not_delay_a_known_browser(direct: Server) -> None:
    """An attacker behind the same proxy, which is not a trusted one, fails with the same account."""
    with direct.client() as owner, direct.client() as attacker, direct.client() as forger:
        assert log_in(owner, RIGHT) == 200
        device = owner.cookies["magic_canvas_device"]
        owner.get("/logout")
        assert not has_access(owner)
        assert [log_in(attacker, WRONG) for _ in range(4)] == [400, 400, 400, 429]
        assert log_in(owner, RIGHT) == 200
        assert has_access(owner)
        # The cookie of a known browser gives no free attempts, and cannot be invented.
        owner.get("/logout")
        assert [log_in(owner, WRONG) for _ in range(4)] == [400, 400, 400, 429]
        for forged in (device[:-1] + ("0" if device[-1] != "0" else "1"), "." + "0" * 64, "x", device.split(".")[0]):
            forger.cookies.set("magic_canvas_device", forged)
            assert log_in(forger, RIGHT) == 429
            forger.cookies.clear()
        direct.clock.seconds += DAY


def test_concurrent_attempts_are_counted(server: Server) -> None:
    with server.client("192.0.2.3") as client, ThreadPoolExecutor(20) as pool:
        statuses = list(pool.map(lambda _: log_in(client, WRONG), range(100)))
    assert statuses.count(400) == 3
    assert statuses.count(429) == 97


def test_the_page_shows_the_delay(server: Server) -> None:
    with server.client("192.0.2.4") as client:
        client.headers["Origin"] = server.studio.url
        responses = [client.post("/login", data=WRONG) for _ in range(4)]
        assert [response.status_code for response in responses] == [400] * 4
        assert "Try again in 1 s" in responses[3].json()["detail"]
        assert "a delay" in client.get("/config").json()["detail"]["auth_message"]


def has_access(client: httpx.Client) -> bool:
    """Whether the page's configuration, the images and the API are accessible: all or none."""
    results = {
        client.get("/config").status_code,
        client.get("/pictures/x.png").status_code == 404,
        client.post("/gradio_api/call/models", json={"data": []}).status_code,
    }
    assert results in ({200, True}, {401, False}), results
    return results == {200, True}


@contextmanager
def logged_in(server: Server) -> Iterator[httpx.Client]:
    with server.client() as client:
        assert not has_access(client)
        assert log_in(client, RIGHT) == 200
        assert has_access(client)
        yield client


def test_a_session_expires_12_hours_after_its_last_request(server: Server) -> None:
    with logged_in(server) as client:
        server.clock.seconds += 12 * HOUR - 1
        assert has_access(client)
        server.clock.seconds += 12 * HOUR - 1
        assert has_access(client)
        server.clock.seconds += 12 * HOUR + 1
        assert not has_access(client)
        assert not has_access(client), "the failed request did not renew it"
        assert client.get("/gradio_api/user").json() is None


def test_a_session_expires_after_7_days(server: Server) -> None:
    with logged_in(server) as client:
        for _ in range(7 * 4):
            server.clock.seconds += 6 * HOUR
            assert has_access(client)
        server.clock.seconds += 60
        assert not has_access(client)


def test_logout_ends_all_sessions_of_the_user(server: Server) -> None:
    with logged_in(server) as first, logged_in(server) as second:
        stolen = dict(first.cookies)
        first.get("/logout")
        assert not has_access(first)
        assert not has_access(second)
        with server.client() as thief:
            thief.cookies.update(stolen)
            assert not has_access(thief)
    assert len(server.login.sessions) == 0


def test_an_api_key_leaves_no_session(server: Server) -> None:
    api_keys = ApiKeyStore(server.studio.database)
    with server.client() as client:
        client.headers["Authorization"] = f"Bearer {api_keys.create('robot')}"
        assert has_access(client)
        api_keys.revoke("robot")
        assert not has_access(client)
    assert len(server.login.sessions) == 0


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_requests_of_other_sites_have_no_login(server: Server, site: str) -> None:
    fetch = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "cors", "Origin": "https://evil.example"}
    navigation = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate"}
    call = {"url": "/gradio_api/call/models", "json": {"data": []}}
    with logged_in(server) as client:
        assert client.get("/config", headers=fetch).status_code == 401
        assert client.post(**call, headers=fetch).status_code == 401
        assert client.post(**call, headers=navigation).status_code == 401, "a form"
        assert client.get("/config", headers=navigation).status_code == 200, "a link"


def test_user_and_password_have_to_be_right() -> None:
    login = Login("ann", "secret")
    assert login("ann", "secret")
    for user, password in [("ann", ""), ("", "secret"), ("Ann", "secret"), ("ann", "secret\ud800")]:
        assert not login(user, password)


def test_programs_are_told_to_wait_with_429() -> None:
    login = Login("ann", "secret", Clock())
    assert [login("ann", "") for _ in range(3)] == [False] * 3
    with pytest.raises(HTTPException) as error:
        login("ann", "secret")
    assert (error.value.status_code, error.value.headers) == (429, {"Retry-After": "1"})


def test_an_attempt_at_the_end_of_a_delay_counts() -> None:
    clock = Clock()
    throttle = LoginThrottle(clock)
    key = (b"ann", "address:192.0.2.1/32")
    assert [throttle.start_attempt(key) for _ in range(4)] == [0, 0, 0, 1]
    clock.seconds += 1
    assert [throttle.start_attempt(key) for _ in range(2)] == [0, 2]
    clock.seconds += DAY
    assert [throttle.start_attempt(key) for _ in range(2)] == [0, 4], "failures count for a whole day"


@pytest.mark.parametrize(
    ("method", "path", "status", "known"),
    [
        ("POST", "/login", 200, True),
        ("POST", "/canvas/login/", 200, True),
        ("POST", "/login", 400, False),
        ("GET", "/login", 200, False),
        ("POST", "/logout", 200, False),
    ],
)
def test_a_browser_is_known_for_a_year_after_a_login(method: str, path: str, status: int, known: bool) -> None:
    start, *body = call(LoginAttemptMiddleware(response_of(b"", status=status)), http_scope(path, method))
    cookies = [value.decode() for name, value in start["headers"] if name == b"set-cookie"]
    assert len(body) == 1
    assert len(cookies) == known
    assert all("; Max-Age=31536000; HttpOnly; SameSite=Lax" in cookie for cookie in cookies)


def test_failures_reset_after_a_day_and_are_limited_in_number() -> None:
    clock = Clock()
    throttle = LoginThrottle(clock)
    key = (b"ann", "address:192.0.2.1/32")
    for _ in range(3):
        assert throttle.start_attempt(key) == 0
    assert throttle.start_attempt(key) == 1
    clock.seconds += DAY + 1
    assert [throttle.start_attempt(key) for _ in range(4)] == [0, 0, 0, 1]
    for number in range(10_100):
        throttle.start_attempt((str(number).encode(), "address:192.0.2.1/32"))
    assert len(throttle._failures) == 10_000
    assert throttle.start_attempt(key) == 1, "invented accounts do not reset the delay of a real one"


def test_expired_sessions_are_removed() -> None:
    clock = Clock()
    sessions = Sessions(clock)
    for number in range(10):
        sessions[str(number)] = "ann"
    clock.seconds += 13 * HOUR
    sessions["new"] = "ann"
    assert list(sessions) == ["new"]


def test_a_new_session_does_not_renew_the_others() -> None:
    clock = Clock()
    sessions = Sessions(clock)
    sessions["idle"] = "ann"
    for hour in range(13):
        sessions[f"new {hour}"] = "ann"
        clock.seconds += HOUR
    assert "idle" not in sessions


def test_a_session_is_valid_to_the_end_of_its_time() -> None:
    clock = Clock()
    sessions = Sessions(clock)
    sessions["known"] = "ann"
    for _ in range(14):
        clock.seconds += 12 * HOUR
        assert sessions["known"] == "ann"
    clock.seconds += 1
    with pytest.raises(KeyError):
        sessions["known"]


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1/32"),
        ("::ffff:192.0.2.1", "192.0.2.1/32"),
        ("2001:db8::1", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("testclient", "testclient"),
    ],
)
def test_client_network(address: str, network: str) -> None:
    assert client_network(address) == network
