from __future__ import annotations

from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from canvas.server.identity import COOKIE, IdentityMiddleware, visitor_owner_id, visitor_token


def client(base_url: str = "http://testserver", **options: Any) -> TestClient:
    async def who(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(request.state.owner))

    middleware = [Middleware(IdentityMiddleware, **options)]
    app = Starlette(routes=[Route("/", who)], middleware=middleware)
    return TestClient(app, base_url=base_url)


def test_alone_at_home_there_is_one_owner_and_no_cookie() -> None:
    answer = client().get("/")
    assert answer.text == "local"
    assert "set-cookie" not in answer.headers


def test_a_visitor_stays_the_same_and_differs_from_the_next() -> None:
    first, second = client(public=True), client(public=True)
    name = first.get("/").text
    assert name.startswith("visitor-")
    assert first.get("/").text == name
    assert second.get("/").text != name


def test_the_owner_does_not_tell_the_secret() -> None:
    visitor = client(public=True)
    name = visitor.get("/").text
    secret = visitor.cookies[COOKIE]
    assert secret not in name
    assert visitor_owner_id(secret) == name


def test_the_cookie_is_out_of_reach_of_scripts() -> None:
    cookie = client(public=True).get("/").headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    framed = client("https://testserver", public=True).get("/").headers["set-cookie"]
    assert "Secure; SameSite=None; Partitioned" in framed


@pytest.mark.parametrize("forged", ["", "x", "local", "0" * 31, "G" * 32, '"; drop', "\x7f"])
def test_a_forged_cookie_is_replaced(forged: str) -> None:
    answer = client(public=True).get("/", headers={"cookie": f"{COOKIE}={forged}"})
    assert answer.text.startswith("visitor-")
    assert "set-cookie" in answer.headers
    assert visitor_token(f"{COOKIE}={forged}") is None


def test_a_login_is_the_owner_and_without_it_nobody_is() -> None:
    assert client(get_login=lambda scope: "ada", public=True).get("/").text == "ada"
    assert client(get_login=lambda scope: None, public=True).get("/").text == "None"
