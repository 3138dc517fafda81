"""The login over real HTTP: failures make it wait, sessions end."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from canvas import Studio
from canvas.history.api_keys import ApiKeyStore
from canvas.server.auth import DAY, HOUR, Login, LoginThrottle, Sessions
from canvas.server.launch import launch
from canvas.server.security import client_network
from canvas.settings import Settings

RIGHT = {"username": "ann", "password": "pässword"}
WRONG = {"username": "ann", "password": "passwort"}


class Clock:
    """Time that only the test lets pass."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


class Place:
    """A served studio behind a login whose clock the test holds."""

    def __init__(self, studio: Studio, page: Any) -> None:
        self.studio, self.page = studio, page
        self.login: Login = page.auth
        self.login.now = self.clock = Clock()

    def visit(self, address: str = "") -> httpx.Client:
        """A visitor, from an address that a proxy on this machine tells where one is given."""
        headers = {"X-Forwarded-For": address} if address else {}
        return httpx.Client(base_url=self.page.local_url, headers=headers, timeout=60)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("login")
    settings = Settings(
        data_dir=folder,
        cache_dir=tmp_path_factory.getbasetemp() / "cache",
        port=0,
        device="cpu",
        dtype="float32",
        auth=("ann", "pässword"),
    )
    with Studio(settings) as studio:
        page = launch(studio, block=False)
        gc.collect()  # Gradio leaves event loops open; see tests/api/conftest.py
        yield Place(studio, page)
        page.close()
    gc.collect()


def try_(visitor: httpx.Client, credentials: dict[str, str]) -> int:
    return visitor.post("/login", data=credentials).status_code


def test_failures_make_the_next_try_wait_longer_each_time(place: Place) -> None:
    with place.visit("192.0.2.1") as visitor, place.visit("192.0.2.2") as other:
        assert [try_(visitor, WRONG) for _ in range(3)] == [400] * 3
        waits = []
        for _ in range(12):
            refused = visitor.post("/login", data=RIGHT)
            assert refused.status_code == 429, "even the right one is not looked at"
            waits.append(int(refused.headers["retry-after"]))
            assert f"{waits[-1]} s" in refused.json()["detail"]
            place.clock.seconds += waits[-1] - 0.01
            assert try_(visitor, RIGHT) == 429
            place.clock.seconds += 0.02
            assert try_(visitor, WRONG) == 400
        assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900]
        assert try_(other, RIGHT) == 200, "nobody else has to wait"
        place.clock.seconds += 900
        assert try_(visitor, RIGHT) == 200
        assert [try_(visitor, WRONG) for _ in range(3)] == [400] * 3, "all is forgiven"


WAYS = ["/login", "/login/", "/%6cogin", "/login?x=1"]


@pytest.mark.parametrize("path", WAYS)
def test_every_way_to_the_login_counts(place: Place, path: str) -> None:
    answers = []
    for number in range(1, 6):
        with place.visit(f"2001:db8:1:{WAYS.index(path)}::{number}") as visitor:
            answers.append(visitor.post(path, data=WRONG).status_code)
    assert answers[3:] == [429, 429], "one person has all addresses of an IPv6 network"


def test_a_hundred_tries_at_once_are_not_all_the_first(place: Place) -> None:
    with place.visit("192.0.2.3") as visitor, ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: try_(visitor, WRONG), range(100)))
    assert answers.count(400) == 3
    assert answers.count(429) == 97


