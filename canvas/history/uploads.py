"""Pictures that were handed in, kept under the hash of their pixels, each once."""

from __future__ import annotations

import hashlib
import io
import os
import re
import secrets
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from PIL import Image

from canvas.errors import NotFound, StorageError
from canvas.history.database import Database

GRACE_SECONDS = (
    3600.0  # seconds: between handing in a picture and asking for something to be made of it
)
NAME = re.compile(r"[0-9a-f]{64}\.png")


class Uploads:
    """The folder of pictures that requests start from; a name cannot be guessed, only computed."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root).absolute()

    def add(self, picture: Image.Image) -> str:
        """Keep the picture; the same pixels get the same name."""
        name = upload_name(picture)
        path = self.root / name
        try:
            os.utime(path)  # it is wanted again: `sweep` shall not take it
        except FileNotFoundError:
            target = io.BytesIO()
            picture.save(target, "png", compress_level=1)
            self._write(path, target.getvalue())
        return name

    def open(self, name: str) -> Image.Image:
        """The pixels of that name; raises NotFound."""
        try:
            if not NAME.fullmatch(name):
                raise FileNotFoundError
            with Image.open(self.root / name, formats=("PNG",)) as picture:
                picture.load()
                return picture
        except FileNotFoundError as error:
            raise NotFound(f"There is no picture {name!r} here; hand it in again.") from error
        except (OSError, ValueError, SyntaxError) as error:
            raise StorageError(f"The picture {name} cannot be read; hand it in again.") from error

    def cleanup(self, wanted: Collection[str], age: float = GRACE_SECONDS) -> int:
        """Remove what nothing names after `age` seconds; how many pictures went."""
        oldest = time.time() - age
        gone = 0
        for path in self.root.glob("*") if self.root.is_dir() else ():
            with suppress(FileNotFoundError):  # another server sweeps, too
                if path.name not in wanted and path.lstat().st_mtime < oldest:
                    path.unlink()
                    gone += 1
        return gone

    def __contains__(self, name: str) -> bool:
        return NAME.fullmatch(name) is not None and (self.root / name).is_file()

    def _write(self, path: Path, content: bytes) -> None:
        part = path.with_name(f".{secrets.token_hex(8)}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(content)
            os.replace(part, path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise StorageError(
                f"The picture cannot be written to {path.parent} ({error.strerror}). Free some "
                "space, or choose another folder with --data-dir."
            ) from error


def referenced_uploads(store: Database) -> set[str]:
    """The names that kept pictures and jobs which are not done were made from."""
    rows = store.rows(
        "SELECT json_extract(options, '$.image') AS image, "
        "json_extract(options, '$.mask_image') AS mask FROM generated_images "
        "WHERE task <> 'text_to_image' AND json_valid(options) UNION ALL "
        "SELECT json_extract(request, '$.image'), json_extract(request, '$.mask_image') "
        "FROM unfinished_jobs"
    )
    return {name for row in rows for name in row.values() if isinstance(name, str)}


def upload_name(picture: Image.Image) -> str:
    """The name that these pixels have: the SHA-256 of their layout and values."""
    layout = f"{picture.mode} {picture.width} {picture.height} ".encode()
    return hashlib.sha256(layout + picture.tobytes()).hexdigest() + ".png"
