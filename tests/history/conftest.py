"""A database, a folder and pictures for the tests of the history."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from canvas.history.database import Database
from canvas.history.image_files import ImageStorage
from canvas.history.images import ImageRepository
from canvas.request import GeneratedImage, GenerationRequest

NOBODY = 65534


def make_image(**changes: Any) -> GeneratedImage:
    """A finished picture; fields of the request and of the picture may be changed by name."""
    request = {
        "prompt": "a red fox in the snow",
        "negative_prompt": "blurry",
        "style": "fantasy",
        "model_key": "tiny",
        "width": 64,
        "height": 72,
        "num_inference_steps": 15,
        "guidance_scale": 7.5,
        "scheduler": "DPM++ 2M Karras",
        "seed": 7,
    }
    known = set(GenerationRequest("x").to_dict()) - {"image"}  # the pixels go by that name
    request |= {name: changes.pop(name) for name in list(changes) if name in known}
    values: dict[str, Any] = {
        "request": GenerationRequest(**request),
        "enhanced_prompt": "a red fox in the snow, fantasy art",
        "generation_time": 3.25,
        "device": "cpu",
        "dtype": "float32",
        "model_revision": "abc123",
        "notes": ("Rounded 513 to 512.",),
        "created_at": datetime(2026, 5, 4, 3, 2, 1, 123456, UTC),
    }
    if "image" not in changes:
        values["image"] = Image.radial_gradient("L").resize((64, 72)).convert("RGB")
    return GeneratedImage(**{**values, **changes})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Database]:
    store = Database(tmp_path / "ai_images.db")
    yield store
    store.close()


@pytest.fixture
def folder(tmp_path: Path) -> ImageStorage:
    return ImageStorage(tmp_path / "outputs")


@pytest.fixture
def gallery(store: Database, folder: ImageStorage) -> ImageRepository:
    return ImageRepository(store, folder)


@pytest.fixture
def plain_user() -> Iterator[Path]:
    """A folder of a user for whom file permissions count; they do not for root."""
    home = Path(tempfile.mkdtemp())
    if os.geteuid() != 0:
        yield home
    else:
        os.chown(home, NOBODY, NOBODY)
        os.seteuid(NOBODY)
        try:
            yield home
        finally:
            os.seteuid(0)
    home.chmod(0o700)
    shutil.rmtree(home)
