"""The running app, one for all tests of the APIs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from canvas import Studio
from canvas.models.hub_client import Hub
from tests.app_server import serving
from tests.hub_server import LocalHub


@pytest.fixture(scope="session")
def hub_of_served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """An empty Hub with an empty cache."""
    server = LocalHub()
    yield Hub(endpoint=server.url, cache_dir=tmp_path_factory.mktemp("hub"))
    server.close()


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory, hub_of_served: Hub) -> Iterator[Studio]:
    with serving(tmp_path_factory.mktemp("served"), hub_of_served) as studio:
        yield studio


@pytest.fixture(scope="session")
def url(served: Studio) -> str:
    return served.url
