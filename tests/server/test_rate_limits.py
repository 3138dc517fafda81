"""Uploads are limited in bytes and number, and removed afterwards."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from gradio.utils import get_upload_folder
from PIL import Image
from starlette.formparsers import MultiPartException
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from canvas import GenerationRequest, Studio
from canvas.errors import InvalidInput
from canvas.history.uploads import GRACE_SECONDS
from canvas.jobs.inputs import TempFiles
from canvas.server.launch import MAX_UPLOAD
from canvas.server.rate_limits import UploadLimitMiddleware
from canvas.server.uploads import MAX_AGE, sweep
from canvas.settings import Settings
from tests.app_server import serving
from tests.server.asgi import body_of, call, http_scope, read_body, response_of, status_of
from tests.server.test_auth import Clock

MIB = 2**20
FORM = "multipart/form-data; boundary=b"


@dataclass
class PublicServer:
    """A public server, and Gradio's upload folder."""

    url: str
    upload_folder: Path
    number: int = 0

    def files(self) -> set[Path]:
        return {path for path in self.upload_folder.rglob("*") if path.is_file()}

    def upload(self, files: list[bytes], address: str) -> httpx.Response:
        # Distinct files: the same one counts once.
        self.number += len(files)
        parts = [("files", (f"{self.number + number}.png", body)) for number, body in enumerate(files)]
        headers = {"X-Forwarded-For": address}
        url = f"{self.url}/gradio_api/upload"
        return httpx.post(url, files=parts, headers=headers, timeout=120)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PublicServer]:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    with serving(tmp_path / "data", public=True, trusted_proxies=("127.0.0.1",)) as studio:
        server = PublicServer(studio.url, Path(get_upload_folder()))
        yield server
    assert server.files() == set(), "removed with the server"


def test_uploads_are_limited_in_bytes_and_number(server: PublicServer) -> None:
    assert server.upload([b"small"] * 100, "192.0.2.1").status_code == 200
    before = server.files()
    too_large = server.upload([b"small", bytes(MAX_UPLOAD + 1)], "192.0.2.2")
    assert too_large.status_code == 413
    too_many = server.upload([b"small"] * 101, "192.0.2.1")
    assert too_many.status_code == 429
    assert "Too many uploads" in too_many.text
    assert server.upload([b"one"], "192.0.2.1").status_code == 429
    assert server.files() == before, "no file of a rejected upload remains"
    assert server.upload([b"one"], "192.0.2.3").status_code == 200, "other addresses may"


