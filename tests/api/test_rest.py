from __future__ import annotations

import io
from pathlib import Path

import httpx
import pytest
from PIL import Image

from canvas import GenerationRequest, Studio
from canvas.request import GeneratedImage
from canvas.server.discovery import find_server
from tests.app_server import serving


@pytest.fixture(scope="module")
def image(served: Studio) -> GeneratedImage:
    [image] = served.generate(GenerationRequest("a red boat", num_inference_steps=1, seed=5))
    return image


def test_picture_is_the_stored_file(served: Studio, url: str, image: GeneratedImage) -> None:
    response = httpx.get(f"{url}/pictures/{image.filename}")
    assert response.status_code == 200
    assert response.headers["content-type"] == "image/png"
    assert response.content == served.image_path(image.filename).read_bytes()


def test_thumbnail_is_a_small_webp(url: str, image: GeneratedImage) -> None:
    response = httpx.get(f"{url}/thumbnails/{image.filename}")
    assert response.headers["content-type"] == "image/webp"
    assert max(Image.open(io.BytesIO(response.content)).size) <= 512


@pytest.mark.parametrize("name", ["nope.png", "..%2f..%2fetc%2fpasswd", "%00", "a" * 5000])
@pytest.mark.parametrize("folder", ["pictures", "thumbnails"])
def test_no_other_file_is_served(url: str, folder: str, name: str) -> None:
    response = httpx.get(f"{url}/{folder}/{name}")
    assert response.status_code == 404
    assert b"root:" not in response.content


def test_health(url: str, image: GeneratedImage) -> None:
    health = httpx.get(f"{url}/healthz").json()
    assert health["status"] == "ok"
    assert health["ready"] is True
    assert health["model"] == "starter"
    assert health["device"] == "cpu"
    assert health["free_bytes"] > 0
    assert health["requires_api_key"] is False
    assert health["asks_for_keys"] is False, "the old name"


def test_health_of_a_moved_data_folder(tmp_path: Path) -> None:
    folder, moved = tmp_path / "data", tmp_path / "moved"
    with serving(folder) as studio:
        assert find_server(folder)
        folder.rename(moved)
        response = httpx.get(f"{studio.url}/healthz")
        assert response.status_code == 503
        assert response.json()["status"] == "data folder missing"
        assert response.json()["free_bytes"] is None
        assert str(tmp_path) not in response.text
        assert httpx.get(f"{studio.url}/metrics").status_code in (200, 507)
        assert find_server(moved) is None, "its server cannot use it"
        moved.rename(folder)
        assert httpx.get(f"{studio.url}/healthz").json()["status"] == "ok"
        assert "canvas_disk_free_bytes" in httpx.get(f"{studio.url}/metrics").text
