from __future__ import annotations

from pathlib import Path

import pytest

from canvas.errors import InvalidInput, NotFound
from canvas.history.api_keys import ApiKeyStore
from canvas.history.database import Database


def test_get_owner_until_the_key_is_revoked(database: Database) -> None:
    keys = ApiKeyStore(database)
    secret = keys.create("laptop")
    assert keys.get_owner(secret) == "key-laptop"
    assert [key.name for key in keys.list()] == ["laptop"]
    keys.revoke("laptop")
    assert keys.get_owner(secret) is None
    assert keys.list() == []


def test_the_database_does_not_contain_the_secret(database: Database, tmp_path: Path) -> None:
    secret = ApiKeyStore(database).create("laptop")
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"laptop" in stored
    assert secret.encode() not in stored
    assert secret.removeprefix("mc-").encode() not in stored


def test_secrets_differ(database: Database) -> None:
    keys = ApiKeyStore(database)
    secrets = [keys.create("one"), keys.create("two")]
    assert secrets[0] != secrets[1]
    assert min(len(secret.removeprefix("mc-")) for secret in secrets) >= 43, "256 bits in Base64"


@pytest.mark.parametrize("name", ["", "two words", "x" * 65, "a\nb"])
def test_create_rejects_invalid_names(database: Database, name: str) -> None:
    with pytest.raises(InvalidInput, match="Name must be"):
        ApiKeyStore(database).create(name)


def test_create_rejects_a_used_name(database: Database) -> None:
    keys = ApiKeyStore(database)
    keys.create("laptop")
    with pytest.raises(InvalidInput, match="already a key"):
        keys.create("laptop")


def test_unknown_keys_have_no_owner_and_cannot_be_revoked(database: Database) -> None:
    assert ApiKeyStore(database).get_owner("mc-nonsense") is None
    with pytest.raises(NotFound, match="nonsense"):
        ApiKeyStore(database).revoke("nonsense")
