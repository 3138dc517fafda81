"""Atomic writing of files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from canvas.files import atomic_write


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
