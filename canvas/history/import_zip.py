"""Pictures from a folder or a ZIP, with whatever they say of themselves."""

from __future__ import annotations

import io
import json
import lzma
import os
import secrets
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

from canvas.errors import NotFound, StorageError
from canvas.history.database import Database
from canvas.history.export_zip import FOLDER, LINES
from canvas.history.image_files import IMAGE_SUFFIXES, OWN_NAME, SUFFIXES, ImageStorage
from canvas.history.metadata import open_picture, read_settings
from canvas.history.rows import image_from_dict
from canvas.history.third_party_metadata import read_metadata
from canvas.request import GeneratedImage

MAX_FILE_BYTES = 100_000_000  # bytes of one picture
MAX_ENTRIES = 500_000
MAX_COMPRESSION_RATIO = 100  # pictures are compressed already: what grows more is a bomb
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
            if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_symlink()
        )

    def read(self, name: str) -> bytes:
        """The file's content."""
        path = self._root / name
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
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
        except ZIP_ERRORS as error:
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
            if PurePosixPath(entry.filename).suffix.lower() in IMAGE_SUFFIXES:
                if _is_safe(entry):
                    names.append(entry.filename)
                else:
                    self.refused.append(f"{entry.filename[:100]!r}: the name is not allowed.")
        return sorted(names)

    def read(self, name: str) -> bytes:
        """The unpacked content."""
        try:
            if self._archive.getinfo(name).file_size > MAX_FILE_BYTES:
                raise StorageError(_too_large(name))
            with self._archive.open(name) as file:
                return file.read(MAX_FILE_BYTES)
        except ZIP_ERRORS as error:
            raise StorageError(f"{name}: cannot be unpacked ({error}).") from error

    def lines(self) -> Iterator[bytes]:
        """The lines of `metadata.jsonl`."""
        if LINES in self._archive.namelist():
            try:
                with self._archive.open(LINES) as file:
                    yield from _lines(file)
            except ZIP_ERRORS as error:
                self.refused.append(f"{LINES}: cannot be unpacked ({error}).")

    def _check(self, path: Path) -> None:
        entries = self._archive.infolist()
        if len(entries) > MAX_ENTRIES:
            raise StorageError(f"The ZIP {path.name} holds more than {MAX_ENTRIES:,} files.")
        whole = sum(entry.file_size for entry in entries)
        if whole > MAX_COMPRESSION_RATIO * path.stat().st_size:
            raise StorageError(
                f"The ZIP {path.name} would grow to {whole / 1e9:.1f} GB, more than "
                f"{MAX_COMPRESSION_RATIO} times its size: these are no pictures."
            )


