"""The real program on a free port, for the tests of its doors."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from canvas import Studio
from canvas.server.launch import launch
from canvas.settings import Settings


@contextmanager
def serving(folder: Path, **options: Any) -> Iterator[Studio]:
    """A served studio over a data folder; its address is `url`."""
    settings = Settings(
        data_dir=folder,
        cache_dir=folder / "cache",
        port=0,
        device="cpu",
        dtype="float32",
        **options,
    )
    with Studio(settings) as studio:
        page = launch(studio, block=False)
        # Gradio leaves event loops open. Python 3.11 cannot have their finalizers run while it
        # parses a module (gh-106905), so they go here, and again at the end.
        gc.collect()
        studio.url = page.local_url.rstrip("/")  # type: ignore[attr-defined]
        yield studio
        page.close()
    gc.collect()
