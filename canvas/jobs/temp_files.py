"""Files of Gradio's temporary folder: which owner may use them, and their removal."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from canvas.errors import InvalidInput, LazyMessage

NOT_UPLOADED = "This file was not uploaded by you, or it was deleted meanwhile. Upload it again."


class TempFiles:
    """The uploads of all owners, and the files that the server made for one of them.

    A path that a client sends is used only if it was registered for the owner of that request.
    """

    def __init__(self) -> None:
        self._owners: dict[Path, set[str]] = {}
        self._lock = threading.Lock()

    def register(self, path: Path, owner: str) -> None:
        """Let an owner use a file: one that the owner uploaded, or that was made for the owner."""
        with self._lock:
            self._owners.setdefault(_absolute(path), set()).add(owner)

    def find(self, path: object, owner: str, field: str = "file") -> Path:
        """The path, if it is a file of that owner; raises InvalidInput otherwise."""
        if isinstance(path, str) and path and "\0" not in path:
            found = _absolute(Path(path))
            # A link could be replaced after the check.
            if owner in self._owners.get(found, ()) and found.is_file() and not found.is_symlink():
                return found
        raise InvalidInput(field, None, message=LazyMessage(NOT_UPLOADED))

    @contextmanager
    def take(self, path: object, owner: str, field: str = "file") -> Iterator[Path]:
        """`find`, and the file is deleted afterwards, unless another owner uploaded it as well."""
        found = self.find(path, owner, field)
        try:
            yield found
        finally:
            self._release(found, owner)

    def forget_deleted(self) -> None:
        """Drop the entries of files that no longer exist."""
        with self._lock:
            for path in [path for path in self._owners if not path.exists()]:
                del self._owners[path]

    def _release(self, path: Path, owner: str) -> None:
        with self._lock:
            owners = self._owners.get(path, set())
            owners.discard(owner)
            if not owners:
                self._owners.pop(path, None)
                with suppress(OSError):
                    path.unlink()


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))
