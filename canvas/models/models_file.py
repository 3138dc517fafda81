"""Changes tables of a `models.toml`; comments and everything else in the file stay as they are."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from canvas.errors import InvalidInput, StorageError
from canvas.files import atomic_write, read_text_file


class ModelsFile:
    """The `models.toml` of a data folder, which need not exist yet; thread-safe."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def tables(self) -> dict[str, Any]:
        """The fields of each model in the file, by key; raises InvalidInput or StorageError."""
        return dict(self._read().unwrap())

    def update(self, key: str, values: Mapping[str, Any]) -> None:
        """Set fields of a model; adds its table if there is none. Raises InvalidInput or StorageError."""
        with self._lock:
            document = self._read()
            if key not in document:
                document[key] = tomlkit.table()
            for name, value in values.items():
                document[key][name] = value  # type: ignore[index]
            self._write(document)

    def unset(self, key: str, names: Collection[str]) -> None:
        """Remove fields of a model, and its table if none is left. Raises InvalidInput or StorageError."""
        with self._lock:
            document = self._read()
            table = document.get(key, {})
            for name in names:
                table.pop(name, None)
            if not table:
                document.pop(key, None)
            self._write(document)

    def remove(self, key: str) -> bool:
        """Remove the table of a model; returns whether there was one. Raises InvalidInput or StorageError."""
        with self._lock:
            document = self._read()
            if key not in document:
                return False
            document.remove(key)
            self._write(document)
            return True

    def _read(self) -> tomlkit.TOMLDocument:
        try:
            return tomlkit.parse(read_text_file(self._path))
        except FileNotFoundError:
            return tomlkit.document()
        except OSError as error:
            raise StorageError(f"{self._path} cannot be read ({error.strerror}).") from error
        except (TOMLKitError, UnicodeDecodeError) as error:
            message = f"{self._path} is not valid TOML: {error}"
            raise InvalidInput(str(self._path), "", message=message) from error

    def _write(self, document: tomlkit.TOMLDocument) -> None:
        try:
            with atomic_write(self._path, durable=True) as file:
                file.write(tomlkit.dumps(document).encode())
        except OSError as error:
            raise StorageError(f"{self._path} cannot be written ({error.strerror}).") from error
