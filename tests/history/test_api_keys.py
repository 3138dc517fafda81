from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from canvas.errors import InvalidInput, NotFound
from canvas.history.api_keys import ApiKeyStore
from canvas.history.database import Database


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Database]:
    store = Database(tmp_path / "ai_images.db")
    yield store
    store.close()


def test_a_key_names_its_owner_until_it_is_withdrawn(store: Database) -> None:
    keys = ApiKeyStore(store)
    secret = keys.create("laptop")
    assert keys.get_owner(secret) == "key-laptop"
    assert [key.name for key in keys.list()] == ["laptop"]
    keys.revoke("laptop")
    assert keys.get_owner(secret) is None
    assert keys.list() == []


def test_the_database_does_not_tell_the_key(store: Database, tmp_path: Path) -> None:
    secret = ApiKeyStore(store).create("laptop")
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"laptop" in stored
    assert secret.encode() not in stored
    assert secret.removeprefix("mc-").encode() not in stored


def test_no_two_keys_are_the_same(store: Database) -> None:
    keys = ApiKeyStore(store)
    assert keys.create("one") != keys.create("two")


@pytest.mark.parametrize("name", ["", "two words", "x" * 65, "a\nb"])
def test_bad_names_are_refused(store: Database, name: str) -> None:
    with pytest.raises(InvalidInput, match="name"):
        ApiKeyStore(store).create(name)


def test_a_name_is_given_once(store: Database) -> None:
    keys = ApiKeyStore(store)
    keys.create("laptop")
    with pytest.raises(InvalidInput, match="no other key"):
        keys.create("laptop")


def test_an_unknown_key_is_nobody(store: Database) -> None:
    assert ApiKeyStore(store).get_owner("mc-nonsense") is None
    with pytest.raises(NotFound, match="nonsense"):
        ApiKeyStore(store).revoke("nonsense")
