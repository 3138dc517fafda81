"""Fixtures for every test: a studio on a fresh data folder, with the built-in model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from canvas import Studio
from canvas.settings import Settings, quiet_libraries


def pytest_configure() -> None:
    """Quieten the libraries before any test module imports them."""
    os.environ.setdefault("GOMP_SPINCOUNT", "0")  # two processes of tests share the cores
    quiet_libraries()


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two processes for all; none where one file, or what is long and measured, runs alone."""
    alone = config.option.markexpr == "long" or all(".py" in path for path in config.args)
    return 0 if alone else 2


@pytest.fixture
def settings(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    # float32 on the CPU, so that no test depends on what a machine measured.
    cache = tmp_path_factory.getbasetemp() / "cache"
    data = tmp_path / "data"
    return Settings(data_dir=data, cache_dir=cache, device="cpu", dtype="float32", port=0)


@pytest.fixture
def studio(settings: Settings) -> Iterator[Studio]:
    with Studio(settings) as studio:
        yield studio