def test_the_files_of_an_aborted_upload_are_removed(server: PublicServer) -> None:
    url = urlsplit(server.url)
    head = (
        f"POST /gradio_api/upload HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Length: 5000000\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        '--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    )
    before = server.files()
    with socket.create_connection((url.hostname or "", url.port or 0)) as client:
        client.sendall(head.encode() + bytes(2_000_000))
        while server.files() == before:  # until a part is written
            pass
    deadline = time.monotonic() + 30
    while server.files() != before:
        assert time.monotonic() < deadline, "it was not removed"


def test_limits_are_per_network() -> None:
    middleware = UploadLimitMiddleware(lambda *_: None, public=True, now=Clock())  # type: ignore[arg-type]
    middleware._files["a"] = 201
    assert not middleware._within_quota("a", 0)
    assert middleware._within_quota("b", 0)
    assert not middleware._within_quota("b", UploadLimitMiddleware.BYTES + 1)


@pytest.mark.parametrize(("length", "status"), [("9" * 17, 429), ("9" * 5000, 200), ("-9", 200), ("nine", 200)])
def test_an_announced_length_counts_before_the_body_comes(length: str, status: int) -> None:
    """Lengths that are no numbers, or longer than any, are left to the server."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("received")(scope, receive, send)

    client = TestClient(UploadLimitMiddleware(app, public=True))
    response = client.post("/gradio_api/upload", headers={"content-length": length.encode()})
    assert response.status_code == status


def app_limits(**options: Any) -> UploadLimitMiddleware:
    return UploadLimitMiddleware(read_body, **{"public": True, "now": Clock(), **options})


def post(
    app: UploadLimitMiddleware, *parts: bytes, media_type: str = FORM, length: int | None = None, **scope: Any
) -> int:
    """The status of a request with this body, of which it may have announced the length."""
    headers = {"content-type": media_type} | ({} if length is None else {"content-length": str(length)})
    return status_of(
        call(app, http_scope(**{"headers": headers, "client": ("192.0.2.1", 1), **scope}), body_of(*parts))
    )


def form(*files: bytes, name: str = "f.png", field: bytes = b"") -> bytes:
    parts = [f'--b\r\nContent-Disposition: form-data; name="a"; filename="{name}"\r\n\r\n'.encode() + f for f in files]
    if field:
        parts.append(b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n' + field)
    return b"\r\n".join([*parts, b"--b--\r\n"])


@pytest.mark.parametrize("media_type", ["application/octet-stream", FORM])
def test_bytes_are_counted_however_they_arrive(monkeypatch: pytest.MonkeyPatch, media_type: str) -> None:
    monkeypatch.setattr(UploadLimitMiddleware, "BYTES", 1000)
    monkeypatch.setattr(UploadLimitMiddleware, "FREE", 300)
    free = 0 if media_type == FORM else 300
    for parts in ([b"x" * 500, b"x" * 500], [b"x" * 1000], [b"x" * 100] * 10):
        app = app_limits()
        assert post(app, *parts, *([b"x" * free] if free else []), media_type=media_type) == 200, "exactly as many"
        assert post(app, b"x" * (free + 1), media_type=media_type) == 429
        assert post(app, b"x", media_type=media_type, client=("192.0.2.2", 1)) == 200, "another address"
        assert post(app, b"x", media_type=media_type, client=("192.0.2.1", 2), method="GET") == 200
    if free:
        for _ in range(9):
            assert post(app, b"x" * 100, b"x" * 200, media_type=media_type) == 200, "the events of the page are free"


def test_an_announced_length_within_the_quota_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UploadLimitMiddleware, "BYTES", 1000)
    monkeypatch.setattr(UploadLimitMiddleware, "FREE", 300)
    app = app_limits()
    assert post(app, b"", media_type="image/png", length=1000) == 200
    assert post(app, b"", media_type="image/png", length=1001) == 429
    assert post(app, b"x" * 800, media_type="image/png") == 200, "500 are counted"
    assert post(app, b"", media_type="image/png", length=500) == 200
    assert post(app, b"", media_type="image/png", length=501) == 429
    assert post(app, b"x" * 1001, media_type="image/png") == 429
    assert post(app, b"", media_type="image/png", length=300) == 200, "free"
    assert post(app, b"", media_type="image/png", length=301) == 429


def test_a_server_that_is_not_public_counts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UploadLimitMiddleware, "BYTES", 10)
    assert post(app_limits(public=False), bytes(100_000), length=100_000) == 200


def test_files_are_counted_for_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UploadLimitMiddleware, "FILES", 2)
    clock = Clock()
    app = app_limits(now=clock)
    assert post(app, form(b"1", b"2")) == 200
    assert post(app, form(b"1")) == 200, "the same file counts once"
    assert post(app, form(b"1", name="other.png")) == 429, "another name is another file"
    clock.seconds += 3600
    assert post(app, form(b"1")) == 429
    clock.seconds += 1
    for _ in range(2):
        assert post(app, form(b"1", b"2")) == 200
        clock.seconds += 1800
    assert post(app, form(b"3")) == 429, "the hour began with the first upload of it"


def test_bytes_of_a_repeated_file_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UploadLimitMiddleware, "BYTES", 5000)
    app = app_limits()
    for _ in range(9):  # of which 100 are the headers
        assert post(app, form(bytes(3000))) == 200
    assert post(app, form(bytes(3001))) == 429


@pytest.mark.parametrize(("size", "status"), [(MIB, 200), (MIB + 1, 413)])
def test_the_fields_of_a_form_are_limited(size: int, status: int) -> None:
    body = form(b"a file" * 300_000, field=bytes(size))
    assert post(app_limits(), body) == status
    assert post(app_limits(public=False), body[:700_000], body[700_000:]) == status


def test_an_upload_that_is_aborted_fails_but_one_that_is_complete_does_not() -> None:
    async def read_until_disconnected(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        await response_of(b"")(scope, receive, send)

    app = UploadLimitMiddleware(read_until_disconnected, public=True)
    scope = http_scope(headers={"content-type": FORM}, client=None)
    assert status_of(call(app, scope, body_of(form(b"x")[:50], form(b"x")[50:]))) == 200
    with pytest.raises(MultiPartException, match="disconnected"):
        call(app, scope, body_of(form(b"x"), b"")[:1])
    scope = http_scope(headers={"content-type": "image/png"})
    assert status_of(call(app, scope, body_of(b"x", b"")[:1])) == 200, "only forms leave files"


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_requests_without_a_body_and_other_connections_pass(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    monkeypatch.setattr(UploadLimitMiddleware, "FILES", -1)
    assert post(app_limits(), b"", method=method) == 200
    assert post(app_limits(), b"") == 429
    reached = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        reached.append(scope["type"])

    call(UploadLimitMiddleware(app, public=True), {"type": "lifespan"})
    assert reached == ["lifespan"]


def test_unused_images_are_removed_after_an_hour(settings: Settings) -> None:
    def upload(studio: Studio, color: str) -> Path:
        image = Image.new("RGB", (128, 128), color)
        return settings.uploads_dir / studio.inputs.upload(image).name

    with Studio(settings) as studio:
        used, unused, again = (upload(studio, color) for color in ("red", "blue", "green"))
        request = GenerationRequest("a fox", task="image_to_image", image=used.name, num_inference_steps=2)
        studio.generate(request)
        for path in (used, unused, again):
            os.utime(path, (time.time() - GRACE_SECONDS - 5,) * 2)
        assert upload(studio, "green") == again
    with Studio(settings) as studio:
        studio.generate(GenerationRequest("a fox", num_inference_steps=1))
        assert used.exists(), "an image was made from it"
        assert again.exists(), "it was uploaded again"
        assert not unused.exists()


def test_old_files_of_the_temporary_folder_are_swept(tmp_path: Path) -> None:
    temp_files, old, new = TempFiles(), tmp_path / "a" / "old.png", tmp_path / "b" / "new.png"
    for path in (old, new):
        path.parent.mkdir()
        path.write_bytes(b"x")
        temp_files.register(path, "ann")
    for path in (old, old.parent):
        os.utime(path, (time.time() - MAX_AGE - 5,) * 2)
    assert sweep(tmp_path, MAX_AGE) == 1
    temp_files.forget_deleted()
    assert not old.exists()
    assert temp_files.find(str(new), "ann") == new
    for path in (old, tmp_path / "b" / ".." / "a" / "old.png"):
        with pytest.raises(InvalidInput, match="Upload it again"):
            temp_files.find(str(path), "ann")
