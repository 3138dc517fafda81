from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from canvas import GenerationRequest, Studio
from canvas.errors import StorageError
from canvas.jobs.queue import Visitor
from canvas.server import identity
from canvas.server.identity import COOKIE, IdentityMiddleware, VisitorTokens, load_secret, read_cookie, visitor_owner_id

SECRET = b"a secret of a test, 32 bytes or more"
OLD_TOKEN = "0123456789abcdef" * 2


def owns_nothing(owner: str) -> bool:
    return False


def client_of(
    base_url: str = "http://testserver",
    *,
    public: bool = False,
    address: str = "203.0.113.7",
    owns_data: Callable[[str], bool] = owns_nothing,
    secret: bytes = SECRET,
    **options: Any,
) -> TestClient:
    """A client of an app that answers with the owner, and the network of a visitor."""

    async def endpoint(request: Request) -> PlainTextResponse:
        owner = request.state.owner
        network = {"network": owner.network} if isinstance(owner, Visitor) else {}
        return PlainTextResponse(str(owner), headers=network)

    visitors = VisitorTokens(secret, owns_data) if public else None
    middleware = [Middleware(IdentityMiddleware, visitors=visitors, **options)]
    app = Starlette(routes=[Route("/", endpoint)], middleware=middleware)
    return TestClient(app, base_url=base_url, client=(address, 50000))


def get_with_cookie(value: str, **options: Any) -> tuple[str, str]:
    """The owner of a request with this visitor cookie, and the value of the cookie in the response, or ""."""
    response = client_of(public=True, **options).get("/", headers={"cookie": f"{COOKIE}={value}"})
    return response.text, response.cookies.get(COOKIE, "")


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
    token, signature = read_cookie(f"{COOKIE}={client.cookies[COOKIE]}")
    assert len(signature) == 64
    assert token not in owner
    assert visitor_owner_id(token) == owner


def test_the_owner_of_a_token_stays_the_same_in_later_versions() -> None:
    assert visitor_owner_id(OLD_TOKEN) == "visitor-3eb1bd439947eb762998e566ccc2e099"


def test_cookie_attributes() -> None:
    cookie = client_of(public=True).get("/").headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert "Secure" not in cookie
    assert "Max-Age=31536000;" in cookie, "a year"
    cookie = client_of("https://testserver", public=True).get("/").headers["set-cookie"]
    assert "Secure; SameSite=None; Partitioned" in cookie


@pytest.mark.parametrize(("forwarded", "secure"), [("https", True), ("https, http", True), ("http, https", False)])
def test_a_cookie_is_secure_if_the_first_proxy_has_https(forwarded: str, secure: bool) -> None:
    response = client_of(public=True).get("/", headers={"x-forwarded-proto": forwarded})
    assert ("Secure" in response.headers["set-cookie"]) is secure


def test_the_start_and_the_end_of_the_app_pass() -> None:
    with client_of(public=True) as client:
        assert client.get("/").status_code == 200


@pytest.mark.parametrize(
    ("session", "account"),
    [
        ({}, None),
        ({"oauth_info": None}, None),
        ({"oauth_info": {"userinfo": {"sub": "7"}}}, None),
        ({"oauth_info": {"userinfo": {"sub": "7"}, "expires_at": 999}}, None),
        ({"oauth_info": {"userinfo": {"sub": "7"}, "expires_at": 1000}}, "hf-7"),
        ({"oauth_info": {"userinfo": {"sub": "7"}, "expires_at": 2000}}, "hf-7"),
    ],
)
def test_a_hugging_face_account_counts_until_it_expires(
    monkeypatch: pytest.MonkeyPatch, session: dict[str, Any], account: str | None
) -> None:
    monkeypatch.setattr(identity, "time", SimpleNamespace(time=lambda: 1000))
    assert identity.hugging_face_account({"session": session}) == account
    assert identity.hugging_face_account({}) is None


