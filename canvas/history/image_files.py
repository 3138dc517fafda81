"""Image files and thumbnails in the `outputs` folder."""

from __future__ import annotations

import io
import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC
from pathlib import Path

from PIL import Image, ImageOps

from canvas.errors import NotFound, StorageError
from canvas.files import PART_SUFFIX, atomic_write
from canvas.history.metadata import embed, open_image
from canvas.image_formats import IMAGE_FORMATS, IMAGE_SUFFIXES
from canvas.request import GeneratedImage

THUMBNAILS_FOLDER = ".thumbnails"
TRASH_FOLDER = ".trash"
THUMBNAIL_SIDE = 320  # pixels
FILENAME_PATTERN = re.compile(r"[0-9a-f]{32}\.(png|jpg|webp)")


class ImageStorage:
    """The image files under `root`, the `outputs` folder, in one folder per day.

    The `filepath` of a row is relative to the data folder, which contains `root`.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root).absolute()

    def save(self, image: GeneratedImage) -> GeneratedImage:
        """Write image and thumbnail; the result has `file` and `filepath` instead of pixels."""
        filename = secrets.token_hex(16) + IMAGE_FORMATS[image.request.image_format].suffix
        saved = self.add(replace(image, filename=filename, image=None), embed(image))
        if image.image is not None:
            write_file(self._thumbnail_path(self.path_of(saved)), _make_thumbnail(image.image), durable=True)
        return saved

    def add(self, image: GeneratedImage, content: bytes) -> GeneratedImage:
        """Write an encoded file under `image.filename` into the folder of its day (UTC)."""
        day = image.created_at.astimezone(UTC).date().isoformat()
        path = self.root / day / image.filename
        write_file(path, content, durable=True)
        return replace(image, filepath=f"{self.root.name}/{day}/{image.filename}", file=path, file_size=len(content))

    def path_of(self, image: GeneratedImage) -> Path:
        """The path of the file, which may be missing; raises NotFound outside the data folder."""
        return self.resolve(image.filepath, image.filename)

    def resolve(self, filepath: str, filename: str) -> Path:
        """The path for the columns of a row.

        Old rows hold an absolute path, or only a name. Raises NotFound outside the data folder.
        """
        data_dir = self.root.parent.resolve()
        name = Path(filename).name
        candidates = [data_dir / filepath] if filepath else []
        candidates += [self.root / name, data_dir / name]
        inside = [
            path
            for path in map(_resolve_or_none, candidates)
            if path and path.is_relative_to(data_dir) and path.suffix.lower() in IMAGE_SUFFIXES
        ]
        if not inside:
            raise NotFound(f"The image {filename!r} is not in the data folder.")
        return next((path for path in inside if path.is_file()), inside[0])

    def thumbnail(self, image: GeneratedImage) -> Path:
        """The path of the WebP thumbnail, made on first use; raises NotFound without the image."""
        path = self.path_of(image)
        thumbnail = self._thumbnail_path(path)
        if not thumbnail.is_file():
            if not path.is_file():
                raise NotFound(f"The file of the image {image.filename} is missing.")
            with open_image(path) as pixels:
                pixels.draft("RGB", (THUMBNAIL_SIDE * 2, THUMBNAIL_SIDE * 2))
                write_file(thumbnail, _make_thumbnail(pixels), durable=True)
        return thumbnail

    def find(self, filepath: str | None, filename: str) -> Path | None:
        """The existing file for the columns of a row; None if it is missing."""
        try:
            path = self.resolve(filepath or "", filename)
        except NotFound:
            return None
        return path if path.is_file() else None

    def delete_thumbnail(self, path: Path) -> None:
        """Delete the thumbnail of the image at `path`, if there is one."""
        _unlink(self._thumbnail_path(path))

    def thumbnails(self) -> list[Path]:
        return [path for path in (self.root / THUMBNAILS_FOLDER).rglob("*.webp") if path.is_file()]

    def clear_thumbnails(self) -> int:
        """Delete all thumbnails and return the bytes freed."""
        freed = 0
        for path in self.thumbnails():
            freed += path.stat().st_size
            _unlink(path)
        return freed

    def filepaths(self) -> Iterator[str]:
        """The `filepath` of every image file outside of hidden folders."""
        # Text is faster than Path: there may be 100,000 files at every start.
        for folder, folders, names in os.walk(self.root):
            folders[:] = [name for name in folders if not name.startswith(".")]
            prefix = Path(self.root.name, Path(folder).relative_to(self.root)).as_posix()
            for name in names:
                if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."):
                    yield f"{prefix}/{name}"

    def partial_files(self) -> Iterator[Path]:
        """Files that are being written, or whose writing was interrupted."""
        for folder, _, names in os.walk(self.root):
            yield from (Path(folder, name) for name in names if name.endswith(PART_SUFFIX))

    def _thumbnail_path(self, path: Path) -> Path:
        folder = path.parent.name if path.parent.parent == self.root.resolve() else ""
        return self.root / THUMBNAILS_FOLDER / folder / f"{path.name}.webp"


def write_file(path: Path, content: bytes, *, durable: bool) -> None:
    """Write a file atomically, and its folder if there is none; raises StorageError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, durable=durable) as file:
            file.write(content)
    except OSError as error:
        raise StorageError(
            f"The image cannot be written to {path.parent} ({error.strerror}). Free some "
            "space, check the permissions of the folder, or choose another one with "
            "--data-dir."
        ) from error


def _make_thumbnail(image: Image.Image) -> bytes:
    thumbnail = ImageOps.exif_transpose(image)
    if thumbnail.mode not in ("RGB", "RGBA"):
        thumbnail = thumbnail.convert("RGBA" if "transparency" in thumbnail.info else "RGB")
    thumbnail.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    content = io.BytesIO()
    thumbnail.save(content, "webp", quality=80)
    return content.getvalue()


def _resolve_or_none(path: Path) -> Path | None:
    try:
        return path.resolve()
    except (OSError, ValueError, RuntimeError):  # NUL bytes, loops of symbolic links
        return None


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(
            f"The file {path} cannot be deleted ({error.strerror}). Check the permissions of its folder and try again."
        ) from error
