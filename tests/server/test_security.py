from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from canvas.server.security import HostOriginMiddleware, ImageLoginMiddleware, SignedLinks, security_middleware
from canvas.settings import Settings
from canvas.validation import is_loopback
from tests.app_server import serving
from tests.server.asgi import call, http_scope, response_of, status_of
from tests.server.test_auth import Clock


def client_of(tmp_path: Path, hosts: tuple[str, ...] | None = (), own_name: str = "localhost") -> TestClient:
    """A client of an app with the middleware; the only stored image is stored.png."""

    async def endpoint(request: Request) -> PlainTextResponse:
        return PlainTextResponse(f"accepted, cookies: {len(request.cookies)}")

    outputs = tmp_path / "outputs"
    middleware = security_middleware(hosts, outputs, lambda path: path.name == "stored.png", own_name=own_name)
    app = Starlette(routes=[Route("/{path:path}", endpoint)], middleware=middleware)
    return TestClient(app, base_url="http://127.0.0.1:7860")


@pytest.mark.parametrize(
    "host", ["localhost:7860", "127.0.0.1", "[::1]:7860", "LOCALHOST", "localhost.", "a.localhost"]
)
def test_names_of_this_computer_are_allowed(tmp_path: Path, host: str) -> None:
    assert client_of(tmp_path).get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "", "[", "0x7f.1"]
)
def test_foreign_hosts_are_rejected(tmp_path: Path, host: str) -> None:
    response = client_of(tmp_path).get("/", headers={"host": host})
    assert response.status_code == 421
    assert "CANVAS_TRUSTED_HOSTS" in response.text


def test_trusted_hosts_are_allowed(tmp_path: Path) -> None:
    settings = Settings.from_environment({"CANVAS_TRUSTED_HOSTS": "studio.example, b.example"})
    client = client_of(tmp_path, settings.trusted_hosts)
    assert client.get("/", headers={"host": "studio.example"}).status_code == 200
    assert client.get("/", headers={"host": "c.example"}).status_code == 421
    client = client_of(tmp_path, ("studio.example:8443",))
    assert client.get("/", headers={"host": "studio.example:8443"}).status_code == 200
    assert client.get("/", headers={"host": "studio.example"}).status_code == 421


def test_a_full_host_name_has_its_short_forms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "Studio.lan")
    client = client_of(tmp_path)
    for host, status in (("studio.lan", 200), ("studio", 200), ("studio.local", 200), ("lan", 421), ("", 421)):
        assert client.get("/", headers={"host": host}).status_code == status, host


def test_the_computers_own_names_and_addresses_are_allowed(tmp_path: Path) -> None:
    name = socket.gethostname()
    for host in (name, name.upper(), f"{name.partition('.')[0]}.local", "canvas.lan", "127.0.0.1"):
        assert client_of(tmp_path, own_name="canvas.lan").get("/", headers={"host": f"{host}:7860"}).is_success, host
    assert client_of(tmp_path).get("/", headers={"host": "192.0.2.1"}).status_code == 421, "another address"
    app = HostOriginMiddleware(PlainTextResponse("ok"), hosts=(), own_name="localhost")
    client = TestClient(app, base_url="http://192.0.2.1:7860")  # the address that it is connected to
    assert client.get("/").status_code == 200


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "file://",
        "https://localhost.x",
        "http://localhost:3000",
        "http://127.0.0.1:3000",
        "http://127.0.0.1",
        "http://localhost:7860",  # another name of this computer is another origin as well
        "http://127.0.0.1:x",
        "ftp://127.0.0.1:7860",
    ],
)
def test_foreign_origins_are_rejected(tmp_path: Path, origin: str) -> None:
    client = client_of(tmp_path)
    response = client.post("/", headers={"origin": origin})
    assert response.status_code == 403
    assert "CANVAS_TRUSTED_HOSTS" in response.text


@pytest.mark.parametrize(
    ("hosts", "host", "origin"),
    [
        ((), "127.0.0.1:7860", "http://127.0.0.1:7860"),
        ((), "localhost:7860", "http://localhost:7860"),
        ((), "localhost", "https://localhost"),
        ((), "localhost:80", "http://localhost"),
        ((), "localhost:443", "https://localhost"),
        (("canvas.example",), "127.0.0.1:7860", "https://canvas.example"),
        (("canvas.example",), "127.0.0.1:7860", "https://canvas.example:8443"),
        (("localhost:3000",), "localhost:7860", "http://localhost:3000"),
    ],
)
def test_own_and_named_origins_are_allowed(tmp_path: Path, hosts: tuple[str, ...], host: str, origin: str) -> None:
    response = client_of(tmp_path, hosts).post("/", headers={"host": host, "origin": origin})
    assert response.status_code == 405, "it reached the route, which has no POST"