# What zipfile raises for damaged, encrypted and unknown entries.
ZIP_ERRORS = (
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
    return f"{name}: larger than the {MAX_FILE_BYTES // 1_000_000} MB that a picture may have."


MAX_PIXELS = 8192 * 8192
MAX_ERRORS = 100


@dataclass(frozen=True)
class ImportResult:
    """How many pictures were new, how many were here already, and why others were refused."""

    added: int
    duplicates: int
    refused: tuple[str, ...] = ()


def import_folder(store: Database, folder: ImageStorage, path: Path, owner: str) -> ImportResult:
    """Copy the pictures of a folder; raises StorageError when there is none."""
    return _Import(store, folder, FolderSource(path), owner).run()


def import_zip(store: Database, folder: ImageStorage, path: Path, owner: str) -> ImportResult:
    """Take the pictures of a ZIP, such as `export_zip` makes; raises StorageError for a bomb."""
    with closing(ZipSource(path)) as source:
        return _Import(store, folder, source, owner).run()


@dataclass
class _Import:
    store: Database
    folder: ImageStorage
    source: Source
    owner: str
    added: int = 0
    duplicates: int = 0
    new_ids: dict[int, int] = field(default_factory=dict)  # by the ids of where they come from

    def run(self) -> ImportResult:
        # In a fresh data folder the pictures keep their numbers.
        keep_ids = not self.store.rows(
            "SELECT 1 FROM sqlite_sequence WHERE name = 'generated_images'"
        )
        names = self.source.names()
        waiting = dict.fromkeys(names)
        for line in self.source.lines():
            record = _record(line)
            name = f"{FOLDER}/{record.get('filename')}"
            if name in waiting:
                del waiting[name]
                self._take(name, record, keep_ids)
        for name in waiting:
            self._take(name, {}, False)
        refused = self.source.refused
        if len(refused) > MAX_ERRORS:
            more = len(refused) - MAX_ERRORS
            refused = [*refused[:MAX_ERRORS], f"… and {more} more."]
        return ImportResult(self.added, self.duplicates, tuple(refused))

    def _take(self, name: str, record: Mapping[str, Any], keep_id: bool) -> None:
        try:
            content = self.source.read(name)
            known = self._known(name, content)
            if known is None:
                image = image_from_file(content, record, PurePosixPath(name).name)
                known = self._add(image, name, content, keep_id)
                self.added += 1
            else:
                self.duplicates += 1
        except StorageError as error:
            self.source.refused.append(str(error))
            return
        old_id = record.get("id")
        if isinstance(old_id, int) and known.id is not None:
            self.new_ids[old_id] = known.id

    def _known(self, name: str, content: bytes) -> GeneratedImage | None:
        """The owner's picture with the same name of ours, or with the same content."""
        file = PurePosixPath(name)
        if OWN_NAME.fullmatch(file.name):
            # The name is random: a converted copy is the same picture.
            for suffix in SUFFIXES.values():
                image = self.store.image_by_filename(file.stem + suffix)
                if image is not None and image.owner == self.owner and self._lies_here(image):
                    return image
        same_size = self.store.rows(
            "SELECT id FROM generated_images WHERE file_size = ? AND +owner = ?",
            [len(content), self.owner],
        )
        for row in same_size:
            image = self.store.image(row["id"])
            if image is None or not self._lies_here(image):
                continue
            if self.folder.path_of(image).read_bytes() == content:
                return image
        return None

    def _lies_here(self, image: GeneratedImage) -> bool:
        try:
            return self.folder.path_of(image).is_file()
        except NotFound:
            return False

    def _add(
        self, image: GeneratedImage, name: str, content: bytes, keep_id: bool
    ) -> GeneratedImage:
        filename = PurePosixPath(name).name
        suffix = SUFFIXES[image.request.image_format]
        is_ours = OWN_NAME.fullmatch(filename) and filename.endswith(suffix)
        if not is_ours or self.store.image_by_filename(filename):
            filename = secrets.token_hex(16) + suffix
        parent = self.new_ids.get(image.parent_id) if image.parent_id is not None else None
        image = replace(
            image,
            id=image.id if keep_id and image.id and not self.store.image(image.id) else None,
            filename=filename,
            owner=self.owner,
            parent_id=parent,
        )
        saved = self.folder.add(image, content)
        self.folder.thumbnail(saved)
        return self.store.record(saved)


def _record(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def image_from_file(content: bytes, record: Mapping[str, Any], name: str) -> GeneratedImage:
    """What the record, or else the file itself says; raises StorageError for what is no picture."""
    with open_picture(io.BytesIO(content), name) as picture:
        size, image_format = picture.size, str(picture.format).lower()
        if size[0] * size[1] > MAX_PIXELS:
            raise StorageError(
                f"{name}: {size[0]} × {size[1]} pixels are too many; {MAX_PIXELS:,} are allowed."
            )
        picture.load()
    image = image_from_dict(record) if record else read_settings(io.BytesIO(content))
    if image is None:
        image = _from_third_party(content, name, size)
    return replace(image, request=replace(image.request, image_format=image_format))


def _from_third_party(content: bytes, name: str, size: tuple[int, int]) -> GeneratedImage:
    found = read_metadata(io.BytesIO(content))
    values = dict(found.values)
    if "width" not in values and all(side % 8 == 0 and 64 <= side <= 4096 for side in size):
        values["width"], values["height"] = size
    source = f"Imported from {name}" + (f", made by {found.program}." if found.program else ".")
    return image_from_dict(
        {
            **values,
            "prompt": values.get("prompt") or "(no prompt)",
            "notes": [source, *found.warnings],
            "created_at": datetime.now(UTC),
        }
    )
