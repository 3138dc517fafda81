"""Keys for programs: shown once, kept as digests, each an owner with a history of its own."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass

from canvas.errors import InvalidInput, NotFound
from canvas.history.database import Database

PREFIX = "mc-"
_NAME = re.compile(r"[\w.@-]{1,64}")


@dataclass(frozen=True)
class ApiKey:
    """A key as it is listed; what it says is known to its holder only."""

    name: str
    created_at: str

    @property
    def owner(self) -> str:
        """Whose pictures are made with it."""
        return f"key-{self.name}"


class ApiKeyStore:
    """The keys in the database of `store`."""

    def __init__(self, store: Database) -> None:
        self._store = store

    def create(self, name: str) -> str:
        """A new key, to be shown now and never again; a name that is taken raises InvalidInput."""
        if not _NAME.fullmatch(name):
            raise InvalidInput("name", name, "1 to 64 letters, digits or any of _ . @ -")
        if any(key.name == name for key in self.list()):
            raise InvalidInput("name", name, "a name that no other key has")
        # 256 random bits: a plain digest is enough, there is nothing to guess.
        secret = PREFIX + secrets.token_urlsafe(32)
        with self._store.transaction() as connection:
            connection.execute(
                "INSERT INTO api_keys (name, digest) VALUES (?, ?)", [name, _digest(secret)]
            )
        return secret

    def get_owner(self, secret: str) -> str | None:
        """The owner of a key, or None when there is no such key."""
        rows = self._store.rows(
            "SELECT name, created_at FROM api_keys WHERE digest = ?", [_digest(secret)]
        )
        return ApiKey(**rows[0]).owner if rows else None

    def list(self) -> list[ApiKey]:
        """All keys, the oldest first."""
        rows = self._store.rows("SELECT name, created_at FROM api_keys ORDER BY created_at, name")
        return [ApiKey(**row) for row in rows]

    def revoke(self, name: str) -> None:
        """Let a key count no more; its pictures stay. Raises NotFound."""
        with self._store.transaction() as connection:
            gone = connection.execute("DELETE FROM api_keys WHERE name = ?", [name]).rowcount
        if not gone:
            raise NotFound(f"There is no key named {name!r}.")


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
