from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from canvas.errors import InvalidInput, NotFound
from canvas.history.api_keys import Keys
from canvas.history.database import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "ai_images.db")
    yield store
    store.close()


def test_a_key_names_its_owner_until_it_is_withdrawn(store: Store) -> None:
    keys = Keys(store)
    secret = keys.make("laptop")
    assert keys.owner_of(secret) == "key-laptop"
    assert [key.name for key in keys.listed()] == ["laptop"]
    keys.withdraw("laptop")
    assert keys.owner_of(secret) is None
    assert keys.listed() == []


def test_the_database_does_not_tell_the_key(store: Store, tmp_path: Path) -> None:
    secret = Keys(store).make("laptop")
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"laptop" in stored
    assert secret.encode() not in stored
    assert secret.removeprefix("mc-").encode() not in stored


def test_no_two_keys_are_the_same(store: Store) -> None:
    keys = Keys(store)
    assert keys.make("one") != keys.make("two")


@pytest.mark.parametrize("name", ["", "two words", "x" * 65, "a\nb"])
def test_bad_names_are_refused(store: Store, name: str) -> None:
    with pytest.raises(InvalidInput, match="name"):
        Keys(store).make(name)


def test_a_name_is_given_once(store: Store) -> None:
    keys = Keys(store)
    keys.make("laptop")
    with pytest.raises(InvalidInput, match="no other key"):
        keys.make("laptop")


def test_an_unknown_key_is_nobody(store: Store) -> None:
    assert Keys(store).owner_of("mc-nonsense") is None
    with pytest.raises(NotFound, match="nonsense"):
        Keys(store).withdraw("nonsense")
