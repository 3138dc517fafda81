from __future__ import annotations

import io
import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from sd_parsers import ParserManager

from canvas.errors import StorageError
from canvas.history.infotext import read_infotext
from canvas.history.metadata import embed, read_settings, read_text
from canvas.request import GeneratedImage, GenerationRequest

from .conftest import make_image
from .test_infotext import requests

FORMATS = ["png", "jpeg", "webp"]
SOURCE_TYPE = b"http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def written(tmp_path: Path, image: GeneratedImage) -> Path:
    path = tmp_path / f"picture.{image.request.image_format}"
    path.write_bytes(embed(image))
    return path


def without_pixels(image: GeneratedImage) -> GeneratedImage:
    return replace(image, image=None)


@pytest.mark.parametrize("image_format", FORMATS)
def test_our_chunk_restores_everything(tmp_path: Path, image_format: str) -> None:
    image = make_image(image_format=image_format, quality=70, prompt='ein Fuchs ❄️ 雪の狐 \n <&">')
    assert read_settings(written(tmp_path, image)) == without_pixels(image)


@settings(max_examples=25)
@given(requests(), st.sampled_from(FORMATS))
def test_any_request_survives_in_a_file(request: GenerationRequest, image_format: str) -> None:
    image = replace(make_image(), request=replace(request, image_format=image_format))
    file = io.BytesIO(embed(image))
    found = read_settings(file)  # type: ignore[arg-type]
    assert found is not None
    assert found.request == image.request


@pytest.mark.parametrize("image_format", FORMATS)
def test_the_longest_prompts_fit(tmp_path: Path, image_format: str) -> None:
    # Noise of characters outside of the basic plane: four bytes each, and hardly compressible.
    noise = "".join(chr(0x20000 + (n * n * 7919 + n * 31) % 40000) for n in range(10_000))
    image = make_image(
        prompt=noise, negative_prompt=noise[::-1], enhanced_prompt=noise, image_format=image_format
    )
    assert read_settings(written(tmp_path, image)) == without_pixels(image)


@pytest.mark.parametrize("image_format", FORMATS)
def test_other_programs_read_prompt_seed_steps_and_size(tmp_path: Path, image_format: str) -> None:
    path = written(tmp_path, make_image(image_format=image_format))
    info = ParserManager().parse(path)
    assert info is not None
    assert [prompt.value for prompt in info.prompts] == ["a red fox in the snow"]
    assert [prompt.value for prompt in info.negative_prompts] == ["blurry"]
    (sampler,) = info.samplers
    assert (sampler.name, sampler.parameters["steps"]) == ("DPM++ 2M Karras", "15")
    assert (sampler.parameters["seed"], info.metadata["Size"]) == ("7", "64x72")
    with Image.open(path) as picture:
        assert picture.size == (64, 72)


@pytest.mark.parametrize("image_format", FORMATS)
def test_the_file_says_that_a_machine_made_it(tmp_path: Path, image_format: str) -> None:
    path = written(tmp_path, make_image(image_format=image_format))
    assert SOURCE_TYPE in path.read_bytes()
    with Image.open(path) as picture:
        xmp = picture.info.get("xmp") or picture.info["XML:com.adobe.xmp"].encode()
        assert b"DigitalSourceType" in xmp


@pytest.mark.parametrize("image_format", FORMATS)
def test_infotext_is_where_others_look(tmp_path: Path, image_format: str) -> None:
    image = make_image(image_format=image_format, prompt="Füchse, ❄️")
    text = read_text(written(tmp_path, image))["parameters"]
    assert GenerationRequest.from_dict(read_infotext(text).values) == image.request


def test_user_comment_is_utf16_big_endian(tmp_path: Path) -> None:
    with Image.open(written(tmp_path, make_image(image_format="jpeg"))) as picture:
        comment = picture.getexif().get_ifd(0x8769)[0x9286]
    assert comment.startswith(b"UNICODE\0\0a\0 \0r\0e\0d")


def test_the_owner_stays_out_of_the_file(tmp_path: Path) -> None:
    content = written(tmp_path, make_image(owner="anna-secret")).read_bytes()
    assert b"anna-secret" not in content


def test_transparent_pixels_become_a_jpeg(tmp_path: Path) -> None:
    image = make_image(image=Image.new("RGBA", (64, 72), (255, 0, 0, 128)), image_format="jpeg")
    assert read_settings(written(tmp_path, image)) is not None


def png(tmp_path: Path, **texts: str) -> Path:
    chunks = PngInfo()
    for name, text in texts.items():
        chunks.add_text(name, text)
    Image.new("RGB", (8, 8)).save(tmp_path / "other.png", pnginfo=chunks)
    return tmp_path / "other.png"


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '"x"' * 400_000])
def test_a_chunk_that_makes_no_sense_is_no_settings(tmp_path: Path, text: str) -> None:
    assert read_settings(png(tmp_path, magic_canvas=text)) is None


def test_a_chunk_with_wrong_values_is_taken_as_far_as_it_goes(tmp_path: Path) -> None:
    values = {
        "prompt": "a\0b",
        "width": "wide",
        "seed": [1],
        "notes": 5,
        "created_at": {},
        "generation_time": "x",
        "quality": None,
        "favourite": 1,
        "id": "7",
    }
    found = read_settings(png(tmp_path, magic_canvas=json.dumps(values)))
    assert found is not None
    assert (found.request.prompt, found.request.width, found.id) == ("ab", None, None)
    assert len(found.notes) == 3


def test_a_compressed_bomb_is_refused(tmp_path: Path) -> None:
    path = png(tmp_path)
    content = path.read_bytes()
    body = b"zTXtmagic_canvas\0\0" + zlib.compress(b"0" * 50_000_000)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    path.write_bytes(content[:33] + chunk + content[33:])
    with pytest.raises(StorageError, match="cannot be read"):
        read_settings(path)


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n", b"GIF89a" + b"\0" * 50])
def test_what_is_no_picture_is_said(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(StorageError, match="cannot be read"):
        read_settings(path)


def test_a_number_beyond_all_bounds_is_left_out(tmp_path: Path) -> None:
    text = f'{{"prompt": "a fox", "seed": 1{"0" * 400}, "width": 1{"0" * 400}}}'
    found = read_settings(png(tmp_path, magic_canvas=text))
    assert found is not None
    assert (found.request.seed, found.request.width) == (-1, None)
