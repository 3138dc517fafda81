"""The running app, one for all tests of the APIs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from canvas import Studio
from tests.app_server import serving


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    with serving(tmp_path_factory.mktemp("served")) as studio:
        yield studio


@pytest.fixture(scope="session")
def url(served: Studio) -> str:
    return served.url
