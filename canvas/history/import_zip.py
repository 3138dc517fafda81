"""Imports images from a folder or a ZIP, with the settings they contain."""

from __future__ import annotations

import io
import lzma
import os
import secrets
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO, Any

from canvas.errors import StorageError
from canvas.history.database import Database
from canvas.history.export_zip import IMAGES_FOLDER, METADATA_JSONL
from canvas.history.image_files import FILENAME_PATTERN, ImageStorage
from canvas.history.metadata import open_image, read_settings
from canvas.history.rows import image_from_dict, parse_json_object
from canvas.history.third_party_metadata import read_metadata
from canvas.image_formats import IMAGE_FORMATS, IMAGE_SUFFIXES
from canvas.request import GeneratedImage

MAX_FILE_BYTES = 100_000_000  # of one image
MAX_ENTRIES = 500_000
MAX_COMPRESSION_RATIO = 100  # images are compressed already: more is a ZIP bomb
MAX_LINE = 2_000_000  # bytes of the settings of one image
MAX_PIXELS = 8192 * 8192
MAX_ERRORS = 100
UTF8_NAME = 0x800  # the flag of an entry whose name is in UTF-8

# What zipfile raises for damaged, encrypted and unsupported entries.
ZIP_ERRORS = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError,
    NotImplementedError, RuntimeError, ValueError, EOFError, KeyError, OSError,
)  # fmt: skip


class FolderSource:
    """The images in a folder and its subfolders; links are not followed.

    `names` and `read` raise StorageError; `errors` collects what was skipped.
    """

    prefix = ""  # of the names, where an export is

    def __init__(self, root: Path) -> None:
        self.errors: list[str] = []
        self._root = root
        if not root.is_dir():
            raise StorageError(f"There is no folder {root}. Check the path.")

    def names(self) -> list[str]:
        paths = (Path(folder, file) for folder, _, files in os.walk(self._root) for file in files)
        names = filter(_is_image, (path.relative_to(self._root).as_posix() for path in paths))
        return sorted(name for name in names if not (self._root / name).is_symlink())

    def read(self, name: str) -> bytes:
        path = self._root / name
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                raise StorageError(_too_large(name))
            return path.read_bytes()
        except OSError as error:
            raise StorageError(f"{name}: cannot be read ({error.strerror}).") from error

    def lines(self) -> Iterator[bytes]:
        path = self._root / METADATA_JSONL
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                yield from _read_lines(file)