UNSIGNED = OLD_TOKEN
FORGED = f"{OLD_TOKEN}.{'0' * 64}"
OF_ANOTHER_SERVER = VisitorTokens(b"another secret" * 3, owns_nothing).cookie_value(OLD_TOKEN)
INVALID = ["", "x", "local", "0" * 31, "G" * 32, '"; drop', "\x7f", UNSIGNED, FORGED, OF_ANOTHER_SERVER]


@pytest.mark.parametrize("value", INVALID)
def test_a_cookie_that_the_server_did_not_issue_is_replaced(value: str) -> None:
    owner, new_value = get_with_cookie(value)
    token, _ = read_cookie(f"{COOKIE}={new_value}")
    assert owner == visitor_owner_id(token)
    assert token != OLD_TOKEN
    assert get_with_cookie(new_value) == (owner, ""), "the new one is valid"


@pytest.mark.parametrize("value", [UNSIGNED, FORGED, OF_ANOTHER_SERVER])
def test_an_old_cookie_that_owns_images_is_signed(value: str) -> None:
    owner = visitor_owner_id(OLD_TOKEN)
    answer, new_value = get_with_cookie(value, owns_data=lambda asked: asked == owner)
    assert answer == owner
    assert get_with_cookie(new_value) == (owner, "")


def test_an_old_cookie_is_kept_while_the_database_cannot_be_read() -> None:
    def fail(owner: str) -> bool:
        raise StorageError("The database is locked.")

    owner, new_value = get_with_cookie(UNSIGNED, owns_data=fail)
    assert owner != visitor_owner_id(OLD_TOKEN)
    assert new_value == "", "the browser keeps its cookie"


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("203.0.113.7", "203.0.113.7/32"),
        ("2001:db8:1:2:aaaa::1", "2001:db8:1:2::/64"),
        ("::ffff:203.0.113.7", "203.0.113.7/32"),
    ],
)
def test_a_visitor_has_the_network_of_the_address(address: str, network: str) -> None:
    assert client_of(public=True, address=address).get("/").headers["network"] == network


def test_accounts_have_no_network() -> None:
    client = client_of(public=True, get_hf_account=lambda scope: "hf-1")
    assert "network" not in client.get("/").headers


def test_the_secret_is_created_once_and_private(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    with ThreadPoolExecutor(8) as pool:  # several servers of one folder
        secrets = set(pool.map(load_secret, [file] * 16))
    assert secrets == {file.read_bytes()}
    assert len(file.read_bytes()) == 32
    assert list(tmp_path.iterdir()) == [file]
    if sys.platform != "win32":
        file.chmod(0o644)
        load_secret(file)
        assert file.stat().st_mode & 0o777 == 0o600


def test_a_secret_is_created_where_there_are_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", fail)
    assert len(load_secret(tmp_path / "secret")) == 32
    assert list(tmp_path.iterdir()) == [tmp_path / "secret"]


def test_a_truncated_secret_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_bytes(b"short")
    assert len(load_secret(file)) == 32
    assert load_secret(file) == file.read_bytes()


def test_a_secret_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="--data-dir"):
        load_secret(tmp_path / "missing" / "secret")


def test_owns_data_finds_images_jobs_and_comparisons(studio: Studio) -> None:
    assert not studio.owns_data("visitor-ann")
    studio.generate(GenerationRequest("a fox", num_inference_steps=1), "visitor-ann")
    assert studio.owns_data("visitor-ann")
    assert not studio.owns_data("visitor-bob")
    with studio.database.transaction() as connection:
        connection.execute("UPDATE generated_images SET owner = 'somebody'")
    assert not studio.owns_data("visitor-ann")
    job = studio.submit(GenerationRequest("a fox", num_inference_steps=150), "visitor-ann")
    assert studio.owns_data("visitor-ann")
    job.cancel()


def test_the_owner_is_the_logged_in_user_or_none() -> None:
    assert client_of(get_login=lambda scope: "ada", public=True).get("/").text == "ada"
    assert client_of(get_login=lambda scope: None, public=True).get("/").text == "None"
