"""Fixtures for the history tests: a database, an image storage, generated images."""

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

NOBODY = 65534  # user id
# The request whose old spellings the tests of rows, infotext and embedded metadata read.
OLD_REQUEST = GenerationRequest(
    prompt="a red fox, in snow",
    negative_prompt="blurry",
    model_key="tiny",
    width=512,
    height=384,
    num_inference_steps=4,
    guidance_scale=1.5,
    scheduler="LCM",
    seed=7,
    task="inpaint",
    image="ab.png",
    mask_image="cd.png",
    strength=0.5,
    resize_mode="pad",
    fill_color="#00ff7f",
    mask_blur=16,
    outpaint=(8, 0, 16, 0),
    preset="turbo",
    backend="hf-inference",
)


def make_image(**changes: Any) -> GeneratedImage:
    """A generated image; `changes` are fields of the image or of its request."""
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
    request_fields = set(GenerationRequest("x").to_dict()) - {"image"}  # here the pixels
    request |= {name: changes.pop(name) for name in list(changes) if name in request_fields}
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
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "ai_images.db")
    yield database
    database.close()


@pytest.fixture
def storage(tmp_path: Path) -> ImageStorage:
    return ImageStorage(tmp_path / "outputs")


@pytest.fixture
def repository(database: Database, storage: ImageStorage) -> ImageRepository:
    return ImageRepository(database, storage)


@pytest.fixture
def plain_user() -> Iterator[Path]:
    """A folder of a user who is not root, so that file permissions apply."""
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
