"""The running app, once for all clients: each test asks for pictures of its own."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from canvas import Studio
from canvas.serve import launch
from canvas.settings import Settings


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    folder = tmp_path_factory.mktemp("served")
    settings = Settings(
        data_dir=folder, cache_dir=folder / "cache", port=0, device="cpu", dtype="float32"
    )
    with Studio(settings) as studio:
        page = launch(studio, block=False)
        # Gradio leaves event loops open. Python 3.11 cannot have their finalizers run while it
        # parses a module (gh-106905), so they go here, and again at the end.
        gc.collect()
        studio.url = page.local_url.rstrip("/")
        yield studio
        page.close()
    gc.collect()


@pytest.fixture(scope="session")
def url(served: Studio) -> str:
    return served.url
