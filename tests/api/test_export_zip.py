from __future__ import annotations

import io
import json
import zipfile

import httpx
import pytest
from PIL import Image

from canvas import GenerationRequest, Studio
from canvas.history.metadata import read_settings
from canvas.request import GeneratedImage


@pytest.fixture(scope="module")
def images(served: Studio) -> list[GeneratedImage]:
    return served.generate(GenerationRequest("a green hat", num_inference_steps=1, seed=3, num_images=2))


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
def test_download_keeps_the_settings_in_every_format(url: str, images: list[GeneratedImage], image_format: str) -> None:
    address = f"{url}/downloads/{images[0].filename}?image_format={image_format}"
    response = httpx.get(address)
    assert response.headers["content-type"] == f"image/{image_format}"
    assert "attachment" in response.headers["content-disposition"]
    assert Image.open(io.BytesIO(response.content)).format == image_format.upper()
    embedded = read_settings(io.BytesIO(response.content))
    assert embedded is not None
    assert embedded.request.seed == 3


def test_download_rejects_an_unknown_format(url: str, images: list[GeneratedImage]) -> None:
    response = httpx.get(f"{url}/downloads/{images[0].filename}?image_format=exe")
    assert response.status_code == 400
    message = "Image format must be one of png, jpeg, webp (got 'exe')."
    assert response.json()["error"]["message"] == message


def test_export_of_selected_images(url: str, images: list[GeneratedImage]) -> None:
    ids = ",".join(str(image.id) for image in images)
    response = httpx.get(f"{url}/export.zip?ids={ids}&image_format=webp")
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        lines = archive.read("metadata.jsonl").decode().splitlines()
        assert [json.loads(line)["id"] for line in lines] == sorted(one.id or 0 for one in images)
        names = [name for name in archive.namelist() if name.endswith(".webp")]
        assert len(names) == 2


def test_export_applies_the_filters(url: str, images: list[GeneratedImage]) -> None:
    response = httpx.get(f"{url}/export.zip?text=nosuchword")
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        assert archive.read("metadata.jsonl") == b""


@pytest.mark.parametrize("ids", ["abc", "1;2", "-1", "9" * 40])
def test_export_rejects_invalid_ids(url: str, ids: str) -> None:
    response = httpx.get(f"{url}/export.zip?ids={ids}")
    assert response.status_code == 400
    assert "Ids must be" in response.text
