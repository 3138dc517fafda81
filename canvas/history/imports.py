"""Pictures from a folder or a ZIP, with whatever they say of themselves."""

from __future__ import annotations

import io
import json
import secrets
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from canvas.errors import NotFound, StorageError
from canvas.history.export import FOLDER
from canvas.history.foreign import read_picture
from canvas.history.images import OWN_NAME, SUFFIXES, ImageFolder
from canvas.history.metadata import open_picture, read_settings
from canvas.history.records import image_from
from canvas.history.sources import FolderSource, Source, ZipSource
from canvas.history.store import Store
from canvas.request import GeneratedImage

MAX_PIXELS = 8192 * 8192
MAX_SENTENCES = 100


@dataclass(frozen=True)
class Imported:
    """How many pictures were new, how many were here already, and why others were refused."""

    added: int
    duplicates: int
    refused: tuple[str, ...] = ()


def import_folder(store: Store, folder: ImageFolder, path: Path, owner: str) -> Imported:
    """Copy the pictures of a folder; raises StorageError when there is none."""
    return _Import(store, folder, FolderSource(path), owner).run()


def import_zip(store: Store, folder: ImageFolder, path: Path, owner: str) -> Imported:
    """Take the pictures of a ZIP, such as `export_zip` makes; raises StorageError for a bomb."""
    with closing(ZipSource(path)) as source:
        return _Import(store, folder, source, owner).run()


@dataclass
class _Import:
    store: Store
    folder: ImageFolder
    source: Source
    owner: str
    added: int = 0
    duplicates: int = 0
    new_ids: dict[int, int] = field(default_factory=dict)  # by the ids of where they come from

    def run(self) -> Imported:
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
        if len(refused) > MAX_SENTENCES:
            more = len(refused) - MAX_SENTENCES
            refused = [*refused[:MAX_SENTENCES], f"… and {more} more."]
        return Imported(self.added, self.duplicates, tuple(refused))

    def _take(self, name: str, record: Mapping[str, Any], keep_id: bool) -> None:
        try:
            content = self.source.read(name)
            known = self._known(name, content)
            if known is None:
                image = described(content, record, PurePosixPath(name).name)
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


def described(content: bytes, record: Mapping[str, Any], name: str) -> GeneratedImage:
    """What the record, or else the file itself says; raises StorageError for what is no picture."""
    with open_picture(io.BytesIO(content), name) as picture:
        size, image_format = picture.size, str(picture.format).lower()
        if size[0] * size[1] > MAX_PIXELS:
            raise StorageError(
                f"{name}: {size[0]} × {size[1]} pixels are too many; {MAX_PIXELS:,} are allowed."
            )
        picture.load()
    image = image_from(record) if record else read_settings(io.BytesIO(content))
    if image is None:
        image = _foreign(content, name, size)
    return replace(image, request=replace(image.request, image_format=image_format))


def _foreign(content: bytes, name: str, size: tuple[int, int]) -> GeneratedImage:
    found = read_picture(io.BytesIO(content))
    values = dict(found.values)
    if "width" not in values and all(side % 8 == 0 and 64 <= side <= 4096 for side in size):
        values["width"], values["height"] = size
    source = f"Imported from {name}" + (f", made by {found.program}." if found.program else ".")
    return image_from(
        {
            **values,
            "prompt": values.get("prompt") or "(no prompt)",
            "notes": [source, *found.unread],
            "created_at": datetime.now(UTC),
        }
    )
