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


def client_of(base_url: str = "http://testserver", **options: Any) -> TestClient:
    async def endpoint(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(request.state.owner))

    middleware = [Middleware(IdentityMiddleware, **options)]
    app = Starlette(routes=[Route("/", endpoint)], middleware=middleware)
    return TestClient(app, base_url=base_url)


def test_a_local_server_has_one_owner_and_no_cookie() -> None:
    response = client_of().get("/")
    assert response.text == "local"
    assert "set-cookie" not in response.headers


def test_a_visitor_keeps_the_owner_and_differs_from_others() -> None:
    first, second = client_of(public=True), client_of(public=True)
    owner = first.get("/").text
    assert owner.startswith("visitor-")
    assert first.get("/").text == owner
    assert second.get("/").text != owner


def test_the_owner_does_not_reveal_the_token() -> None:
    client = client_of(public=True)
    owner = client.get("/").text
    token = client.cookies[COOKIE]
    assert token not in owner
    assert visitor_owner_id(token) == owner


def test_cookie_attributes() -> None:
    cookie = client_of(public=True).get("/").headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    cookie = client_of("https://testserver", public=True).get("/").headers["set-cookie"]
    assert "Secure; SameSite=None; Partitioned" in cookie


@pytest.mark.parametrize("value", ["", "x", "local", "0" * 31, "G" * 32, '"; drop', "\x7f"])
def test_an_invalid_cookie_is_replaced(value: str) -> None:
    response = client_of(public=True).get("/", headers={"cookie": f"{COOKIE}={value}"})
    assert response.text.startswith("visitor-")
    assert "set-cookie" in response.headers
    assert visitor_token(f"{COOKIE}={value}") is None


def test_the_owner_is_the_logged_in_user_or_none() -> None:
    assert client_of(get_login=lambda scope: "ada", public=True).get("/").text == "ada"
    assert client_of(get_login=lambda scope: None, public=True).get("/").text == "None"
