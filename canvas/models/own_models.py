"""Adds, changes and removes models while the program runs; of `models.toml`, only their tables change."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from canvas.catalog import Catalog, ModelSpec, change_model, get_model, parse_model
from canvas.errors import ContentBlocked, InvalidInput, LazyMessage, StorageError
from canvas.files import atomic_write, read_text_file
from canvas.formatting import format_bytes
from canvas.models import download, hub_search
from canvas.models.hub_client import Hub
from canvas.models.hub_search import FoundModel

EDITABLE = ("num_inference_steps", "guidance_scale", "resolution")


class OwnModels:
    """The models of a data folder. On a public server every method raises ContentBlocked."""

    def __init__(self, models: Catalog, path: Path, default_model: str, hub: Hub | None, *, allowed: bool) -> None:
        self._models = models
        self._file = ModelsFile(path)
        self._default_model = default_model
        self._hub = hub
        self._allowed = allowed

    def search(self, text: str, *, family: str, sort: str, open_only: bool) -> list[FoundModel]:
        """See `hub_search.search`."""
        self._check_allowed()
        return hub_search.search(text, family=family, sort=sort, open_only=open_only, hub=self._hub)

    def add(self, found: FoundModel) -> ModelSpec:
        """Add a model to the catalog; raises ModelUnavailable for what is not there or does not run here."""
        self._check_allowed()
        if found.unsupported:
            raise InvalidInput("name", found.source, message=found.unsupported)
        for spec in self._models.values():
            if found.source in (spec.name, *(source for _, source in spec.components if source.endswith(".gguf"))):
                message = LazyMessage("{model} is in the list already.", model=spec.key)
                raise InvalidInput("name", found.source, message=message)
        key = hub_search.unique_key(found.title, self._models)
        entry: dict[str, Any] = {"name": found.source, "title": found.title}
        if found.size is not None:
            entry["size"] = format_bytes(found.size)
        entry |= {name: getattr(found, name) for name in ("license", "terms") if getattr(found, name)}
        spec = download.complete_spec(parse_model(key, entry), hub=self._hub)
        self._file.update(key, entry)
        self._models[key] = spec
        return spec

    def edit(self, key: str, values: Mapping[str, Any]) -> ModelSpec:
        """Set the defaults of a model: any of EDITABLE. Raises InvalidInput."""
        self._check_allowed()
        spec = get_model(key, self._models)
        values = {name: values[name] for name in EDITABLE if name in values}
        changed = change_model(spec, values)
        self._file.update(spec.key, {name: getattr(changed, name) for name in values})
        self._models[spec.key] = changed
        return changed

    def is_own(self, key: str) -> bool:
        """Whether the model is not one of the program, so that it can be removed."""
        return self._models.base(key) is None

    def reset(self, key: str) -> None:
        """Undo `edit`; other fields of the model in the file stay. Raises InvalidInput."""
        self._check_allowed()
        spec = get_model(key, self._models)
        entry = self._file.tables().get(spec.key, {})
        left = {name: value for name, value in entry.items() if name not in EDITABLE}
        if left:
            self._models[spec.key] = self._models.parse_table(spec.key, left)
        elif entry:
            del self._models[spec.key]
        self._file.unset(spec.key, EDITABLE)

    def remove(self, key: str) -> None:
        """Remove a model that was added, and its download unless another model uses it. Raises InvalidInput."""
        self._check_allowed()
        spec = get_model(key, self._models)
        if not self.is_own(spec.key):
            message = LazyMessage("{model} belongs to the program and cannot be removed.", model=spec.key)
            raise InvalidInput("model_key", spec.key, message=message)
        if spec.key == self._default_model:
            message = LazyMessage("{model} is the default model. Start with another --model first.", model=spec.key)
            raise InvalidInput("model_key", spec.key, message=message)
        self._file.remove(spec.key)
        del self._models[spec.key]
        if not spec.is_local and not any(_sources(spec) & _sources(other) for other in self._models.values()):
            download.remove(spec, hub=self._hub)

    def _check_allowed(self) -> None:
        if not self._allowed:
            raise ContentBlocked(LazyMessage("Visitors cannot change the models of this server."))


def _sources(spec: ModelSpec) -> set[str]:
    return {*spec.sources, *download.component_repositories(spec)}


class ModelsFile:
    """The `models.toml` of a data folder, which need not exist yet; thread-safe.

    Comments and everything else in the file stay as they are.
    """

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
