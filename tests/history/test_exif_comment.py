"""EXIF comments in every encoding are read; exiftool, piexif and sd-parsers read ours."""

from __future__ import annotations

import io
import json
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import piexif
import piexif.helper
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sd_parsers import ParserManager

from canvas.history.metadata import embed
from canvas.history.third_party_metadata import read_metadata

from .conftest import make_image

INFOTEXT = "a lighthouse über 海\nSteps: 22, Sampler: Euler a, CFG scale: 6.5, Seed: 4294967301, Size: 512x768"
UNICODE, ASCII, JIS = b"UNICODE\0", b"ASCII\0\0\0", b"JIS\0\0\0\0\0"
BYTE, UNDEFINED = 1, 7


def exif(comment: bytes, order: str = "MM", kind: int = UNDEFINED) -> bytes:
    """EXIF with a UserComment of that type in the byte order of Motorola or Intel."""
    mark = ">" if order == "MM" else "<"
    header = order.encode() + struct.pack(f"{mark}HI", 42, 8)
    ifd0 = struct.pack(f"{mark}HHHIII", 1, 0x8769, 4, 1, 26, 0)
    directory = struct.pack(f"{mark}HHHIII", 1, 0x9286, kind, len(comment), 44, 0)
    return b"Exif\0\0" + header + ifd0 + directory + comment


def jpeg(content: bytes) -> io.BytesIO:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG", exif=content)
    file.seek(0)
    return file


@pytest.mark.parametrize("kind", [BYTE, UNDEFINED])
@pytest.mark.parametrize("order", ["II", "MM"])
@pytest.mark.parametrize(
    "comment",
    [
        UNICODE + INFOTEXT.encode("utf-16-le"),
        UNICODE + INFOTEXT.encode("utf-16-be"),
        UNICODE + b"\xff\xfe" + INFOTEXT.encode("utf-16-le"),
        UNICODE + b"\xfe\xff" + INFOTEXT.encode("utf-16-be"),
        UNICODE + INFOTEXT.encode(),
        UNICODE + INFOTEXT.encode("utf-16-le") + b"\0\0",
        ASCII + INFOTEXT.encode() + b"\0",
        ASCII + INFOTEXT.encode("utf-16-le"),
        bytes(8) + b"\xef\xbb\xbf" + INFOTEXT.encode(),
        INFOTEXT.encode(),
        JIS + INFOTEXT.replace("ü", "u").encode("iso2022_jp"),
    ],
)
def test_the_content_decides_the_encoding(comment: bytes, order: str, kind: int) -> None:
    values = read_metadata(jpeg(exif(comment, order, kind))).values  # type: ignore[arg-type]
    assert str(values["prompt"]).replace("u", "ü") == "a lighthoüse über 海"
    assert values["seed"] == 4294967301


@given(
    st.text(st.characters(exclude_categories=("Cc", "Cs", "Cn", "Co")), min_size=1, max_size=60),
    st.sampled_from(["utf-16-le", "utf-16-be", "utf-8"]),
)
def test_any_prompt_is_read_in_any_encoding(prompt: str, encoding: str) -> None:
    text = f"{prompt}\nSteps: 22, Sampler: Euler a, CFG scale: 6.5, Seed: 5, Size: 512x768"
    expected = read_metadata(jpeg(exif(UNICODE + text.encode("utf-16-be")))).values  # type: ignore[arg-type]
    assert expected["seed"] == 5
    assert read_metadata(jpeg(exif(UNICODE + text.encode(encoding), "II"))).values == expected  # type: ignore[arg-type]


def test_latin_1_is_read() -> None:
    comment = ASCII + INFOTEXT.replace("海", "").encode("latin-1")
    assert read_metadata(jpeg(exif(comment))).values["prompt"] == "a lighthouse über"  # type: ignore[arg-type]


def own_file(tmp_path: Path, image_format: str) -> Path:
    path = tmp_path / f"image.{image_format}"
    path.write_bytes(embed(make_image(image_format=image_format, prompt="Füchse, 海 ❄️", negative_prompt="")))
    return path


FORMATS = ["png", "jpeg", "webp"]


@pytest.mark.skipif(not shutil.which("exiftool"), reason="exiftool is not installed")
@pytest.mark.parametrize("image_format", FORMATS)
def test_exiftool_reads_our_files(tmp_path: Path, image_format: str) -> None:
    path = own_file(tmp_path, image_format)
    arguments = ["exiftool", "-json", "-validate", "-warning", "-a", "-charset", "utf8", "-UserComment", "-Parameters"]
    result = subprocess.run([*arguments, path], capture_output=True, text=True, encoding="utf-8", check=True)
    assert result.stderr == ""
    [found] = json.loads(result.stdout)
    text = found["Parameters" if image_format == "png" else "UserComment"]
    assert text.startswith(("Füchse, 海 ❄️\nSteps: ", "Füchse, 海 ❄️.Steps: "))  # it prints line ends as dots
    warnings = [str(text) for name, text in found.items() if "Warning" in name]
    # Minor: our own segment, and tags that the standard requires of cameras
    assert [text for text in warnings if not text.startswith(("[minor]", "Missing required"))] == []


@pytest.mark.parametrize("image_format", ["jpeg", "webp"])
def test_piexif_reads_our_files(tmp_path: Path, image_format: str) -> None:
    tags: dict[str, Any] = piexif.load(str(own_file(tmp_path, image_format)))
    comment = piexif.helper.UserComment.load(tags["Exif"][piexif.ExifIFD.UserComment])
    assert comment.startswith("Füchse, 海 ❄️\nSteps: ")


@pytest.mark.parametrize("image_format", ["jpeg", "webp"])
def test_the_comment_has_the_type_undefined(tmp_path: Path, image_format: str) -> None:
    content = own_file(tmp_path, image_format).read_bytes()
    entry = content.index(struct.pack(">HH", 0x9286, UNDEFINED))
    assert content[entry:].find(UNICODE) > 0


@pytest.mark.parametrize("image_format", FORMATS)
def test_sd_parsers_reads_our_files(tmp_path: Path, image_format: str) -> None:
    info = ParserManager().parse(own_file(tmp_path, image_format))
    assert info is not None
    assert [prompt.value for prompt in info.prompts] == ["Füchse, 海 ❄️"]
    assert (info.samplers[0].parameters["seed"], info.metadata["Size"]) == ("7", "64x72")
