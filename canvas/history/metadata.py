"""Reads and writes the settings inside image files."""

from __future__ import annotations

import html
import io
import json
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from canvas.errors import StorageError
from canvas.files import decode_text, decode_utf16
from canvas.history.infotext import write_infotext
from canvas.history.rows import image_from_dict, parse_json_object
from canvas.request import GeneratedImage

CHUNK = "magic_canvas"
MAX_JSON = 1_000_000  # characters
MAX_ALPHA_PIXELS = 5_000_000
# The character codes of an EXIF UserComment.
UNICODE_CODE, ASCII_CODE, JIS_CODE, NO_CODE = b"UNICODE\0", b"ASCII\0\0\0", b"JIS\0\0\0\0\0", b"\0" * 8
EXIF_UNDEFINED = 7  # the type of a UserComment
SEGMENT_PREFIX = b"magic_canvas\0"
SEGMENT_SIZE = 60_000  # a JPEG segment holds 65,533 bytes
SHORT_PROMPT = 7_000  # two of these fit into a segment in UTF-16, even of four-byte characters

XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about=""
 xmlns:xmp="http://ns.adobe.com/xap/1.0/"
 xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">
<xmp:CreatorTool>Magic Canvas</xmp:CreatorTool>
<Iptc4xmpExt:DigitalSourceType>\
http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia\
</Iptc4xmpExt:DigitalSourceType>{settings}
</rdf:Description>
</rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>"""
XMP_SETTINGS = '\n<canvas:settings xmlns:canvas="urn:magic-canvas:1">{}</canvas:settings>'
XMP_SETTINGS_PATTERN = re.compile(r"<canvas:settings[^>]*>([^<]*)</canvas:settings>")

XMP_COMMENT = re.compile(r"<exif:UserComment>\s*<rdf:Alt>\s*<rdf:li[^>]*>([^<]*)</rdf:li>")


def embed(image: GeneratedImage) -> bytes:
    """Encode an image in the format of its request, with all settings inside."""
    if image.image is None:
        raise ValueError("an image without pixels cannot be encoded")
    pixels, image_format = image.image, image.request.image_format
    if image_format == "jpeg" and pixels.mode not in ("RGB", "L"):
        pixels = pixels.convert("RGB")
    content = io.BytesIO()
    pixels.save(content, image_format, **_save_options(image))
    return content.getvalue()


def read_settings(source: Path | IO[bytes]) -> GeneratedImage | None:
    """The image that `embed` wrote, without decoding its pixels; None for other files.

    Raises StorageError for a file that is not an image.
    """
    with open_image(source) as image:
        text = _own_text(image)
    values = parse_json_object(text)
    return image_from_dict(values) if values else None


def read_text(source: Path | IO[bytes]) -> dict[str, str]:
    """The texts in a file by name, infotext as `parameters`; texts above MAX_JSON are left out.

    Only the pixels of a PNG with an alpha channel and without texts are decoded.
    """
    with open_image(source) as image:
        texts = {
            str(name): str(value)
            for name, value in image.info.items()
            if isinstance(value, str) and len(value) <= MAX_JSON
        }
        exif = image.getexif()
        found = {**_xmp_texts(image.info.get("xmp") or b""), **_exif_texts(exif), **texts}
        return found or _alpha_texts(image)


@contextmanager
def open_image(source: Path | IO[bytes], name: str = "") -> Iterator[Image.Image]:
    """Open a PNG, JPEG or WebP without decoding it; errors in the block raise StorageError."""
    try:
        with Image.open(source, formats=("PNG", "JPEG", "WEBP")) as image:
            yield image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        # Pillow's sentence would name the Python object that it reads from.
        reason = "not a PNG, JPEG or WebP" if isinstance(error, UnidentifiedImageError) else error
        file = name or (source if isinstance(source, Path) else "file")
        raise StorageError(f"The image {file} cannot be read ({reason}). Check the file, or remove it.") from error


def _save_options(image: GeneratedImage) -> dict[str, Any]:
    settings = json.dumps(image.settings(), allow_nan=False)
    request = image.request
    if request.image_format == "png":
        chunks = PngInfo()
        chunks.add_text("parameters", write_infotext(image))
        chunks.add_text(CHUNK, settings)
        chunks.add_itxt("XML:com.adobe.xmp", XMP.format(settings=""))
        return {"pnginfo": chunks}
    if request.image_format == "jpeg":
        return {
            "quality": request.quality,
            "exif": _exif(_short_infotext(image)),
            "xmp": XMP.format(settings="").encode(),
            "extra": _segments(settings),
        }
    return {
        "quality": request.quality,
        "exif": _exif(write_infotext(image)),
        "xmp": XMP.format(settings=XMP_SETTINGS.format(html.escape(settings))).encode(),
    }


def _exif(infotext: str) -> bytes:
    """EXIF with the UserComment alone. Pillow would write it with the type BYTE, which readers reject."""
    comment = UNICODE_CODE + infotext.encode("utf-16-be")
    header = struct.pack(">2sHI", b"MM", 42, 8)
    # Each directory: number of entries; tag, type, count, value or its offset; offset of the next one.
    ifd0 = struct.pack(">HHHIII", 1, ExifTags.IFD.Exif, 4, 1, 26, 0)
    exif_ifd = struct.pack(">HHHIII", 1, ExifTags.Base.UserComment, EXIF_UNDEFINED, len(comment), 44, 0)
    return b"Exif\0\0" + header + ifd0 + exif_ifd + comment


def _short_infotext(image: GeneratedImage) -> str:
    """Infotext with prompts shortened to fit a JPEG segment; our own chunk holds them all."""
    request = image.request
    if len(request.prompt) + len(request.negative_prompt) > 2 * SHORT_PROMPT:
        request = replace(
            request, prompt=request.prompt[:SHORT_PROMPT], negative_prompt=request.negative_prompt[:SHORT_PROMPT]
        )
    return write_infotext(replace(image, request=request))


def _segments(settings: str) -> bytes:
    """The compressed settings, split into APP9 segments."""
    packed = zlib.compress(settings.encode())
    segments = b""
    for start in range(0, len(packed), SEGMENT_SIZE):
        part = SEGMENT_PREFIX + packed[start : start + SEGMENT_SIZE]
        segments += b"\xff\xe9" + (len(part) + 2).to_bytes(2, "big") + part
    return segments


def _own_text(image: Image.Image) -> str:
    if image.format == "PNG":
        text = image.info.get(CHUNK, "")
        return str(text) if len(text) <= MAX_JSON else ""
    if image.format == "JPEG":
        return _unpack(
            b"".join(
                data.removeprefix(SEGMENT_PREFIX)
                for name, data in getattr(image, "applist", ())
                if name == "APP9" and data.startswith(SEGMENT_PREFIX)
            )
        )
    match = XMP_SETTINGS_PATTERN.search(image.info.get("xmp", b"")[: 2 * MAX_JSON].decode("utf-8", "replace"))
    return html.unescape(match[1]) if match else ""


def _unpack(packed: bytes) -> str:
    try:
        return zlib.decompressobj().decompress(packed, MAX_JSON).decode("utf-8", "replace")
    except zlib.error:
        return ""


def _exif_texts(exif: Image.Exif) -> dict[str, str]:
    texts = {}
    # ComfyUI writes `name:text` into these two tags.
    for tag in (ExifTags.Base.Make, ExifTags.Base.Model):
        name, colon, text = str(exif.get(tag, "")).partition(":")
        if colon and len(text) <= MAX_JSON:
            texts[name] = text.strip("\0")
    # Fooocus writes the comment into the main directory.
    for directory in (exif, exif.get_ifd(ExifTags.IFD.Exif)):
        comment = directory.get(ExifTags.Base.UserComment, b"")
        if isinstance(comment, str):  # of the type ASCII, which Pillow decodes as Latin-1
            comment = comment.encode("latin-1", "replace")
        if isinstance(comment, bytes) and 0 < len(comment) <= MAX_JSON:
            texts["parameters"] = _decode_comment(comment)
    return {name: text for name, text in texts.items() if text}


def _xmp_texts(xmp: bytes | str) -> dict[str, str]:
    """The UserComment in XMP, as Draw Things writes it."""
    text = xmp[: 2 * MAX_JSON].decode("utf-8", "replace") if isinstance(xmp, bytes) else xmp[:MAX_JSON]
    match = XMP_COMMENT.search(text)
    return {"parameters": html.unescape(match[1]).strip()} if match else {}


def _alpha_texts(image: Image.Image) -> dict[str, str]:
    """Text in the lowest bits of the alpha channel, by NovelAI and the extension "stealth pnginfo".

    The bits of each column from top to bottom: a name, the length in bits, then the text.
    """
    if image.format != "PNG" or image.mode != "RGBA" or image.width * image.height > MAX_ALPHA_PIXELS:
        return {}
    content = np.packbits(np.asarray(image.getchannel("A")).T.reshape(-1) & 1).tobytes()
    name, start = content[:15], 15 + 4
    if name not in (b"stealth_pnginfo", b"stealth_pngcomp"):
        return {}
    text = content[start : start + int.from_bytes(content[15:start], "big") // 8]
    if name == b"stealth_pngcomp":
        try:
            text = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16).decompress(text, MAX_JSON)
        except zlib.error:
            return {}
    return {"parameters": text.decode("utf-8", "replace")}


def _decode_comment(comment: bytes) -> str:
    """A UserComment. Its character code is often wrong, so the content decides the encoding."""
    code, content = comment[:8], comment[8:]
    if code not in (UNICODE_CODE, ASCII_CODE, JIS_CODE, NO_CODE):
        content = comment
    encodings: list[Callable[[bytes], str]] = [decode_text]
    if code == JIS_CODE:
        encodings.insert(0, lambda text: text.decode("iso2022_jp"))
    elif code == UNICODE_CODE:
        encodings.append(decode_utf16)
    for decode in encodings:
        with suppress(UnicodeDecodeError):
            return decode(content).strip("\0")
    return content.decode("latin-1").strip("\0")
