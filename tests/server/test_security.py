from __future__ import annotations

from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from canvas.server.security import security_middleware
from canvas.settings import Settings
from canvas.validation import is_loopback


def client_of(tmp_path: Path, hosts: tuple[str, ...] | None = ()) -> TestClient:
    """A client of an app with the middleware; the only stored image is stored.png."""

    async def endpoint(request: Request) -> PlainTextResponse:
        return PlainTextResponse(f"accepted, cookies: {len(request.cookies)}")

    middleware = security_middleware(hosts, tmp_path / "outputs", lambda path: path.name == "stored.png")
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


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "file://", "https://localhost.x"])
def test_foreign_origins_are_rejected(tmp_path: Path, origin: str) -> None:
    client = client_of(tmp_path)
    assert client.post("/", headers={"origin": origin}).status_code == 403
    own = client.post("/", headers={"origin": "http://localhost:8000"})
    assert own.status_code == 405, "it reached the route, which has no POST"


def test_any_host_is_allowed_where_a_key_is_required(tmp_path: Path) -> None:
    client = client_of(tmp_path, hosts=None)
    headers = {"host": "canvas.example", "origin": "https://other.example"}
    assert client.get("/", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("site", "mode", "cookies"),
    [("same-origin", "cors", 1), ("cross-site", "cors", 0), ("same-site", "no-cors", 0), ("cross-site", "navigate", 1)],
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


def test_is_loopback() -> None:
    assert all(map(is_loopback, ("localhost", "127.8.9.1", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "192.168.1.1", "::", "example.com")))  # noqa: S104