class FileSource(FolderSource):
    """Like FolderSource for one image file."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.parent)
        self._name = path.name

    def names(self) -> list[str]:
        if _is_image(self._name):
            return [self._name]
        self.errors.append(f"{self._name}: is neither an image nor a ZIP.")
        return []

    def lines(self) -> Iterator[bytes]:
        return iter(())


class ZipSource:
    """Like FolderSource for a ZIP, which is not unpacked to disk."""

    def __init__(self, path: Path) -> None:
        self.errors: list[str] = []
        self._entries: dict[str, zipfile.ZipInfo] = {}
        try:
            self._archive = zipfile.ZipFile(path)
        except ZIP_ERRORS as error:
            raise StorageError(f"The file {path.name} is not a ZIP, or is damaged.") from error
        try:
            self._check_size(path)
        except BaseException:
            self.close()
            raise
        for entry in self._archive.infolist():
            name = _portable_name(entry)
            if name in self._entries and self._entries[name].filename != entry.filename:
                name = f"{len(self._entries)}/{name}"  # both of `a/b.png` and `a\\b.png`
            self._entries[name] = entry
        # An export that was unpacked and packed again is in a folder.
        lists = [name for name in self._entries if PurePosixPath(name).name == METADATA_JSONL]
        self.prefix = min(lists, key=len, default="").removesuffix(METADATA_JSONL)

    def close(self) -> None:
        self._archive.close()

    def names(self) -> list[str]:
        names = []
        for name in filter(_is_image, self._entries):
            if _is_safe(name, self._entries[name]):
                names.append(name)
            else:
                self.errors.append(f"{name[:100]!r}: the name is not allowed.")
        return sorted(names)

    def read(self, name: str) -> bytes:
        try:
            entry = self._entries[name]
            if entry.file_size > MAX_FILE_BYTES:
                raise StorageError(_too_large(name))
            with self._archive.open(entry) as file:
                return file.read(MAX_FILE_BYTES)
        except ZIP_ERRORS as error:
            raise StorageError(f"{name}: cannot be unpacked ({error}).") from error

    def lines(self) -> Iterator[bytes]:
        entry = self._entries.get(self.prefix + METADATA_JSONL)
        if entry is not None:
            try:
                with self._archive.open(entry) as file:
                    yield from _read_lines(file)
            except ZIP_ERRORS as error:
                self.errors.append(f"{METADATA_JSONL}: cannot be unpacked ({error}).")

    def _check_size(self, path: Path) -> None:
        entries = self._archive.infolist()
        if len(entries) > MAX_ENTRIES:
            raise StorageError(f"The ZIP {path.name} contains more than {MAX_ENTRIES:,} files.")
        size = sum(entry.file_size for entry in entries)
        if size > MAX_COMPRESSION_RATIO * path.stat().st_size:
            raise StorageError(
                f"The ZIP {path.name} would unpack to {size / 1e9:.1f} GB, more than "
                f"{MAX_COMPRESSION_RATIO} times its size: it does not contain images."
            )


def _portable_name(entry: zipfile.ZipInfo) -> str:
    """The name of an entry as it was where the ZIP was made.

    Old Windows programs write backslashes. macOS and others write UTF-8 without the flag that
    says so; `zipfile` reads that as code page 437.
    """
    name = entry.filename
    if not entry.flag_bits & UTF8_NAME:
        with suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return name.replace("\\", "/")


def _is_image(name: str) -> bool:
    """Whether the name is that of an image; macOS adds `._` files with the attributes of each."""
    path = PurePosixPath(name)
    hidden = path.name.startswith("._") or "__MACOSX" in path.parts
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden


def _is_safe(name: str, entry: zipfile.ZipInfo) -> bool:
    path = PurePosixPath(name)
    return not (
        path.is_absolute()
        or ".." in path.parts
        or any(character in name for character in (":", "\0"))
        or stat.S_ISLNK(entry.external_attr >> 16)
    )


def _read_lines(file: IO[bytes]) -> Iterator[bytes]:
    while line := file.readline(MAX_LINE):
        yield line


def _too_large(name: str) -> str:
    return f"{name}: images must be at most {MAX_FILE_BYTES // 1_000_000} MB."


@dataclass(frozen=True)
class ImportResult:
    """The number of new images, of those stored already, and why others were refused."""

    added: int
    duplicates: int
    errors: tuple[str, ...] = ()


def import_folder(database: Database, storage: ImageStorage, path: Path, owner: str) -> ImportResult:
    """Copy the images of a folder; raises StorageError if there is no such folder."""
    return _Import(database, storage, FolderSource(path), owner).run()


def import_zip(database: Database, storage: ImageStorage, path: Path, owner: str) -> ImportResult:
    """Import the images of a ZIP, as `export_zip` makes it or any other; raises StorageError."""
    with closing(ZipSource(path)) as source:
        return _Import(database, storage, source, owner).run()


def import_files(database: Database, storage: ImageStorage, paths: Iterable[Path], owner: str) -> ImportResult:
    """Import image files and the images of ZIPs; what cannot be read is among the errors."""
    added = duplicates = 0
    errors: list[str] = []
    for path in paths:
        try:
            if path.suffix.lower() == ".zip":
                result = import_zip(database, storage, path, owner)
            else:
                result = _Import(database, storage, FileSource(path), owner).run()
        except StorageError as error:
            errors.append(str(error))
            continue
        added, duplicates, errors = added + result.added, duplicates + result.duplicates, [*errors, *result.errors]
    return ImportResult(added, duplicates, tuple(errors[:MAX_ERRORS]))


@dataclass
class _Import:
    database: Database
    storage: ImageStorage
    source: FolderSource | ZipSource
    owner: str
    added: int = 0
    duplicates: int = 0
    new_ids: dict[int, int] = field(default_factory=dict)  # by the ids in `metadata.jsonl`

    def run(self) -> ImportResult:
        # In a new data folder the images keep their ids.
        keep_ids = not self.database.rows("SELECT 1 FROM sqlite_sequence WHERE name = 'generated_images'")
        names = dict.fromkeys(self.source.names())
        for line in self.source.lines():
            record = parse_json_object(line)
            name = f"{self.source.prefix}{IMAGES_FOLDER}/{record.get('filename')}"
            if name in names:
                del names[name]
                self._import_one(name, record, keep_ids)
        for name in names:
            self._import_one(name, {}, False)
        errors = self.source.errors
        if len(errors) > MAX_ERRORS:
            errors = [*errors[:MAX_ERRORS], f"… and {len(errors) - MAX_ERRORS} more."]
        return ImportResult(self.added, self.duplicates, tuple(errors))

    def _import_one(self, name: str, record: Mapping[str, Any], keep_id: bool) -> None:
        try:
            content = self.source.read(name)
            image = self._find_duplicate(name, content)
            if image is None:
                image = image_from_file(content, record, PurePosixPath(name).name)
                image = self._add(image, name, content, keep_id)
                self.added += 1
            else:
                self.duplicates += 1
        except StorageError as error:
            self.source.errors.append(str(error))
            return
        old_id = record.get("id")
        if isinstance(old_id, int) and image.id is not None:
            self.new_ids[old_id] = image.id

    def _find_duplicate(self, name: str, content: bytes) -> GeneratedImage | None:
        """The owner's image with the same random name, or with the same content."""
        file = PurePosixPath(name)
        if FILENAME_PATTERN.fullmatch(file.name):
            # A copy in another format has the same name but for its suffix.
            for image_format in IMAGE_FORMATS.values():
                image = self.database.image_by_filename(file.stem + image_format.suffix)
                if image and image.owner == self.owner and self.storage.find(image.filepath, image.filename):
                    return image
        same_size = self.database.rows(
            "SELECT id FROM generated_images WHERE file_size = ? AND +owner = ?", [len(content), self.owner]
        )
        for row in same_size:
            image = self.database.image(row["id"])
            path = self.storage.find(image.filepath, image.filename) if image else None
            if path and path.read_bytes() == content:
                return image
        return None

    def _add(self, image: GeneratedImage, name: str, content: bytes, keep_id: bool) -> GeneratedImage:
        filename = PurePosixPath(name).name
        suffix = IMAGE_FORMATS[image.request.image_format].suffix
        is_ours = FILENAME_PATTERN.fullmatch(filename) and filename.endswith(suffix)
        if not is_ours or self.database.image_by_filename(filename):
            filename = secrets.token_hex(16) + suffix
        parent_id = self.new_ids.get(image.parent_id) if image.parent_id is not None else None
        keep_id = keep_id and bool(image.id) and not self.database.image(image.id or 0)
        image = replace(
            image, id=image.id if keep_id else None, filename=filename, owner=self.owner, parent_id=parent_id
        )
        saved = self.storage.add(image, content)
        self.storage.thumbnail(saved)
        return self.database.save_image(saved)


