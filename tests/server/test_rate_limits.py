"""What visitors hand in: limited in bytes and number, and gone afterwards."""

from __future__ import annotations

import gc
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from gradio.utils import get_upload_folder
from PIL import Image

from canvas import GenerationRequest, Studio
from canvas.history.uploads import GRACE_SECONDS
from canvas.server.launch import MAX_UPLOAD, launch
from canvas.server.rate_limits import UploadLimitMiddleware
from canvas.settings import Settings
from tests.server.test_auth import Clock


@dataclass
class Place:
    """A public server, and the folder where Gradio puts what is uploaded."""

    url: str
    folder: Path

    def files(self) -> set[Path]:
        return {path for path in self.folder.rglob("*") if path.is_file()}

    def send(self, files: list[bytes], address: str) -> httpx.Response:
        sent = [("files", (f"{number}.png", body)) for number, body in enumerate(files)]
        headers = {"X-Forwarded-For": address}
        url = f"{self.url}/gradio_api/upload"
        return httpx.post(url, files=sent, headers=headers, timeout=120)


@pytest.fixture
def place(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    public = Settings(**{**vars(settings), "public": True, "port": 0})
    with Studio(public) as studio:
        page = launch(studio, block=False)
        gc.collect()  # Gradio leaves event loops open; see tests/api/conftest.py
        place = Place((page.local_url or "").rstrip("/"), Path(get_upload_folder()))
        yield place
        page.close()
    gc.collect()
    assert place.files() == set(), "gone with the server"


def test_uploads_are_limited_in_bytes_and_number(place: Place) -> None:
    assert place.send([b"small"] * 100, "192.0.2.1").status_code == 200
    before = place.files()
    too_large = place.send([b"small", bytes(MAX_UPLOAD + 1)], "192.0.2.2")
    assert too_large.status_code == 413
    too_many = place.send([b"small"] * 101, "192.0.2.1")
    assert too_many.status_code == 400
    assert "a great many files" in too_many.text
    assert place.send([b"one"], "192.0.2.1").status_code == 429
    assert place.files() == before, "nothing of it stays"
    assert place.send([b"one"], "192.0.2.3").status_code == 200, "others may"


def test_what_a_visitor_sent_who_hung_up_is_gone(place: Place) -> None:
    where = urlsplit(place.url)
    head = (
        f"POST /gradio_api/upload HTTP/1.1\r\nHost: {where.netloc}\r\nContent-Length: 5000000\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        '--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    )
    before = place.files()
    with socket.create_connection((where.hostname or "", where.port or 0)) as visitor:
        visitor.sendall(head.encode() + bytes(2_000_000))
        while place.files() == before:  # until it has come so far
            pass
    until = time.monotonic() + 30
    while place.files() != before:
        assert time.monotonic() < until, "it stays"


def test_the_count_begins_again_after_an_hour() -> None:
    clock = Clock()
    limits = UploadLimitMiddleware(lambda *_: None, public=True, now=clock)  # type: ignore[arg-type]
    limits._files["a"] = 201
    assert not limits._within_quota("a", 0)
    assert limits._within_quota("b", 0)
    assert not limits._within_quota("b", UploadLimitMiddleware.BYTES + 1)


def test_pictures_that_nothing_was_made_from_are_gone_after_an_hour(settings: Settings) -> None:
    def hand_in(studio: Studio, colour: str) -> Path:
        return (
            settings.uploads_dir / studio.inputs.upload(Image.new("RGB", (128, 128), colour)).name
        )

    with Studio(settings) as studio:
        used, unused, again = (hand_in(studio, colour) for colour in ("red", "blue", "green"))
        wish = GenerationRequest(
            "a fox", task="image_to_image", image=used.name, num_inference_steps=2
        )
        studio.generate(wish)
        for path in (used, unused, again):
            os.utime(path, (time.time() - GRACE_SECONDS - 5,) * 2)
        assert hand_in(studio, "green") == again
    with Studio(settings) as studio:
        studio.generate(GenerationRequest("a fox", num_inference_steps=1))
        assert used.exists(), "a picture was made from it"
        assert again.exists(), "it was handed in again"
        assert not unused.exists()
