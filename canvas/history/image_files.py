"""Picture files: written whole or not at all, found again, shown small."""

from __future__ import annotations

import io
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from canvas.errors import NotFound, StorageError
from canvas.history.metadata import embed, open_picture
from canvas.request import GeneratedImage

SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
PART = ".part"
THUMBNAILS = ".thumbnails"
TRASH = ".trash"
THUMBNAIL_SIDE = 320  # pixels
OWN_NAME = re.compile(r"[0-9a-f]{32}\.(png|jpg|webp)")


class ImageStorage:
    """The pictures under `root`, the `outputs` folder; rows name them from the folder above."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root).absolute()

    def save(self, image: GeneratedImage) -> GeneratedImage:
        """Write the picture and its thumbnail; the result knows its file and drops its pixels."""
        picture = image.image
        content = embed(image)
        name = secrets.token_hex(16) + SUFFIXES[image.request.image_format]
        saved = self.add(replace(image, filename=name, image=None), content)
        if picture is not None:
            self._write(self._thumbnail_path(self.path_of(saved)), _make_thumbnail(picture))
        return saved

    def add(self, image: GeneratedImage, content: bytes) -> GeneratedImage:
        """Write a finished file under `image.filename` in the folder of its day."""
        day = image.created_at.astimezone(UTC).date().isoformat()
        path = self.root / day / image.filename
        self._write(path, content)
        filepath = f"{self.root.name}/{day}/{image.filename}"
        return replace(image, filepath=filepath, file=path, file_size=len(content))

    def path_of(self, image: GeneratedImage) -> Path:
        """Where the file should lie; raises NotFound for a place outside of the data folder."""
        return self.find(image.filepath, image.filename)

    def find(self, filepath: str, filename: str) -> Path:
        """`path_of` from a row; those of older programs hold an absolute path, or only a name."""
        home = self.root.parent.resolve()
        name = Path(filename).name
        places = [home / filepath] if filepath else []
        places += [self.root / name, home / name]
        inside = [
            place
            for place in map(_resolved, places)
            if place and place.is_relative_to(home) and place.suffix.lower() in IMAGE_SUFFIXES
        ]
        if not inside:
            raise NotFound(f"The picture {filename!r} does not lie in {home}.")
        return next((place for place in inside if place.is_file()), inside[0])

    def thumbnail(self, image: GeneratedImage) -> Path:
        """The small WebP of the picture, made on first use; raises NotFound without the file."""
        path = self.path_of(image)
        small = self._thumbnail_path(path)
        if not small.is_file():
            if not path.is_file():
                raise NotFound(f"The file of the picture {image.filename} is gone.")
            with open_picture(path) as picture:
                picture.draft("RGB", (THUMBNAIL_SIDE * 2, THUMBNAIL_SIDE * 2))
                content = _make_thumbnail(picture)
            self._write(small, content)
        return small

    def path_for_row(self, row: Mapping[str, Any]) -> Path | None:
        """The file of a row; None where there is none."""
        try:
            path = self.find(row["filepath"] or "", row["filename"])
        except NotFound:
            return None
        return path if path.is_file() else None

    def delete_thumbnail(self, path: Path) -> None:
        """Remove the thumbnail of the picture at `path`, if there is one."""
        _unlink(self._thumbnail_path(path))

    def thumbnails(self) -> list[Path]:
        """All thumbnails; any of them may be removed, and is made again on first use."""
        return [path for path in (self.root / THUMBNAILS).rglob("*.webp") if path.is_file()]

    def clear_thumbnails(self) -> int:
        """Remove all thumbnails; the bytes that are free now."""
        freed = 0
        for path in self.thumbnails():
            freed += path.stat().st_size
            _unlink(path)
        return freed

    def delete(self, image: GeneratedImage) -> None:
        """Remove the file and its thumbnail for good; what is not there is not missed."""
        path = self.path_of(image)
        _unlink(path)
        self.delete_thumbnail(path)

    def images(self) -> Iterator[str]:
        """The `filepath` of every picture file; hidden folders are left out."""
        # Text, not paths: there may be a hundred thousand at every start.
        for folder, folders, names in os.walk(self.root):
            folders[:] = [name for name in folders if not name.startswith(".")]
            place = Path(self.root.name, Path(folder).relative_to(self.root)).as_posix()
            for name in names:
                if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."):
                    yield f"{place}/{name}"

    def partial_files(self) -> Iterator[Path]:
        """Files whose writing was interrupted, or is going on."""
        for folder, _, names in os.walk(self.root):
            yield from (Path(folder, name) for name in names if name.endswith(PART))

    def _thumbnail_path(self, path: Path) -> Path:
        folder = path.parent.name if path.parent.parent == self.root.resolve() else ""
        return self.root / THUMBNAILS / folder / f"{path.name}.webp"

    def _write(self, path: Path, content: bytes) -> None:
        part = path.with_name(f".{path.name}{PART}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            _sync_folder(path.parent)
        except OSError as error:
            with suppress(OSError):  # there may be none; the sentence below says what happened
                part.unlink()
            raise StorageError(
                f"The picture cannot be written to {path.parent} ({error.strerror}). Free some "
                "space, give yourself the right to write there, or choose another folder with "
                "--data-dir."
            ) from error


def _make_thumbnail(picture: Image.Image) -> bytes:
    small = ImageOps.exif_transpose(picture)
    if small.mode not in ("RGB", "RGBA"):
        small = small.convert("RGBA" if "transparency" in small.info else "RGB")
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    target = io.BytesIO()
    small.save(target, "webp", quality=80)
    return target.getvalue()


def _resolved(path: Path) -> Path | None:
    try:
        return path.resolve()
    except (OSError, ValueError, RuntimeError):  # NUL bytes, links in a circle
        return None


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(
            f"The file {path} cannot be deleted ({error.strerror}). Give yourself the right "
            "to write in its folder, then try again."
        ) from error


def _sync_folder(folder: Path) -> None:
    # The rename is on the disk only when its folder is; Windows has no such handle.
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
