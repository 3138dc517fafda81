"""Atomic writing of files, and reading of text in an unknown encoding."""

from __future__ import annotations

import os
import re
import secrets
import unicodedata
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

PART_SUFFIX = ".part"
BYTE_ORDER_MARKS = {BOM_UTF8: "utf-8", BOM_UTF16_LE: "utf-16-le", BOM_UTF16_BE: "utf-16-be"}
LINE_END = re.compile(r"\r\n|\n|\r")
# Categories of code points that do not occur in text: control, private use, surrogate, unassigned.
NOT_TEXT = ("Cc", "Co", "Cs", "Cn")


@contextmanager
def atomic_write(path: Path, *, durable: bool = False) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces `path` when the block ends without an exception.

    It is in the same folder, which must exist, and hidden; its name ends in `.part`. An exception
    deletes it and leaves `path` unchanged. `durable` also waits until everything is on the disk
    (fsync). Raises OSError.
    """
    part = path.with_name(f".{secrets.token_hex(8)}{PART_SUFFIX}")
    try:
        with part.open("xb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
    if durable and os.name == "posix":  # Windows cannot open directories
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_text_file(path: Path) -> str:
    """`decode_text` of a file; raises OSError or UnicodeDecodeError."""
    return decode_text(path.read_bytes())


def decode_text(content: bytes) -> str:
    """Decode UTF-8, or UTF-16 of either byte order, with or without a byte order mark.

    Raises UnicodeDecodeError for other encodings.
    """
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if content.startswith(mark):
            return content.removeprefix(mark).decode(encoding)
    unpadded = content.rstrip(b"\0")
    try:
        text = unpadded.decode("utf-8")
    except UnicodeDecodeError:
        if b"\0" in unpadded:
            return decode_utf16(content)
        raise
    # UTF-16 of Western text is valid UTF-8 in which almost every second byte is zero.
    return decode_utf16(content) if unpadded.count(b"\0") * 5 > len(unpadded) else text


def decode_utf16(content: bytes) -> str:
    """Decode UTF-16 in the byte order that gives more likely text; raises UnicodeDecodeError."""
    even = content[: len(content) // 2 * 2]
    encoding = max(("utf-16-be", "utf-16-le"), key=lambda name: _likelihood(even.decode(name, "replace")))
    return even.decode(encoding).removeprefix("\ufeff").rstrip("\0")


def split_lines(text: str) -> list[str]:
    """The lines of a text; unlike `str.splitlines`, U+2028, form feeds and others do not end a line."""
    return LINE_END.split(text)


def _likelihood(text: str) -> int:
    """ASCII characters count for a text, code points that do not occur in text against it."""
    return sum(
        1 if " " <= character <= "~" or character in "\n\r\t" else -2 * (unicodedata.category(character) in NOT_TEXT)
        for character in text
    )