def test_a_named_port_names_no_other_port(tmp_path: Path) -> None:
    client = client_of(tmp_path, ("localhost:3000",))
    assert client.post("/", headers={"origin": "http://localhost:30001"}).status_code == 403


def test_any_host_is_allowed_with_a_login_or_in_public_mode(tmp_path: Path) -> None:
    client = client_of(tmp_path, hosts=None)
    headers = {"host": "canvas.example", "origin": "https://other.example"}
    assert client.get("/", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("site", "mode", "cookies"),
    [
        ("same-origin", "cors", 1),
        ("cross-site", "cors", 0),
        ("same-site", "no-cors", 0),
        ("cross-site", "navigate", 1),
        ("none", "navigate", 1),
    ],
)
def test_cross_site_requests_have_no_cookies(tmp_path: Path, site: str, mode: str, cookies: int) -> None:
    headers = {"sec-fetch-site": site, "sec-fetch-mode": mode, "cookie": "a=b"}
    response = client_of(tmp_path).get("/", headers=headers)
    assert response.text == f"accepted, cookies: {cookies}"


def test_every_response_has_security_headers(tmp_path: Path) -> None:
    for host in ("localhost", "evil.example"):
        response = client_of(tmp_path).get("/", headers={"host": host})
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "same-origin"
        policy = response.headers["content-security-policy"]
        assert policy.startswith("default-src 'self' ")
        assert "frame-ancestors 'self'" in policy
        assert "http" not in policy.replace("http://localhost:*", "").replace("http://127.0.0.1:*", ""), (
            "nothing can be sent to another host"
        )
    policy = client_of(tmp_path, hosts=None).get("/").headers["content-security-policy"]
    assert "frame-ancestors" not in policy, "a Space is in a frame of another site"


def test_only_stored_images_of_the_outputs_folder_are_served(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    (outputs / "day").mkdir(parents=True)
    (outputs / "link.png").symlink_to(outputs / "day" / "stored.png")
    client = client_of(tmp_path, hosts=None)
    expected = {
        outputs / "day" / "stored.png": 200,
        outputs / "day" / "other.png": 404,
        outputs / "link.png": 404,
        outputs: 404,
        tmp_path / "outside.png": 200,  # left to Gradio's check
        "http://example.com/x.png": 404,
        "HTTPS:/example.com": 404,
        "\0": 404,
    }
    for file, status in expected.items():
        for route in ("file=", "file/"):
            path = f"/gradio_api/{route}{str(file).replace(chr(0), '%00')}"
            assert client.get(path).status_code == status, path


SECRET = b"a secret of a test, 32 bytes or more"
LINKS = SignedLinks(SECRET)


def status_of_image(path: str, owner: str | None, links: SignedLinks | None = LINKS, query: str = "") -> int:
    scope = http_scope(path, "GET", state={"owner": owner}, query_string=query.encode())
    return status_of(call(ImageLoginMiddleware(response_of(b"an image"), links=links), scope))


@pytest.mark.parametrize("folder", ["/pictures", "/thumbnails", "/downloads", "/gradio_api/file=x", "/export.zip"])
def test_images_need_a_login_or_a_signed_link(folder: str) -> None:
    path, query = f"{folder}/a.png", LINKS.query("a.png")
    assert status_of_image(path, "ann") == 200
    assert status_of_image(path, None) == 401
    assert status_of_image(path, None, links=None, query=query) == 401
    assert status_of_image(path, None, query=query) == (200 if folder in ("/pictures", "/thumbnails") else 401)
    assert status_of_image(path, None, query=LINKS.query("b.png")) == 401


def test_other_routes_and_connections_need_no_login_for_images() -> None:
    assert status_of_image("/healthz", None) == 200
    for scope in ({"type": "lifespan"}, {"type": "websocket", "path": "/pictures/a.png", "state": {"owner": None}}):
        assert call(ImageLoginMiddleware(response_of(b"passed"), links=LINKS), scope)[-1]["body"] == b"passed"


@pytest.mark.parametrize("links", [LINKS, None])
def test_the_apis_sign_links_only_with_a_login(links: SignedLinks | None) -> None:
    scope = http_scope("/v1/models", state={"owner": "ann"})
    call(ImageLoginMiddleware(response_of(b""), links=links), scope)
    assert ("sign_link" in scope["state"]) is (links is not None)


def test_is_loopback() -> None:
    assert all(map(is_loopback, ("localhost", "127.8.9.1", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "192.168.1.1", "::", "example.com")))  # noqa: S104


PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}


