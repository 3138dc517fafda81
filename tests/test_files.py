"""Atomic writing of files, and reading of text in an unknown encoding."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canvas.files import atomic_write, decode_text, read_text_file, split_lines

TEXT = "a fox\r\nune forêt, 森\n"
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"]


@pytest.mark.parametrize(("durable", "syncs"), [(False, 0), (True, 2)])
def test_a_file_appears_when_it_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool, syncs: int
) -> None:
    """A durable one is synced, and so is its folder."""
    calls: list[int] = []
    monkeypatch.setattr(os, "fsync", calls.append)
    path = tmp_path / "a.txt"
    with atomic_write(path, durable=durable) as file:
        file.write(b"new")
        assert not path.exists()
        assert [part.name[0] + part.suffix for part in tmp_path.iterdir()] == ["..part"]
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]
    assert len(calls) == syncs


def test_files_are_not_synced_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: pytest.fail("synced"))
    with atomic_write(tmp_path / "a.txt") as file:
        file.write(b"new")


def test_an_error_leaves_the_old_file_and_no_part(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")

    def write_half() -> None:
        with atomic_write(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


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
