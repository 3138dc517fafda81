from __future__ import annotations

import gzip
import io
import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from sd_parsers import ParserManager

from canvas.errors import StorageError
from canvas.history.infotext import read_infotext
from canvas.history.metadata import MAX_JSON, embed, read_settings, read_text
from canvas.request import OLD_FIELD_NAMES, GeneratedImage, GenerationRequest

from .conftest import OLD_REQUEST, make_image
from .test_infotext import requests

FORMATS = ["png", "jpeg", "webp"]
# Written by version 0.1, with its field names.
OLD_CHUNK = """{"prompt": "a red fox, in snow", "negative_prompt": "blurry", "style": "none",
"model_key": "tiny", "width": 512, "height": 384, "num_inference_steps": 4, "guidance_scale": 1.5,
"scheduler": "LCM", "seed": 7, "num_images": 1, "image_format": "png", "quality": 95,
"task": "inpaint", "image": "ab.png", "mask_image": "cd.png", "strength": 0.5, "fit": "pad",
"background": "#00ff7f", "mask_feather": 16, "only_masked": false, "extend": [8, 0, 16, 0],
"variation_seed": null, "variation_strength": 0.0, "scale": 2, "upscaler": "lanczos", "loras": [],
"prompt_weighting": false, "watermark": "", "mode": "turbo", "where": "huggingface",
"enhanced_prompt": "a red fox, art", "generation_time": 3.25, "device": "cpu", "dtype": "float32",
"model_revision": "abc", "notes": ["n"], "channel": "gradio",
"created_at": "2026-05-04T03:02:01.123456+00:00"}"""
SOURCE_TYPE = b"http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def write(tmp_path: Path, image: GeneratedImage) -> Path:
    path = tmp_path / f"image.{image.request.image_format}"
    path.write_bytes(embed(image))
    return path


def without_pixels(image: GeneratedImage) -> GeneratedImage:
    return replace(image, image=None)


@pytest.mark.parametrize("image_format", FORMATS)
def test_embedded_settings_round_trip(tmp_path: Path, image_format: str) -> None:
    image = make_image(image_format=image_format, quality=70, prompt='ein Fuchs ❄️ 雪の狐 \n <&">')
    assert read_settings(write(tmp_path, image)) == without_pixels(image)


@settings(max_examples=25)
@given(requests(), st.sampled_from(FORMATS))
def test_any_request_round_trips(request: GenerationRequest, image_format: str) -> None:
    image = replace(make_image(), request=replace(request, image_format=image_format))
    file = io.BytesIO(embed(image))
    found = read_settings(file)  # type: ignore[arg-type]
    assert found is not None
    assert found.request == image.request


@pytest.mark.parametrize("image_format", FORMATS)
def test_the_longest_prompts_fit(tmp_path: Path, image_format: str) -> None:
    # Noise of characters outside of the basic plane: four bytes each, and hardly compressible.
    noise = "".join(chr(0x20000 + (n * n * 7919 + n * 31) % 40000) for n in range(10_000))
    image = make_image(prompt=noise, negative_prompt=noise[::-1], enhanced_prompt=noise, image_format=image_format)
    assert read_settings(write(tmp_path, image)) == without_pixels(image)


@pytest.mark.parametrize("image_format", FORMATS)
def test_sd_parsers_reads_our_files(tmp_path: Path, image_format: str) -> None:
    path = write(tmp_path, make_image(image_format=image_format))
    info = ParserManager().parse(path)
    assert info is not None
    assert [prompt.value for prompt in info.prompts] == ["a red fox in the snow"]
    assert [prompt.value for prompt in info.negative_prompts] == ["blurry"]
    (sampler,) = info.samplers
    assert (sampler.name, sampler.parameters["steps"]) == ("DPM++ 2M Karras", "15")
    assert (sampler.parameters["seed"], info.metadata["Size"]) == ("7", "64x72")
    with Image.open(path) as opened:
        assert opened.size == (64, 72)


@pytest.mark.parametrize("image_format", FORMATS)
def test_files_declare_the_iptc_digital_source_type(tmp_path: Path, image_format: str) -> None:
    path = write(tmp_path, make_image(image_format=image_format))
    assert SOURCE_TYPE in path.read_bytes()
    with Image.open(path) as opened:
        xmp = opened.info.get("xmp") or opened.info["XML:com.adobe.xmp"].encode()
        assert b"DigitalSourceType" in xmp


@pytest.mark.parametrize("image_format", FORMATS)
def test_files_contain_infotext(tmp_path: Path, image_format: str) -> None:
    image = make_image(image_format=image_format, prompt="Füchse, ❄️")
    text = read_text(write(tmp_path, image))["parameters"]
    assert GenerationRequest.from_dict(read_infotext(text).values) == image.request


def test_user_comment_is_utf16_big_endian(tmp_path: Path) -> None:
    with Image.open(write(tmp_path, make_image(image_format="jpeg"))) as opened:
        comment = opened.getexif().get_ifd(0x8769)[0x9286]
    assert comment.startswith(b"UNICODE\0\0a\0 \0r\0e\0d")


def test_files_do_not_contain_the_owner(tmp_path: Path) -> None:
    content = write(tmp_path, make_image(owner="anna-secret")).read_bytes()
    assert b"anna-secret" not in content


def test_transparent_images_can_be_saved_as_jpeg(tmp_path: Path) -> None:
    image = make_image(image=Image.new("RGBA", (64, 72), (255, 0, 0, 128)), image_format="jpeg")
    assert read_settings(write(tmp_path, image)) is not None


