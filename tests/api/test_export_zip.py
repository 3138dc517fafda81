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
def pictures(served: Studio) -> list[GeneratedImage]:
    return served.generate(
        GenerationRequest("a green hat", num_inference_steps=1, seed=3, num_images=2)
    )


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
def test_a_picture_in_any_format_keeps_its_settings(
    url: str, pictures: list[GeneratedImage], image_format: str
) -> None:
    address = f"{url}/downloads/{pictures[0].filename}?image_format={image_format}"
    answer = httpx.get(address)
    assert answer.headers["content-type"] == f"image/{image_format}"
    assert "attachment" in answer.headers["content-disposition"]
    assert Image.open(io.BytesIO(answer.content)).format == image_format.upper()
    settings = read_settings(io.BytesIO(answer.content))
    assert settings is not None
    assert settings.request.seed == 3


def test_an_unknown_format_is_refused_in_words(url: str, pictures: list[GeneratedImage]) -> None:
    answer = httpx.get(f"{url}/downloads/{pictures[0].filename}?image_format=exe")
    assert answer.status_code == 400
    assert "allowed is one of png, jpeg, webp" in answer.text


def test_a_selection_comes_as_a_zip(url: str, pictures: list[GeneratedImage]) -> None:
    ids = ",".join(str(picture.id) for picture in pictures)
    answer = httpx.get(f"{url}/export.zip?ids={ids}&image_format=webp")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        lines = archive.read("metadata.jsonl").decode().splitlines()
        assert [json.loads(line)["id"] for line in lines] == sorted(p.id or 0 for p in pictures)
        names = [name for name in archive.namelist() if name.endswith(".webp")]
        assert len(names) == 2


def test_filters_limit_the_zip(url: str, pictures: list[GeneratedImage]) -> None:
    answer = httpx.get(f"{url}/export.zip?text=nosuchword")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.read("metadata.jsonl") == b""


@pytest.mark.parametrize("ids", ["abc", "1;2", "-1", "9" * 40])
def test_ids_are_numbers(url: str, ids: str) -> None:
    answer = httpx.get(f"{url}/export.zip?ids={ids}")
    assert answer.status_code == 400
    assert "ids" in answer.text
