"""Where pictures are imported from: a folder or a ZIP, neither of them trusted."""

from __future__ import annotations

import lzma
import os
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from canvas.errors import StorageError
from canvas.history.export import LINES
from canvas.history.images import PICTURE_SUFFIXES

MAX_FILE = 100_000_000  # bytes of one picture
MAX_ENTRIES = 500_000
MAX_GROWTH = 100  # pictures are compressed already: what grows more is a bomb
MAX_LINE = 2_000_000  # bytes of the settings of one picture


class Source(Protocol):
    """Files by name; `read` and `names` raise StorageError with a sentence for the user."""

    refused: list[str]

    def names(self) -> list[str]:
        """The names of what may be pictures."""

    def read(self, name: str) -> bytes:
        """The content of one."""

    def lines(self) -> Iterator[bytes]:
        """The lines of the `metadata.jsonl` that lies there, if any."""


class FolderSource:
    """All pictures in a folder and the folders in it; links are not followed."""

    def __init__(self, root: Path) -> None:
        self.refused: list[str] = []
        self._root = root
        if not root.is_dir():
            raise StorageError(f"There is no folder {root}. Check the path.")

    def names(self) -> list[str]:
        """Paths from the folder."""
        return sorted(
            path.relative_to(self._root).as_posix()
            for folder, _, files in os.walk(self._root)
            for path in (Path(folder, name) for name in files)
            if path.suffix.lower() in PICTURE_SUFFIXES and not path.is_symlink()
        )

    def read(self, name: str) -> bytes:
        """The file's content."""
        path = self._root / name
        try:
            if path.stat().st_size > MAX_FILE:
                raise StorageError(_too_large(name))
            return path.read_bytes()
        except OSError as error:
            raise StorageError(f"{name}: cannot be read ({error.strerror}).") from error

    def lines(self) -> Iterator[bytes]:
        """The lines of `metadata.jsonl` at the top."""
        path = self._root / LINES
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                yield from _lines(file)


class ZipSource:
    """The pictures in a ZIP; nothing is unpacked to the disk."""

    def __init__(self, path: Path) -> None:
        self.refused: list[str] = []
        try:
            self._archive = zipfile.ZipFile(path)
        except BROKEN as error:
            raise StorageError(f"The file {path.name} is no ZIP, or a broken one.") from error
        try:
            self._check(path)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._archive.close()

    def names(self) -> list[str]:
        """Names of pictures; what would leave a folder is refused."""
        names = []
        for entry in self._archive.infolist():
            if PurePosixPath(entry.filename).suffix.lower() in PICTURE_SUFFIXES:
                if _is_safe(entry):
                    names.append(entry.filename)
                else:
                    self.refused.append(f"{entry.filename[:100]!r}: the name is not allowed.")
        return sorted(names)

    def read(self, name: str) -> bytes:
        """The unpacked content."""
        try:
            if self._archive.getinfo(name).file_size > MAX_FILE:
                raise StorageError(_too_large(name))
            with self._archive.open(name) as file:
                return file.read(MAX_FILE)
        except BROKEN as error:
            raise StorageError(f"{name}: cannot be unpacked ({error}).") from error

    def lines(self) -> Iterator[bytes]:
        """The lines of `metadata.jsonl`."""
        if LINES in self._archive.namelist():
            try:
                with self._archive.open(LINES) as file:
                    yield from _lines(file)
            except BROKEN as error:
                self.refused.append(f"{LINES}: cannot be unpacked ({error}).")

    def _check(self, path: Path) -> None:
        entries = self._archive.infolist()
        if len(entries) > MAX_ENTRIES:
            raise StorageError(f"The ZIP {path.name} holds more than {MAX_ENTRIES:,} files.")
        whole = sum(entry.file_size for entry in entries)
        if whole > MAX_GROWTH * path.stat().st_size:
            raise StorageError(
                f"The ZIP {path.name} would grow to {whole / 1e9:.1f} GB, more than "
                f"{MAX_GROWTH} times its size: these are no pictures."
            )


# What zipfile raises for damaged, encrypted and unknown entries.
BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    EOFError,
    KeyError,
    OSError,
)


def _is_safe(entry: zipfile.ZipInfo) -> bool:
    path = PurePosixPath(entry.filename)
    return not (
        path.is_absolute()
        or ".." in path.parts
        or any(mark in entry.filename for mark in ("\\", ":", "\0"))
        or stat.S_ISLNK(entry.external_attr >> 16)
    )


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    while line := file.readline(MAX_LINE):
        yield line


def _too_large(name: str) -> str:
    return f"{name}: larger than the {MAX_FILE // 1_000_000} MB that a picture may have."