def test_the_page_hears_of_it_as_of_a_wrong_password(place: Place) -> None:
    with place.visit("192.0.2.4") as visitor:
        visitor.headers["Origin"] = place.page.local_url.rstrip("/")
        answers = [visitor.post("/login", data=WRONG) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [400] * 4
        assert "Try again in 1 s" in answers[3].json()["detail"]
        assert "has to wait" in visitor.get("/config").json()["detail"]["auth_message"]


def may_look(visitor: httpx.Client) -> bool:
    """Whether the page's configuration, the pictures and a function of the API are answered."""
    answers = {
        visitor.get("/config").status_code,
        visitor.get("/pictures/x.png").status_code == 404,
        visitor.post("/gradio_api/call/models", json={"data": []}).status_code,
    }
    assert answers in ({200, True}, {401, False}), answers
    return answers == {200, True}


@contextmanager
def logged_in(place: Place) -> Iterator[httpx.Client]:
    with place.visit() as visitor:
        assert not may_look(visitor)
        assert try_(visitor, RIGHT) == 200
        assert may_look(visitor)
        yield visitor


def test_a_session_ends_12_hours_after_its_last_request(place: Place) -> None:
    with logged_in(place) as visitor:
        place.clock.seconds += 12 * HOUR - 1
        assert may_look(visitor)
        place.clock.seconds += 12 * HOUR - 1
        assert may_look(visitor)
        place.clock.seconds += 12 * HOUR + 1
        assert not may_look(visitor)
        assert not may_look(visitor), "it does not come back"
        assert visitor.get("/gradio_api/user").json() is None


def test_a_session_ends_after_7_days_in_any_case(place: Place) -> None:
    with logged_in(place) as visitor:
        for _ in range(7 * 4):
            place.clock.seconds += 6 * HOUR
            assert may_look(visitor)
        place.clock.seconds += 60
        assert not may_look(visitor)


def test_logging_out_ends_all_sessions_of_the_user(place: Place) -> None:
    with logged_in(place) as one, logged_in(place) as two:
        stolen = dict(one.cookies)
        one.get("/logout")
        assert not may_look(one)
        assert not may_look(two)
        with place.visit() as thief:
            thief.cookies.update(stolen)
            assert not may_look(thief)
    assert len(place.login.sessions) == 0


def test_a_key_leaves_no_session_behind(place: Place) -> None:
    keys = ApiKeyStore(place.studio.database)
    with place.visit() as program:
        program.headers["Authorization"] = f"Bearer {keys.create('robot')}"
        assert may_look(program)
        keys.revoke("robot")
        assert not may_look(program)
    assert len(place.login.sessions) == 0


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_another_sites_page_comes_without_the_login(place: Place, site: str) -> None:
    from_there = {
        "Sec-Fetch-Site": site,
        "Sec-Fetch-Mode": "cors",
        "Origin": "https://evil.example",
    }
    with logged_in(place) as visitor:
        assert visitor.get("/config", headers=from_there).status_code == 401
        call = visitor.post("/gradio_api/call/models", json={"data": []}, headers=from_there)
        assert call.status_code == 401
        form = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate"}
        sent = visitor.post("/gradio_api/call/models", json={"data": []}, headers=form)
        assert sent.status_code == 401
        assert visitor.get("/config", headers=form).status_code == 200, "a link was followed"


def test_both_words_have_to_be_right() -> None:
    login = Login("ann", "secret")
    assert login("ann", "secret")
    for user, password in [("ann", ""), ("", "secret"), ("Ann", "secret"), ("ann", "secret\ud800")]:
        assert not login(user, password)


def test_failures_are_forgotten_after_a_day_and_take_little_room() -> None:
    clock = Clock()
    failures = LoginThrottle(clock)
    for _ in range(2):
        failures.count("192.0.2.1")
    clock.seconds += DAY + 1
    failures.count("192.0.2.1")
    assert failures.seconds_left("192.0.2.1") == 0
    for number in range(20_000):
        failures.count(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(failures._by_address) == 10_000


def test_sessions_that_ended_are_swept() -> None:
    clock = Clock()
    sessions = Sessions(clock)
    for number in range(10):
        sessions[str(number)] = "ann"
    clock.seconds += 13 * HOUR
    sessions["new"] = "ann"
    assert list(sessions) == ["new"]


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
def test_what_counts_as_one_address(address: str, network: str) -> None:
    assert client_network(address) == network
