"""The cache that the real huggingface_hub writes."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import snapshot_download
from huggingface_hub.utils import WeakFileLock

from canvas.models import hub_cache, pipeline_files
from canvas.models.hub_client import Hub
from tests.hub_server import LocalHub


@pytest.fixture
def client(hub: LocalHub, tmp_path: Path) -> Hub:
    return Hub(hub.url, tmp_path / "cache")


def fetch(client: Hub, repo_id: str, revision: str | None = None) -> Path:
    path = snapshot_download(repo_id, revision=revision, endpoint=client.endpoint, cache_dir=client.cache)
    return Path(path)


def test_snapshot_of_main_comes_first(client: Hub, tiny_repo: str) -> None:
    main = fetch(client, tiny_repo)
    newer = main.with_name("f" * 40)
    newer.mkdir()
    assert hub_cache.snapshots(client, tiny_repo) == [main, newer]
    (client.repo_folder(tiny_repo) / "refs" / "main").write_text(newer.name, encoding="utf-8")
    assert hub_cache.snapshots(client, tiny_repo) == [newer, main]


def test_cached_tree_lists_all_files(client: Hub, hub: LocalHub, tiny_repo: str) -> None:
    folder = fetch(client, tiny_repo)
    tree = hub_cache.cached_tree(client, tiny_repo, folder.name)
    assert tree == {path: file.stat().st_size for path, file in hub.files(tiny_repo).items()}
    assert hub_cache.cached_tree(client, tiny_repo, "0" * 40) is None


def test_a_file_of_another_size_is_missing(client: Hub, tiny_repo: str) -> None:
    folder = fetch(client, tiny_repo)
    size = (folder / "model_index.json").stat().st_size
    found = [
        hub_cache.has_file(client, tiny_repo, revision, "model_index.json", etag, size=given)
        for revision, etag, given in (
            *((folder.name, "", size), (folder.name, "", size + 1)),
            *(("0" * 40, "", size), ("0" * 40, (folder / "model_index.json").resolve().name, size)),
        )
    ]
    assert found == [True, False, False, True]


def test_snapshot_without_cached_tree_is_checked_by_its_files(client: Hub, tiny_repo: str) -> None:
    folder = fetch(client, tiny_repo)
    assert pipeline_files.is_complete(folder)
    for name in ("diffusion_pytorch_model.fp16.bin", "diffusion_pytorch_model.bin"):
        (folder / "unet" / name).unlink()
    assert pipeline_files.is_complete(folder)
    for name in ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"):
        (folder / "unet" / name).unlink()
    assert not pipeline_files.is_complete(folder)


def test_only_abandoned_partial_files_are_removed(client: Hub, tiny_repo: str) -> None:
    fetch(client, tiny_repo)
    blobs = client.repo_folder(tiny_repo) / "blobs"
    complete = set(blobs.iterdir())
    locked, unlocked = sorted(path.name for path in complete)[:2]
    for name in (locked, unlocked):
        (blobs / f"{name}.0123abcd.incomplete").write_bytes(b"partial")
    locks = client.cache / ".locks" / client.repo_folder(tiny_repo).name
    with WeakFileLock(locks / f"{locked}.lock"):
        hub_cache.remove_partial_files(client, tiny_repo)
        assert set(blobs.iterdir()) - complete == {blobs / f"{locked}.0123abcd.incomplete"}
    (blobs / f"{locked}.incomplete").write_bytes(b"kept")
    hub_cache.remove_partial_files(client, tiny_repo, keep=[locked])
    assert set(blobs.iterdir()) - complete == {blobs / f"{locked}.incomplete"}
    hub_cache.remove_partial_files(client, tiny_repo)
    assert set(blobs.iterdir()) == complete


def test_delete_includes_incomplete_downloads(client: Hub, tiny_repo: str) -> None:
    fetch(client, tiny_repo)
    partial = client.repo_folder("org/partial")
    (partial / "blobs").mkdir(parents=True)
    (partial / "blobs" / "abc").write_bytes(b"123")
    assert hub_cache.bytes_on_disk(client, ["org/partial"]) == 3
    hub_cache.delete(client, ["org/partial"])
    assert not partial.exists()
    assert hub_cache.bytes_on_disk(client, [tiny_repo]) > 0
    hub_cache.delete(client, [tiny_repo, "org/other"])
    assert hub_cache.bytes_on_disk(client, [tiny_repo]) == 0
    assert not client.repo_folder(tiny_repo).exists()


def test_free_bytes_of_a_missing_cache_folder(tmp_path: Path) -> None:
    assert hub_cache.free_bytes(Hub(cache_dir=tmp_path / "a" / "b" / "c")) > 0
    assert not (tmp_path / "a").exists()


def test_a_partial_file_counts_up_to_the_size_of_the_file(client: Hub) -> None:
    path = client.repo_folder("org/model") / "blobs" / "abc.incomplete"
    assert hub_cache.partial_bytes(client, "org/model", "abc", 3) == 0
    path.parent.mkdir(parents=True)
    path.write_bytes(b"123")
    assert [hub_cache.partial_bytes(client, "org/model", "abc", size) for size in (2, 3, 4)] == [0, 3, 3]
