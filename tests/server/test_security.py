from __future__ import annotations

from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from canvas.server.security import SecurityMiddleware
from canvas.settings import Settings
from canvas.validation import is_loopback


def client(tmp_path: Path, hosts: tuple[str, ...] | None = ()) -> TestClient:
    async def inside(request: Request) -> PlainTextResponse:
        return PlainTextResponse("inside")

    door = Middleware(
        SecurityMiddleware,
        hosts=hosts,
        outputs=tmp_path / "outputs",
        is_stored_image=lambda path: path.name == "ours.png",
    )
    app = Starlette(routes=[Route("/{any:path}", inside)], middleware=[door])
    return TestClient(app, base_url="http://127.0.0.1:7860")


@pytest.mark.parametrize(
    "host", ["localhost:7860", "127.0.0.1", "[::1]:7860", "LOCALHOST", "localhost.", "a.localhost"]
)
def test_this_machine_is_known_by_its_names(tmp_path: Path, host: str) -> None:
    assert client(tmp_path).get("/", headers={"host": host}).text == "inside"


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "", "[", "0x7f.1"]
)
def test_a_rebound_name_is_refused(tmp_path: Path, host: str) -> None:
    answer = client(tmp_path).get("/", headers={"host": host})
    assert answer.status_code == 421
    assert "CANVAS_TRUSTED_HOSTS" in answer.text


def test_a_trusted_name_may_be_given(tmp_path: Path) -> None:
    settings = Settings.from_environment({"CANVAS_TRUSTED_HOSTS": "studio.example, b.example"})
    door = client(tmp_path, settings.trusted_hosts)
    assert door.get("/", headers={"host": "studio.example"}).text == "inside"
    assert door.get("/", headers={"host": "c.example"}).status_code == 421


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "file://", "https://localhost.x"]
)
def test_a_page_of_another_site_is_refused(tmp_path: Path, origin: str) -> None:
    assert client(tmp_path).post("/", headers={"origin": origin}).status_code == 403
    own = client(tmp_path).post("/", headers={"origin": "http://localhost:8000"})
    assert own.status_code == 405, "it came to the route, which knows no POST"


def test_behind_a_login_any_name_is_good(tmp_path: Path) -> None:
    door = client(tmp_path, hosts=None)
    headers = {"host": "canvas.example", "origin": "https://other.example"}
    assert door.get("/", headers=headers).text == "inside"


def test_every_answer_has_the_headers(tmp_path: Path) -> None:
    for host in ("localhost", "evil.example"):
        answer = client(tmp_path).get("/", headers={"host": host})
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'self' ")
        assert "frame-ancestors 'self'" in policy
        assert "http" not in policy.replace("http://localhost:*", "").replace(
            "http://127.0.0.1:*", ""
        ), "nothing can be sent to another host"
    framed = client(tmp_path, hosts=None).get("/").headers["content-security-policy"]
    assert "frame-ancestors" not in framed, "a Space lives in a frame of another site"


def test_only_our_pictures_leave_the_folder(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    (outputs / "day").mkdir(parents=True)
    (outputs / "link.png").symlink_to(outputs / "day" / "ours.png")
    door = client(tmp_path, hosts=None)
    expected = {
        outputs / "day" / "ours.png": 200,
        outputs / "day" / "other.png": 404,
        outputs / "link.png": 404,
        outputs: 404,
        tmp_path / "elsewhere.png": 200,  # Gradio's to judge
        "http://example.com/x.png": 404,
        "HTTPS:/example.com": 404,
        "\0": 404,
    }
    for asked, status in expected.items():
        for route in ("file=", "file/"):
            path = f"/gradio_api/{route}{str(asked).replace(chr(0), '%00')}"
            assert door.get(path).status_code == status, path


def test_what_is_loopback() -> None:
    assert all(map(is_loopback, ("localhost", "127.8.9.1", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "192.168.1.1", "::", "example.com")))  # noqa: S104
