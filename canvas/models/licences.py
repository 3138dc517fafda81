"""The licences that people agreed to before a download, kept in the data folder."""

from __future__ import annotations

import json
import threading
from pathlib import Path

from canvas.catalog import ModelSpec
from canvas.errors import ConsentRequired, LazyMessage
from canvas.files import atomic_write

FILE_NAME = "licences.json"


class AcceptedLicences:
    """Addresses of licences that were agreed to; thread-safe."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE_NAME
        self._lock = threading.Lock()

    def accepts(self, spec: ModelSpec) -> bool:
        """Whether the model needs no agreement, or has it."""
        return not spec.terms or spec.terms in self._read()

    def accept(self, spec: ModelSpec) -> None:
        """Record the agreement to the model's licence, if it needs one. Raises OSError."""
        with self._lock:
            if self.accepts(spec):
                return
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self._path) as file:
                file.write(json.dumps(sorted({*self._read(), spec.terms}), indent=1).encode())

    def check(self, spec: ModelSpec) -> None:
        """Raise ConsentRequired if the model must not be downloaded yet."""
        if not self.accepts(spec):
            text = (
                "The model {model} has a licence with conditions ({license}): read {terms}. To agree, use the Models "
                'tab, --accept-terms on the command line, or "accept_terms": true in a request to '
                "/v1/images/generations."
            )
            raise ConsentRequired(LazyMessage(text, model=spec.key, license=spec.license, terms=spec.terms))

    def _read(self) -> set[str]:
        try:
            stored = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return set()  # missing or damaged: people are asked again
        return {item for item in stored if isinstance(item, str)} if isinstance(stored, list) else set()
