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
from canvas.guidance import GUIDANCE_FIELDS
from canvas.history.database import Database
from canvas.history.image_files import write_file
from canvas.history.rows import parse_json_object

GRACE_SECONDS = 3600.0  # between an upload and the request that uses it
FILENAME_PATTERN = re.compile(r"[0-9a-f]{64}\.png")


class Uploads:
    """A folder of uploaded images; a file name can only be computed from the pixels."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root).absolute()

    def add(self, image: Image.Image) -> str:
        """Store an image and return its name, the SHA-256 of its mode, size and pixels."""
        layout = f"{image.mode} {image.width} {image.height} ".encode()
        name = hashlib.sha256(layout + image.tobytes()).hexdigest() + ".png"
        path = self.root / name
        try:
            os.utime(path)  # so that `cleanup` keeps it
        except FileNotFoundError:
            content = io.BytesIO()
            image.save(content, "png", compress_level=1)
            write_file(path, content.getvalue(), durable=False)
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


def referenced_uploads(database: Database) -> set[str]:
    """The names of the images from which stored images and unfinished jobs were made."""
    rows = database.rows(
        "SELECT options AS fields FROM generated_images WHERE json_valid(options) "
        "AND (task <> 'text_to_image' OR options LIKE '%_images\": [{%') "
        "UNION ALL SELECT request FROM unfinished_jobs WHERE json_valid(request)"
    )
    names: set[str] = set()
    for row in rows:
        fields = parse_json_object(str(row["fields"]))
        items = [item for name in GUIDANCE_FIELDS for item in fields.get(name) or () if isinstance(item, dict)]
        found = [fields.get("image"), fields.get("mask_image"), *(item.get("image") for item in items)]
        names |= {name for name in found if isinstance(name, str)}
    return names


def is_upload_of(name: str, owner: str, database: Database) -> bool:
    """Whether an image of this owner was made from the upload of that name."""
    if not FILENAME_PATTERN.fullmatch(name):
        return False
    query = "SELECT 1 FROM generated_images WHERE owner = ? AND options LIKE ? LIMIT 1"
    return bool(database.rows(query, (owner, f"%{name}%")))