def png(tmp_path: Path, **texts: str) -> Path:
    chunks = PngInfo()
    for name, text in texts.items():
        chunks.add_text(name, text)
    Image.new("RGB", (8, 8)).save(tmp_path / "other.png", pnginfo=chunks)
    return tmp_path / "other.png"


def test_old_field_names_are_read_and_new_ones_written(tmp_path: Path) -> None:
    found = read_settings(png(tmp_path, magic_canvas=OLD_CHUNK))
    assert found is not None
    assert (found.request, found.client, found.notes) == (OLD_REQUEST, "gradio", ("n",))
    path = write(tmp_path, replace(found, image=Image.new("RGB", (8, 8))))
    chunk = json.loads(read_text(path)["magic_canvas"])
    assert (chunk["preset"], chunk["backend"]) == ("turbo", "hf-inference")
    assert chunk["client"] == "gradio"
    assert not chunk.keys() & {*OLD_FIELD_NAMES, "channel"}


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '"x"' * 400_000])
def test_malformed_chunks_are_ignored(tmp_path: Path, text: str) -> None:
    assert read_settings(png(tmp_path, magic_canvas=text)) is None


def test_invalid_values_in_a_chunk_become_notes(tmp_path: Path) -> None:
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


def test_a_compressed_text_bomb_is_refused(tmp_path: Path) -> None:
    path = png(tmp_path)
    content = path.read_bytes()
    body = b"zTXtmagic_canvas\0\0" + zlib.compress(b"0" * 50_000_000)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    path.write_bytes(content[:33] + chunk + content[33:])
    with pytest.raises(StorageError, match="cannot be read"):
        read_settings(path)


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n", b"GIF89a" + b"\0" * 50])
def test_other_files_raise(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(StorageError, match="cannot be read"):
        read_settings(path)


def test_huge_numbers_are_ignored(tmp_path: Path) -> None:
    text = f'{{"prompt": "a fox", "seed": 1{"0" * 400}, "width": 1{"0" * 400}}}'
    found = read_settings(png(tmp_path, magic_canvas=text))
    assert found is not None
    assert (found.request.seed, found.request.width) == (-1, None)


def test_pixels_are_needed() -> None:
    with pytest.raises(ValueError, match="without pixels"):
        embed(make_image(image=None))


@pytest.mark.parametrize("length", [7_000, 7_001])
def test_long_prompts_are_shortened_in_the_exif_of_a_jpeg_only(tmp_path: Path, length: int) -> None:
    image = make_image(image_format="jpeg", prompt="x" * length, negative_prompt="y" * 7_000)
    path = write(tmp_path, image)
    values = read_infotext(read_text(path)["parameters"]).values
    assert [len(values[name]) for name in ("prompt", "negative_prompt")] == [7_000, 7_000]
    assert read_settings(path) == without_pixels(image)


def test_gray_jpegs_stay_gray(tmp_path: Path) -> None:
    with Image.open(write(tmp_path, make_image(image=Image.new("L", (64, 72)), image_format="jpeg"))) as opened:
        assert opened.mode == "L"


def exif_of(comment: bytes | str, directory: int | None = 0x8769, **tags: str) -> dict[str, str]:
    """What is read of a JPEG with that UserComment."""
    exif = Image.Exif()
    (exif.get_ifd(directory) if directory else exif)[0x9286] = comment
    exif.update({{"make": 0x010F, "model": 0x0110}[name]: text for name, text in tags.items()})
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "jpeg", exif=exif)
    return read_text(file)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("comment", "text"),
    [
        (b"UNICODE\0" + "Füchse".encode("utf-16-be"), "Füchse"),
        (b"UNICODE\0" + "Füchse".encode(), "Füchse"),
        (b"ASCII\0\0\0a fox\0", "a fox"),
        (b"JIS\0\0\0\0\0" + "狐".encode("iso2022_jp"), "狐"),
        (b"\0" * 8 + b"a fox", "a fox"),
        (b"a fox in the snow", "a fox in the snow"),
        (b"\0" * 8 + "Füchse".encode("latin-1"), "Füchse"),
    ],
)
def test_user_comments_are_decoded_by_their_content(comment: bytes, text: str) -> None:
    assert exif_of(comment) == {"parameters": text}


def test_texts_in_other_tags_are_read() -> None:
    assert exif_of(b"", make="prompt:{}", model="no colon") == {"prompt": "{}"}
    assert exif_of(b"a fox in the snow", None) == {"parameters": "a fox in the snow"}
    assert exif_of(b"") == {}


@pytest.mark.parametrize("name", ["stealth_pnginfo", "stealth_pngcomp", "stealth_unknown"])
def test_text_in_the_alpha_channel_is_read(tmp_path: Path, name: str) -> None:
    text = b"a fox"
    content = gzip.compress(text) if name.endswith("comp") else text
    content = name.encode() + (8 * len(content)).to_bytes(4, "big") + content
    bits = np.unpackbits(np.frombuffer(content, np.uint8))
    alpha = np.full(64 * 32, 254, np.uint8)
    alpha[: len(bits)] += bits
    image = Image.new("RGBA", (64, 32))
    image.putalpha(Image.fromarray(np.ascontiguousarray(alpha.reshape(64, 32).T)))
    image.save(tmp_path / "x.png")
    assert read_text(tmp_path / "x.png") == ({} if name.endswith("unknown") else {"parameters": "a fox"})
    image.convert("RGB").save(tmp_path / "y.png")
    assert read_text(tmp_path / "y.png") == {}


def test_texts_of_more_than_a_million_characters_are_left_out(tmp_path: Path) -> None:
    for length, found in ((MAX_JSON, True), (MAX_JSON + 1, False)):
        assert ("parameters" in read_text(png(tmp_path, parameters="x" * length))) is found
