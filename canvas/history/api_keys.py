"""API keys: shown once, stored as digests, each an owner of its own."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass

from canvas.errors import InvalidInput, NotFound
from canvas.history.database import Database

PREFIX = "mc-"
NAME_PATTERN = re.compile(r"[\w.@-]{1,64}")


@dataclass(frozen=True)
class ApiKey:
    """A stored key, without its secret."""

    name: str
    created_at: str

    @property
    def owner(self) -> str:
        """The owner of the images made with the key."""
        return f"key-{self.name}"


class ApiKeyStore:
    """The API keys of a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, name: str) -> str:
        """Create a key and return its secret, which is not stored; the name must be unused."""
        if not NAME_PATTERN.fullmatch(name):
            raise InvalidInput("name", name, "1 to 64 letters, digits or any of _ . @ -")
        if any(key.name == name for key in self.list()):
            raise InvalidInput("name", name, message=f"There is already a key named {name!r}.")
        # A plain digest is enough: 256 random bits cannot be guessed.
        secret = PREFIX + secrets.token_urlsafe(32)
        with self._database.transaction() as connection:
            connection.execute("INSERT INTO api_keys (name, digest) VALUES (?, ?)", [name, _digest(secret)])
        return secret

    def get_owner(self, secret: str) -> str | None:
        """The owner of the key with this secret; None if there is none."""
        rows = self._database.rows("SELECT name, created_at FROM api_keys WHERE digest = ?", [_digest(secret)])
        return ApiKey(**rows[0]).owner if rows else None

    def list(self) -> list[ApiKey]:
        rows = self._database.rows("SELECT name, created_at FROM api_keys ORDER BY created_at, name")
        return [ApiKey(**row) for row in rows]

    def revoke(self, name: str) -> None:
        """Delete a key, not its images; raises NotFound."""
        with self._database.transaction() as connection:
            deleted = connection.execute("DELETE FROM api_keys WHERE name = ?", [name]).rowcount
        if not deleted:
            raise NotFound(f"There is no key named {name!r}.")


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