@pytest.mark.parametrize(
    "options",
    [{"public": True}, {"auth": ("ann", "secret")}, {}, {"host": "0.0.0.0", "insecure": True}],  # noqa: S104
)
def test_no_origin_that_was_not_named_may_read_responses(tmp_path: Path, options: dict[str, Any]) -> None:
    with (
        serving(tmp_path, trusted_hosts=("canvas.example",), **options) as studio,
        httpx.Client(base_url=studio.url) as client,  # type: ignore[attr-defined]
    ):
        for origin in ("https://evil.example", "http://localhost:3000", "null", "https://canvas.example.evil.example"):
            # A page of another site reaches the server by any name.
            for host in (None, "canvas.example"):
                headers = {"Origin": origin} | ({"Host": host} if host else {})
                for path in ("healthz", "config", "export.zip", "v1/models", "gradio_api/info"):
                    answers = client.get(path, headers=headers), client.options(path, headers=headers | PREFLIGHT)
                    for response in answers:
                        assert "access-control-allow-origin" not in response.headers, (origin, path)
        named = {"Origin": "https://canvas.example", "Host": "canvas.example"}
        response = client.options("v1/models", headers=named | PREFLIGHT)
        assert response.headers["access-control-allow-origin"] == "https://canvas.example"
        assert response.headers["access-control-allow-credentials"] == "true"
        response = client.get("healthz", headers=named)
        assert response.headers["access-control-allow-origin"] == "https://canvas.example"
        assert response.status_code == 200


def test_host_and_origin_are_checked_on_a_network_without_a_login(tmp_path: Path) -> None:
    with serving(tmp_path, host="0.0.0.0", insecure=True) as studio:  # noqa: S104
        for path in ("healthz", "config", "export.zip", "v1/models"):
            url = f"{studio.url}/{path}"
            assert httpx.get(url, headers={"Host": "rebound.example"}).status_code == 421
            assert httpx.get(url, headers={"Origin": "https://evil.example"}).status_code == 403
            assert httpx.get(url, headers={"Origin": "http://localhost:3000"}).status_code == 403
        assert httpx.get(f"{studio.url}/config", headers={"Origin": studio.url}).status_code == 200
        address = studio.url.replace("localhost", "127.0.0.1")
        assert httpx.get(f"{address}/config", headers={"Origin": address}).status_code == 200


def test_a_link_is_valid_for_an_hour() -> None:
    clock = Clock()
    links = SignedLinks(SECRET, clock)
    query = links.query("fox.png")
    for seconds, valid in ((0, True), (3599, True), (1, False), (3600, False)):
        clock.seconds += seconds
        assert links.is_valid("fox.png", query) is valid, clock.seconds


def test_a_link_is_for_one_image_of_one_server() -> None:
    query = SignedLinks(SECRET, Clock()).query("fox.png")
    assert not SignedLinks(SECRET, Clock()).is_valid("boat.png", query)
    assert not SignedLinks(b"another" * 8, Clock()).is_valid("fox.png", query)


@pytest.mark.parametrize(
    "change",
    [
        ("expires=4600", "expires=4601"),
        ("expires=4600", "expires=" + "9" * 5000),
        ("expires=4600", "expires=x"),
        ("expires=4600", "expires=٤٦٠٠"),
        ("expires=4600&", ""),
        ("signature=", "signature=0"),
        ("&signature=", "&other="),
        ("expires=4600", "expires=4601&expires=4600"),
    ],
)
def test_a_changed_link_is_not_valid(change: tuple[str, str]) -> None:
    links = SignedLinks(SECRET, Clock())
    query = links.query("fox.png")
    assert change[0] in query
    assert not links.is_valid("fox.png", query.replace(*change))
    assert not links.is_valid("fox.png", "")


def test_further_parameters_do_not_matter() -> None:
    links = SignedLinks(SECRET, Clock())
    query = links.query("fox.png")
    assert links.is_valid("fox.png", f"{query}&download=1&expires=9&signature=9")
