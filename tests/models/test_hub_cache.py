"""The cache on disk, as huggingface_hub leaves it."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import snapshot_download
from huggingface_hub.utils import WeakFileLock

from canvas.models import hub_cache, pipeline_files
from canvas.models.hub_client import Hub
from tests.hub import LocalHub


@pytest.fixture
def here(hub: LocalHub, tmp_path: Path) -> Hub:
    return Hub(hub.url, tmp_path / "cache")


def fetch(here: Hub, repo_id: str, revision: str | None = None) -> Path:
    path = snapshot_download(
        repo_id, revision=revision, endpoint=here.endpoint, cache_dir=here.cache
    )
    return Path(path)


def test_what_main_points_to_comes_first(here: Hub, tiny_repo: str) -> None:
    main = fetch(here, tiny_repo)
    newer = main.with_name("f" * 40)
    newer.mkdir()
    assert hub_cache.snapshots(here, tiny_repo) == [main, newer]
    (here.folder(tiny_repo) / "refs" / "main").write_text(newer.name, encoding="utf-8")
    assert hub_cache.snapshots(here, tiny_repo) == [newer, main]


def test_the_listing_is_the_hubs(here: Hub, hub: LocalHub, tiny_repo: str) -> None:
    folder = fetch(here, tiny_repo)
    listing = hub_cache.listing(here, tiny_repo, folder.name)
    assert listing == {path: file.stat().st_size for path, file in hub.files(tiny_repo).items()}
    assert hub_cache.listing(here, tiny_repo, "0" * 40) is None


def test_a_snapshot_without_a_listing_is_judged_by_its_files(here: Hub, tiny_repo: str) -> None:
    folder = fetch(here, tiny_repo)
    assert pipeline_files.is_complete(folder)
    for name in ("diffusion_pytorch_model.fp16.bin", "diffusion_pytorch_model.bin"):
        (folder / "unet" / name).unlink()
    assert pipeline_files.is_complete(folder)
    for name in ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"):
        (folder / "unet" / name).unlink()
    assert not pipeline_files.is_complete(folder)


def test_only_abandoned_partial_files_are_removed(here: Hub, tiny_repo: str) -> None:
    fetch(here, tiny_repo)
    blobs = here.folder(tiny_repo) / "blobs"
    whole = set(blobs.iterdir())
    held, left = sorted(path.name for path in whole)[:2]
    for name in (held, left):
        (blobs / f"{name}.0123abcd.incomplete").write_bytes(b"half of it")
    locks = here.cache / ".locks" / here.folder(tiny_repo).name
    with WeakFileLock(locks / f"{held}.lock"):
        hub_cache.remove_partial_files(here, tiny_repo)
        assert set(blobs.iterdir()) - whole == {blobs / f"{held}.0123abcd.incomplete"}
    hub_cache.remove_partial_files(here, tiny_repo)
    assert set(blobs.iterdir()) == whole


def test_delete_takes_broken_off_downloads_too(here: Hub, tiny_repo: str) -> None:
    fetch(here, tiny_repo)
    half = here.folder("org/half")
    (half / "blobs").mkdir(parents=True)
    (half / "blobs" / "abc").write_bytes(b"123")
    assert hub_cache.bytes_on_disk(here, ["org/half"]) == 3
    hub_cache.delete(here, ["org/half"])
    assert not half.exists()
    assert hub_cache.bytes_on_disk(here, [tiny_repo]) > 0


def test_free_bytes_of_a_cache_that_is_not_there_yet(tmp_path: Path) -> None:
    assert hub_cache.free_bytes(Hub(cache_dir=tmp_path / "a" / "b" / "c")) > 0
    assert not (tmp_path / "a").exists()
