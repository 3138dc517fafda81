"""A local Hub and a tiny random pipeline, shared by the tests of the engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from canvas.catalog import ModelSpec, parse_model
from tests.engine.hub import LocalHub
from tests.engine.tiny_pipeline import make_bin_edition, make_full_edition, make_tiny_pipeline

TINY_REPO = "tiny/diffusion"


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of safetensors, 64 x 64 pixels; read only, copy it to change it."""
    return make_tiny_pipeline(tmp_path_factory.mktemp("tiny") / "safetensors")


@pytest.fixture(scope="session")
def tiny_bin_folder(tiny_folder: Path) -> Path:
    """The same pipeline in `.bin` files only, with a safety checker that cannot be loaded."""
    return make_bin_edition(tiny_folder, tiny_folder.with_name("bin"))


@pytest.fixture(scope="session")
def tiny_full_folder(tiny_folder: Path) -> Path:
    """The same pipeline with all that the SD1.5 repository has: fp16, `.bin`, single files …"""
    return make_full_edition(tiny_folder, tiny_folder.with_name("full"))


@pytest.fixture(scope="session")
def tiny_spec(tiny_folder: Path) -> ModelSpec:
    """The tiny pipeline as a catalogue entry on this machine's disk."""
    return make_spec(str(tiny_folder))


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    """An empty Hub on this machine: `hub.add(repo_id, folder)`, `hub.faults[...]`, `hub.url`."""
    server = LocalHub()
    yield server
    server.close()


@pytest.fixture
def tiny_repo(hub: LocalHub, tiny_full_folder: Path) -> str:
    """The id under which the local Hub serves the tiny pipeline in full."""
    hub.add(TINY_REPO, tiny_full_folder)
    return TINY_REPO


def make_spec(name: str, key: str = "tiny-test", mirrors: tuple[str, ...] = ()) -> ModelSpec:
    """A catalogue entry for that folder, file or repository."""
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
