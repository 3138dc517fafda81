"""The model and the Hub of the tests behave like the real ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import snapshot_download

from tests.hub_server import LocalHub


@pytest.mark.slow
@pytest.mark.parametrize("fixture", ["tiny_folder", "tiny_bin_folder", "tiny_full_folder"])
def test_every_variant_generates_the_same_image(
    fixture: str, request: pytest.FixtureRequest, tiny_folder: Path
) -> None:
    assert render(request.getfixturevalue(fixture)) == render(tiny_folder)


def test_stays_small(tiny_folder: Path) -> None:
    assert sum(path.stat().st_size for path in tiny_folder.rglob("*")) < 3_000_000


def test_real_client_downloads_from_the_local_hub(
    hub: LocalHub, tiny_repo: str, tiny_full_folder: Path, tmp_path: Path
) -> None:
    folder = Path(snapshot_download(tiny_repo, endpoint=hub.url, cache_dir=tmp_path))
    assert folder.name == hub.revision(tiny_repo)
    for name, file in hub.files(tiny_repo).items():
        assert (folder / name).read_bytes() == file.read_bytes()


def render(folder: Path) -> bytes:
    import torch
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, requires_safety_checker=False)
    output = pipeline("a fox in the snow", num_inference_steps=2, generator=torch.Generator().manual_seed(7))
    assert output.images[0].size == (64, 64)
    return bytes(output.images[0].tobytes())
