"""Fixtures for all tests: a studio with a new data folder, tiny models, a local Hub."""

from __future__ import annotations

import functools
import gc
import importlib
import os
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import pytest

from canvas import Studio
from canvas.catalog import ModelSpec, parse_model
from canvas.engine import configure_process
from canvas.settings import Settings
from tests.hub_server import LocalHub
from tests.tiny_pipeline import make_bin_layout, make_full_layout, make_tiny_pipeline

TINY_REPO = "tiny/diffusion"
# `CANVAS_ENGINE=openvino pytest` generates all images with OpenVINO where it can. Without a choice
# every test would convert the built-in model for its new cache folder.
ENGINE = os.environ.setdefault("CANVAS_ENGINE", "torch")

# They begin, so that no process is left with them at the end.
LONGEST = ("tests/ui/", "tests/test_isolation.py", "tests/server/", "tests/test_structure.py", "tests/test_studio.py")


def pytest_configure() -> None:
    """Set the environment variables of the libraries before test modules import them."""
    os.environ.setdefault("GOMP_SPINCOUNT", "0")  # two test processes share the cores
    # Each `httpx.get` reads 150 certificates, which takes 30 ms.
    ssl.create_default_context = functools.cache(ssl.create_default_context)
    # httpx waits for five seconds where nothing else is given, which may be too short on a busy machine.
    vars(httpx._config.DEFAULT_TIMEOUT_CONFIG).update(vars(httpx.Timeout(60)))
    configure_process()
    gc.disable()  # until everything is imported
    hypothesis.settings.register_profile("canvas", deadline=None)  # no test depends on speed
    hypothesis.settings.load_profile("canvas")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that open a browser or train, which are slow, and those that use a studio or a server."""
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if "browser" in fixtures:
            item.add_marker(pytest.mark.browser)
            if not item.get_closest_marker("smoke"):
                item.add_marker(pytest.mark.slow)
        if "packages" in fixtures:  # of training/test_recipe.py
            item.add_marker(pytest.mark.slow)
        if "settings" in fixtures or hasattr(getattr(item, "module", None), "serving"):
            item.add_marker(pytest.mark.draws)
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))


def pytest_collection_finish() -> None:
    """Leave the libraries out of later garbage collections, which take a third of a second otherwise."""
    if "PYTEST_XDIST_WORKER" in os.environ:  # it runs many modules, which need them
        importlib.import_module("canvas.ui.app")
        importlib.import_module("diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion")
    gc.enable()
    freeze()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Leave out what the tests of a file have imported, too."""
    if nextitem is None or nextitem.path != item.path:
        freeze()


def freeze() -> None:
    gc.collect()
    gc.freeze()


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two processes, or none for single files and for the long tests, which measure."""
    alone = config.option.markexpr == "long" or all(".py" in path for path in config.args)
    return 0 if alone else 2


@pytest.fixture
def settings(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    # float32 on the CPU: the tests must not depend on the measured speed of this machine.
    cache = tmp_path_factory.getbasetemp() / "cache"
    data = tmp_path / "data"
    return Settings(data_dir=data, cache_dir=cache, device="cpu", dtype="float32", engine=ENGINE, port=0)


@pytest.fixture
def studio(settings: Settings) -> Iterator[Studio]:
    with Studio(settings) as studio:
        yield studio


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of safetensors, 64 x 64 pixels; do not change it."""
    return make_tiny_pipeline(tmp_path_factory.mktemp("tiny") / "safetensors")


@pytest.fixture(scope="session")
def tiny_bin_folder(tiny_folder: Path) -> Path:
    """The same pipeline in `.bin` files only, with a safety checker that cannot be loaded."""
    return make_bin_layout(tiny_folder, tiny_folder.with_name("bin"))


@pytest.fixture(scope="session")
def tiny_full_folder(tiny_folder: Path) -> Path:
    """The same pipeline with all files that the SD 1.5 repository has: fp16, `.bin`, single files."""
    return make_full_layout(tiny_folder, tiny_folder.with_name("full"))


@pytest.fixture(scope="session")
def tiny_spec(tiny_folder: Path) -> ModelSpec:
    """The tiny pipeline as a model on disk."""
    return make_spec(str(tiny_folder))


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    """An empty local Hub: `hub.add(repo_id, folder)`, `hub.faults[...]`, `hub.url`."""
    server = LocalHub()
    yield server
    server.close()


@pytest.fixture
def tiny_repo(hub: LocalHub, tiny_full_folder: Path) -> str:
    """The id of the full tiny pipeline on the local Hub."""
    hub.add(TINY_REPO, tiny_full_folder)
    return TINY_REPO


def slow_params(*values: Any) -> list[Any]:
    """Parameters whose tests are marked `slow`: they take seconds, and others show nearly the same."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def make_spec(name: str, key: str = "tiny-test", mirrors: tuple[str, ...] = ()) -> ModelSpec:
    """A model of that folder, file or repository."""
    return parse_model(
        key,
        {
            "name": name,
            "size": "1 MB",
            "speed": "Fast",
            "quality": "None",
            "resolution": 64,
            "type": "stable_diffusion",
            "mirrors": mirrors,
            "num_inference_steps": 2,
        },
    )
