"""Uploaded images, stored once under the hash of their pixels."""

from __future__ import annotations

import hashlib
import io
import os
import re
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from PIL import Image

from canvas.errors import NotFound, StorageError
from canvas.files import atomic_write
from canvas.history.database import Database

GRACE_SECONDS = 3600.0  # between an upload and the request that uses it
FILENAME_PATTERN = re.compile(r"[0-9a-f]{64}\.png")


class Uploads:
    """A folder of uploaded images; a file name can only be computed from the pixels."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root).absolute()

    def add(self, image: Image.Image) -> str:
        """Store an image and return its name; equal pixels have the same name."""
        name = upload_name(image)
        path = self.root / name
        try:
            os.utime(path)  # so that `cleanup` keeps it
        except FileNotFoundError:
            content = io.BytesIO()
            image.save(content, "png", compress_level=1)
            self._write(path, content.getvalue())
        return name

    def open(self, name: str) -> Image.Image:
        """The decoded image of that name; raises NotFound."""
        try:
            if not FILENAME_PATTERN.fullmatch(name):
                raise FileNotFoundError
            with Image.open(self.root / name, formats=("PNG",)) as image:
                image.load()
                return image
        except FileNotFoundError as error:
            raise NotFound(f"There is no image {name!r}; upload it again.") from error
        except (OSError, ValueError, SyntaxError) as error:
            raise StorageError(f"The image {name} cannot be read; upload it again.") from error

    def cleanup(self, referenced: Collection[str], age: float = GRACE_SECONDS) -> int:
        """Delete unreferenced files that are older than `age` seconds; returns how many."""
        oldest = time.time() - age
        deleted = 0
        for path in self.root.glob("*") if self.root.is_dir() else ():
            with suppress(FileNotFoundError):  # another process cleans up, too
                if path.name not in referenced and path.lstat().st_mtime < oldest:
                    path.unlink()
                    deleted += 1
        return deleted

    def __contains__(self, name: str) -> bool:
        return FILENAME_PATTERN.fullmatch(name) is not None and (self.root / name).is_file()

    def _write(self, path: Path, content: bytes) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                file.write(content)
        except OSError as error:
            raise StorageError(
                f"The image cannot be written to {path.parent} ({error.strerror}). Free some "
                "space, or choose another folder with --data-dir."
            ) from error


def referenced_uploads(database: Database) -> set[str]:
    """The names in the `image` and `mask_image` fields of stored images and unfinished jobs."""
    rows = database.rows(
        "SELECT json_extract(options, '$.image') AS image, "
        "json_extract(options, '$.mask_image') AS mask FROM generated_images "
        "WHERE task <> 'text_to_image' AND json_valid(options) UNION ALL "
        "SELECT json_extract(request, '$.image'), json_extract(request, '$.mask_image') "
        "FROM unfinished_jobs"
    )
    return {name for row in rows for name in row.values() if isinstance(name, str)}


def upload_name(image: Image.Image) -> str:
    """The SHA-256 of mode, size and pixels, as a file name."""
    layout = f"{image.mode} {image.width} {image.height} ".encode()
    return hashlib.sha256(layout + image.tobytes()).hexdigest() + ".png"
