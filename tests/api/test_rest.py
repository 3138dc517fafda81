from __future__ import annotations

import io

import httpx
import pytest
from PIL import Image

from canvas import GenerationRequest, Studio
from canvas.request import GeneratedImage


@pytest.fixture(scope="module")
def picture(served: Studio) -> GeneratedImage:
    [picture] = served.generate(GenerationRequest("a red boat", num_inference_steps=1, seed=5))
    return picture


def test_a_picture_is_served_byte_by_byte(
    served: Studio, url: str, picture: GeneratedImage
) -> None:
    answer = httpx.get(f"{url}/pictures/{picture.filename}")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"
    assert answer.content == served.image_path(picture.filename).read_bytes()


def test_a_thumbnail_is_smaller(url: str, picture: GeneratedImage) -> None:
    answer = httpx.get(f"{url}/thumbnails/{picture.filename}")
    assert answer.headers["content-type"] == "image/webp"
    assert max(Image.open(io.BytesIO(answer.content)).size) <= 512


@pytest.mark.parametrize("name", ["nope.png", "..%2f..%2fetc%2fpasswd", "%00", "a" * 5000])
@pytest.mark.parametrize("folder", ["pictures", "thumbnails"])
def test_no_other_file_is_served(url: str, folder: str, name: str) -> None:
    answer = httpx.get(f"{url}/{folder}/{name}")
    assert answer.status_code == 404
    assert b"root:" not in answer.content


def test_health_tells_what_is_ready(url: str, picture: GeneratedImage) -> None:
    health = httpx.get(f"{url}/healthz").json()
    assert health["status"] == "ok"
    assert health["ready"] is True
    assert health["model"] == "starter"
    assert health["device"] == "cpu"
    assert health["free_bytes"] > 0
