from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canvas.text_files import decode_text, read_text_file, split_lines

TEXT = "a fox\r\nune forêt, 森\n"
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_utf_8_and_utf_16_are_read(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(TEXT.encode(encoding))
    assert read_text_file(path) == TEXT


def test_utf_16_big_endian_with_a_mark_is_read() -> None:
    assert decode_text(b"\xfe\xff" + TEXT.encode("utf-16-be")) == TEXT


@given(st.text(st.characters(exclude_categories=("Cc", "Cs", "Cn", "Co"))), st.sampled_from(ENCODINGS))
def test_any_text_with_words_is_read(text: str, encoding: str) -> None:
    text = f"some words {text} and more words"
    assert decode_text(text.encode(encoding)) == text.removeprefix("\ufeff")


def test_other_encodings_are_errors() -> None:
    with pytest.raises(UnicodeDecodeError):
        decode_text("une forêt".encode("latin-1"))


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1e"])
def test_only_line_feeds_and_carriage_returns_end_a_line(separator: str) -> None:
    assert split_lines(f"a{separator}b\r\nc\rd\ne") == [f"a{separator}b", "c", "d", "e"]