def image_from_file(content: bytes, record: Mapping[str, Any], name: str) -> GeneratedImage:
    """An image with the settings of the record, or else of the file; raises StorageError."""
    with open_image(io.BytesIO(content), name) as pixels:
        size, image_format = pixels.size, str(pixels.format).lower()
        if size[0] * size[1] > MAX_PIXELS:
            raise StorageError(f"{name}: images must have at most {MAX_PIXELS:,} pixels (got {size[0]} × {size[1]}).")
        pixels.load()
    image = image_from_dict(record) if record else read_settings(io.BytesIO(content))
    if image is None:
        image = _from_third_party(content, name, size)
    return replace(image, request=replace(image.request, image_format=image_format))


def _from_third_party(content: bytes, name: str, size: tuple[int, int]) -> GeneratedImage:
    settings = read_metadata(io.BytesIO(content))
    values = dict(settings.values)
    if "width" not in values and all(side % 8 == 0 and 64 <= side <= 4096 for side in size):
        values["width"], values["height"] = size
    program = f", made by {settings.program}" if settings.program else ""
    return image_from_dict(
        {
            **values,
            "prompt": values.get("prompt") or "(no prompt)",
            "notes": [f"Imported from {name}{program}.", *settings.warnings],
            "created_at": datetime.now(UTC),
        }
    )
